"""One token at two real sites that demand one: signed at the first, let in at both, revoked at both."""

import http.client
from collections.abc import Iterator

import pytest
from daemon_cluster import Daemon, that_met, wait_for

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

DEMAND = 'http_tokens = "always"'


@pytest.fixture(scope="module")
def sites() -> Iterator[list[Daemon]]:
    places = {"berlin": "DE", "paris": "FR"}
    with that_met(places, lambda site: site.configure(listen=DEMAND)) as sites:
        yield sites


def status(site: Daemon, token: str) -> int:
    connection = http.client.HTTPConnection(site.host, 8000, timeout=10)
    try:
        connection.request("GET", "/v2/models/stats", headers={"Authorization": f"Bearer {token}"})
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_token_of_the_fleet_is_let_in_at_every_site_until_it_is_revoked(
    sites: list[Daemon],
) -> None:
    berlin, paris = sites
    token = berlin.cli(
        "app", "token", "create", "till", "--scope", "read", "--fleet"
    ).stdout.strip()
    wait_for(lambda: [status(site, token) for site in sites] == [200, 200], 20, "let in", sites)
    told = paris.cli("app", "token", "list").stdout
    assert "every site" in told
    assert token not in told
    paris.kill()
    paris.start().wait_ready()
    assert status(paris, token) == 200, "also after a restart, from its own disk"
    berlin.cli("app", "token", "revoke", "till", "--fleet")
    wait_for(lambda: [status(site, token) for site in sites] == [401, 401], 20, "refused", sites)
    assert token not in berlin.log() + paris.log()


def test_a_token_may_be_for_the_sites_of_one_jurisdiction(sites: list[Daemon]) -> None:
    berlin, paris = sites
    token = berlin.cli(
        "app", "token", "create", "ward", "--scope", "read", "--fleet", "--jurisdictions", "DE"
    ).stdout.strip()
    wait_for(lambda: status(berlin, token) == 200, 20, "let in", sites)
    wait_for(lambda: "elsewhere" in paris.cli("app", "token", "list").stdout, 20, "known", sites)
    assert status(paris, token) == 401
