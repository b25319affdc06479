"""Renewal at a running site: what is shown afterwards, who is asked, and what is answered."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.daemon.renewing import Renewing, Shown
from agent.drivers import keystore
from agent.drivers.keystore import SiteKeys, complete_join, found_cluster, prepare_join
from agent.foundation.errors import Malformed, Refused, Unreachable
from agent.foundation.ids import SiteId
from agent.identity.certificates import issue_site, read_passport
from agent.identity.registry import Roll
from agent.identity.renewal import RenewalReply, make_renewal
from agent.identity.trust import TrustLog
from agent.site.events import Recertified
from agent.site.site import Site
from agent.wire.mesh import Introduction
from agent.wire.records import STATEMENTS, Endpoint, Passport, Signed, SiteRecord
from agent.wire.schema import pack, unpack

HUB_AT = Endpoint("10.0.0.1", 7411, 7412)


@pytest.fixture(autouse=True)
def _quick_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.drivers.keystore._SCRYPT_N", 2)


def founded(folder: Path) -> SiteKeys:
    return found_cluster(
        folder, name="hub", region="north", tier="core", jurisdiction="DE", roles=(),
        passphrase="correct horse", now=datetime.now(UTC),
    ).keys  # fmt: skip


def joined(hub: SiteKeys, folder: Path, **claimed: Any) -> SiteKeys:
    own = prepare_join(folder)
    gossip = own.gossip_private.public_key().public_bytes_raw()
    claims = replace(hub.identity.claims, name=folder.name, gossip_key=gossip, **claimed)
    assert hub.issuer is not None
    now = datetime.now(UTC) - timedelta(minutes=30)
    leaf = issue_site(hub.issuer, own.site_private.public_key(), claims, now)
    chain = (leaf, hub.issuer.certificate)
    return complete_join(folder, chain=chain, root=hub.root, trust=hub.trust)


def introduction(keys: SiteKeys, where: Endpoint) -> Introduction:
    record = SiteRecord(keys.site, 1, 0, 1, "alive", where, 0.0, 1.0, (), bytes(8))
    body = STATEMENTS.pack(record)
    return Introduction(keys.passport, Signed(body, keys.site_private.sign(body)))


@dataclass
class World:
    """One site's renewing, with everything around it noted down."""

    renewing: Renewing
    roll: Roll
    shown: list[str] = field(default_factory=list)
    asked: list[Endpoint] = field(default_factory=list)
    reply: Callable[[Endpoint], RenewalReply] | None = None

    async def ask(self, endpoint: Endpoint) -> RenewalReply:
        self.asked.append(endpoint)
        if self.reply is None:
            raise Unreachable("it does not answer", why="connection refused")
        return self.reply(endpoint)

    def start(self, monkeypatch: pytest.MonkeyPatch, hints: tuple[Endpoint, ...] = ()) -> None:
        monkeypatch.setattr(self.renewing._calls, "ask", self.ask)
        site = SimpleNamespace(
            me=self.renewing.keys.site,
            swim=SimpleNamespace(members=dict),
            discovery=SimpleNamespace(
                hints=[SimpleNamespace(endpoint=e, site=None) for e in hints]
            ),
        )

        def noted(what: str) -> Callable[..., None]:
            return lambda *_: self.shown.append(what)

        client = SimpleNamespace(recertified=noted("client"), refusals={})
        joining = SimpleNamespace(recertified=noted("joining"), shown_chain=b"")
        server = SimpleNamespace(recertified=noted("server"))

        def feed(event: Recertified) -> None:
            self.shown.append(f"site until {event.identity.not_after:%Y}")

        shown = Shown(client, server, joining, feed, noted("gateway"))  # type: ignore[arg-type]
        self.renewing.start(cast("Site", site), shown)


