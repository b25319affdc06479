"""Join tokens across crashes, wrong tries and dead addresses, with real processes."""

import contextlib
import signal
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from daemon_cluster import ATOLL, Daemon, found, running, scratch, token_for, wait_for
from issuer_that_dies import STEPS

from agent.identity.tokens import TokenRow, decode_token, encode_token
from agent.wire.schema import unpack

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]
DIES = Path(__file__).parent / "issuer_that_dies.py"


@pytest.fixture(scope="module")
def hub() -> Iterator[Daemon]:
    with scratch() as folder:
        site = found(folder, "berlin")
        with running(site):
            yield site.start().wait_ready()


def tokens(site: Daemon) -> list[TokenRow]:
    """The rows of a stopped issuer."""
    database = sqlite3.connect(f"file:{site.state_dir / 'atoll.db'}?mode=ro", uri=True)
    with contextlib.closing(database):
        return [unpack(TokenRow, row[0]) for row in database.execute("SELECT row FROM tokens")]


@pytest.mark.parametrize("step", STEPS)
def test_a_token_admits_one_machine_wherever_the_issuer_is_killed(hub: Daemon, step: str) -> None:
    name = f"paris-{step}"
    token = token_for(hub, name, "FR")
    hub.stop()
    hub.program = (sys.executable, str(DIES), step)
    hub.start().wait_ready()
    paris, thief = Daemon(hub.folder.parent, name), Daemon(hub.folder.parent, f"thief-{step}")
    assert paris.cli("join", token, ok=False).returncode == 1
    assert hub.process is not None
    assert hub.process.wait(10) == -signal.SIGKILL
    hub.process, hub.program = None, ATOLL
    (row,) = [one for one in tokens(hub) if one.name == name]
    assert row.state == ("open" if step == "before-the-row" else "spent")
    hub.start().wait_ready()
    if step != "before-the-row":
        assert "was used already" in thief.cli("join", token, ok=False).stderr
    paris.cli("join", token)  # the same machine, with the same keys
    assert "was used already" in thief.cli("join", token, ok=False).stderr
    hub.stop()
    (row,) = [one for one in tokens(hub) if one.name == name]
    assert row.state == "spent"
    hub.start().wait_ready()


def test_five_wrong_tries_burn_a_token_even_if_the_issuer_is_killed_between_them(
    hub: Daemon,
) -> None:
    token = token_for(hub, "oslo", "NO")
    right = decode_token(token)
    wrong = encode_token(replace(right, secret=bytes(16)))
    guesser = Daemon(hub.folder.parent, "guesser")
    for number in range(1, 6):
        said = guesser.cli("join", wrong, ok=False).stderr
        assert f"wrong try {number} of 5" in said, said
        hub.kill()
        hub.start().wait_ready()
    said = Daemon(hub.folder.parent, "oslo").cli("join", token, ok=False).stderr
    assert "the token is burned" in said
    assert "find out who tried" in said


def test_a_token_is_good_for_its_name_and_issuer_only(hub: Daemon) -> None:
    right = decode_token(token_for(hub, "bern", "CH"))
    other = encode_token(replace(right, name="zurich"))
    said = Daemon(hub.folder.parent, "zurich").cli("join", other, ok=False).stderr
    assert "the token is not for a site named zurich" in said
    stranger = encode_token(replace(right, issuer=type(right.issuer)(bytes(32))))
    said = Daemon(hub.folder.parent, "bern").cli("join", stranger, ok=False).stderr
    assert "not the issuer of the token" in said


@pytest.mark.parametrize("seeds", [(("127.0.0.1", 9), ("127.0.0.1", 10)), ()])
def test_with_dead_addresses_or_none_the_issuer_is_found_on_this_network(
    hub: Daemon, seeds: tuple[tuple[str, int], ...]
) -> None:
    name = f"prague-{len(seeds)}"
    right = decode_token(token_for(hub, name, "CZ"))
    moved = encode_token(replace(right, seeds=seeds))
    prague = Daemon(hub.folder.parent, name)
    wait_for(lambda: "announces" in hub.cli("peers", "--why").stdout, 20, "announced", [hub])
    prague.cli("join", moved)
    prague.forget_the_tokens_addresses()
    with running(prague):
        prague.start().wait_ready()
        wait_for(lambda: name in hub.alive(), 30, "met", [hub, prague])


def test_without_multicast_dead_addresses_are_named(hub: Daemon) -> None:
    right = decode_token(token_for(hub, "vienna", "AT"))
    moved = encode_token(replace(right, seeds=(("127.0.0.1", 9),)))
    vienna = Daemon(hub.folder.parent, "vienna", "[discovery]\nmdns = false")
    said = vienna.cli("join", moved, ok=False).stderr
    assert "127.0.0.1:9: Connection refused" in said