def world(keys: SiteKeys, book: tuple[Introduction, ...] = ()) -> World:
    trust = TrustLog(keys.cluster)
    for entry in keys.trust:
        trust.append(entry)
    roll, tasks = Roll(keys.root, trust), set[asyncio.Task[Any]]()

    def spawn(work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    return World(Renewing(keys, trust, roll, book, Random(1), spawn), roll)


async def test_an_issuer_renews_its_own_ended_certificate_and_shows_it_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = founded(tmp_path / "hub")
    assert hub.issuer is not None
    claims = replace(hub.identity.claims, life_s=60)
    past = datetime.now(UTC) - timedelta(minutes=30)
    leaf = issue_site(hub.issuer, hub.identity.public_key, claims, past)
    ended = keystore.store_chain(hub, (leaf, hub.issuer.certificate))
    one = world(ended)
    assert one.renewing.problem() == ""  # it has not started
    one.start(monkeypatch)
    assert "certificate ended" in one.renewing.problem()
    answer = await one.renewing.renew_now()
    assert answer["renewed_by"] == "this site itself"
    assert answer["problem"] == ""
    assert one.asked == []
    assert one.shown[:3] == ["joining", "client", "server"]
    assert set(one.shown[3:]) == {f"site until {datetime.now(UTC):%Y}", "gateway"}
    assert keystore.load(hub.directory).identity == one.renewing.keys.identity
    await one.renewing.stop()


async def test_a_site_with_an_ended_certificate_asks_the_issuer_of_its_peer_book(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = founded(tmp_path / "hub")
    edge = joined(hub, tmp_path / "edge", life_s=60)
    issuer, one = world(hub), world(edge, (introduction(hub, HUB_AT),))
    other = Endpoint("10.0.0.9", 7411, 7412)

    request = make_renewal(
        hub.site, edge.passport, edge.site_private, edge.gossip_private, datetime.now(UTC)
    )
    ready = unpack(RenewalReply, await issuer.renewing.answer(pack(request)))
    one.reply = lambda _: ready
    one.start(monkeypatch, (other,))
    answer = await one.renewing.renew_now()
    assert one.asked == [HUB_AT]  # the issuer first, and nobody else
    assert answer["expires_at"] > datetime.now(UTC).timestamp()
    assert keystore.load(edge.directory).identity.not_after > datetime.now(UTC)
    await one.renewing.stop()


async def test_when_nobody_renews_each_is_named_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = founded(tmp_path / "hub")
    one = world(joined(hub, tmp_path / "edge"), (introduction(hub, HUB_AT),))
    one.start(monkeypatch, (Endpoint("10.0.0.9", 7411, 7412),))
    with pytest.raises(
        Unreachable, match=r"10\.0\.0\.1:7411: it does not answer; connection refused"
    ):
        await one.renewing.renew_now()
    assert len(one.asked) == 2
    assert one.shown == []
    await one.renewing.stop()


async def test_a_certificate_that_is_not_proven_is_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = founded(tmp_path / "hub")
    edge = joined(hub, tmp_path / "edge")
    one = world(edge, (introduction(hub, HUB_AT),))
    one.reply = lambda _: RenewalReply(hub.chain)
    one.start(monkeypatch)
    with pytest.raises(Unreachable, match="another key than asked for"):
        await one.renewing.renew_now()
    assert keystore.load(edge.directory).chain == edge.chain
    await one.renewing.stop()


async def test_a_site_without_an_issuer_key_says_where_issuers_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = founded(tmp_path / "hub")
    member, asker = joined(hub, tmp_path / "member"), joined(hub, tmp_path / "asker")
    one = world(member, (introduction(hub, HUB_AT),))
    one.start(monkeypatch)
    request = make_renewal(
        member.site, asker.passport, asker.site_private, asker.gossip_private, datetime.now(UTC)
    )
    reply = unpack(RenewalReply, await one.renewing.answer(pack(request)))
    assert reply.chain == ()
    assert [(ref.site, ref.endpoint) for ref in reply.issuers] == [(hub.site, HUB_AT)]
    await one.renewing.stop()


async def test_retired_sites_and_nonsense_are_not_renewed(tmp_path: Path) -> None:
    hub = founded(tmp_path / "hub")
    old = joined(hub, tmp_path / "edge")
    new = joined(hub, tmp_path / "new")
    one = world(hub)
    assert hub.issuer is not None
    claims = replace(new.identity.claims, name="edge", replaces=(old.site,))
    leaf = issue_site(hub.issuer, new.identity.public_key, claims, datetime.now(UTC))
    passport = Passport((leaf, hub.issuer.certificate))
    one.roll.learn_retired(read_passport(passport, hub.root))
    request = make_renewal(
        hub.site, old.passport, old.site_private, old.gossip_private, datetime.now(UTC)
    )
    with pytest.raises(Refused, match="is retired"):
        await one.renewing.answer(pack(request))
    with pytest.raises(Malformed):
        await one.renewing.answer(b"noise")


async def test_the_doctor_is_told_of_an_issuer_whose_certificate_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = founded(tmp_path / "hub")
    one = world(hub)
    one.start(monkeypatch)
    checks = {name: ok for name, ok, _, _ in one.renewing.checks()}
    assert all(checks.values())
    assert len(checks) == 2
    monkeypatch.setattr("agent.daemon.renewing.ISSUER_WARNING_S", 10 * 365 * 86_400)
    found = {name: (ok, mend) for name, ok, _, mend in one.renewing.checks()}
    name = next(name for name in found if name.startswith("issuer"))
    assert found[name][0] is False
    assert "atoll issuer add" in found[name][1]
    await one.renewing.stop()


async def test_what_refusing_members_say_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = world(founded(tmp_path / "hub"))
    one.start(monkeypatch)
    assert one.renewing.reasons([]) == []
    assert one.renewing._shown is not None
    one.renewing._shown.client.refusals["10.0.0.1:7411"] = "hub is retired"
    assert one.renewing.reasons([SiteId(bytes(32))]) == [
        "1 of 1 members refuse this site; 10.0.0.1:7411 says: hub is retired"
    ]
    await one.renewing.stop()
