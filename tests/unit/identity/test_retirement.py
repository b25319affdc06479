"""Who takes whose place: by name, by an issuer's word, in whatever order it becomes known."""

from dataclasses import replace
from datetime import timedelta
from itertools import permutations

import pytest
from cluster_of_keys import NOW, Cluster, Member

from agent.foundation.errors import Refused
from agent.foundation.ids import SiteId
from agent.identity import retirement
from agent.identity.certificates import Identity, read_passport
from agent.identity.claims import REPLACES_MAX
from agent.identity.registry import Roll
from agent.identity.retirement import Retirements, predecessors
from agent.identity.trust import TrustLog
from agent.identity.trust_signing import sign_revocation

CLUSTER = Cluster()
ROOT = CLUSTER.root.certificate


def joined(name: str, *former: Member, days: float = 0.0) -> Member:
    """A site whose certificate replaces ``former``."""
    site = CLUSTER.site(name)
    claims = replace(site.claims, replaces=tuple(one.site for one in former))
    passport = CLUSTER.certified(site, claims, NOW + timedelta(days=days))
    return replace(site, claims=claims, passport=passport)


def identity(member: Member) -> Identity:
    return read_passport(member.passport, ROOT)


def roll_with(log: TrustLog, *members: Member) -> Roll:
    roll = Roll(ROOT, log)
    for member in members:
        try:
            roll.admit(member.passport, NOW)
        except Refused:
            continue
    return roll


def test_a_reinstalled_site_retires_its_former_identity_in_any_order() -> None:
    old, other = joined("edge"), joined("hub")
    new = joined("edge", old)
    for order in permutations((old, new, other)):
        roll = roll_with(CLUSTER.log(), *order)
        assert set(roll) == {new.site, other.site}
        assert roll.get(old.site) is None
        assert roll.passport(old.site) is None
        assert roll.gossip_key(old.site) is None
        assert roll.named("edge") == (new.site,)
        assert roll.retired() == {old.site}
        assert roll.is_gone(old.site)
        assert not roll.is_gone(new.site)
        with pytest.raises(Refused, match="is retired; a new site joined under its name"):
            roll.admit(old.passport, NOW)


def test_a_certificate_retires_nobody_of_another_name() -> None:
    hub = joined("hub")
    liar = joined("edge", hub)
    for order in permutations((hub, liar)):
        roll = roll_with(CLUSTER.log(), *order)
        assert set(roll) == {hub.site, liar.site}
        assert roll.retired() == frozenset()


def test_an_identity_cannot_retire_itself() -> None:
    site = joined("edge")
    claims = replace(site.claims, replaces=(site.site,))
    roll = roll_with(CLUSTER.log(), replace(site, passport=CLUSTER.certified(site, claims)))
    assert set(roll) == {site.site}


def test_the_site_of_a_stolen_token_retires_nobody_once_it_is_revoked() -> None:
    log = CLUSTER.log()
    old = joined("edge")
    thief = joined("edge", old)
    roll = roll_with(log, old, thief)
    assert set(roll) == {thief.site}
    log.append(sign_revocation(log, thief.site, "stolen token", CLUSTER.admin, NOW))
    assert set(roll) == {old.site}
    assert roll.retired() == frozenset()


def test_a_retired_identity_stays_retired_when_the_new_passport_has_ended() -> None:
    old = joined("edge")
    new = joined("edge", old)
    roll, later = Roll(ROOT, CLUSTER.log()), NOW + timedelta(days=30)
    for member in (new, old):
        with pytest.raises(Refused):
            roll.admit(member.passport, later)
    assert old.site in roll.retired()


def test_a_name_that_was_reinstalled_again_and_again_has_one_holder() -> None:
    sites = [joined("edge")]
    for number in range(1, 4):
        known = [identity(one) for one in sites]
        fresh = CLUSTER.site("edge")
        replaces = predecessors("edge", known, fresh.site)
        claims = replace(fresh.claims, replaces=replaces)
        passport = CLUSTER.certified(fresh, claims, NOW + timedelta(minutes=number))
        sites.append(replace(fresh, claims=claims, passport=passport))
    # Only the first and the last are seen here: what lies between is named by the last.
    roll = roll_with(CLUSTER.log(), sites[-1], sites[0])
    assert set(roll) == {sites[-1].site}
    assert roll.retired() == {one.site for one in sites[:-1]}


def test_predecessors_are_of_that_name_the_latest_first_and_bounded() -> None:
    former = [joined("edge", days=float(day)) for day in range(REPLACES_MAX + 3)]
    known = [*(identity(one) for one in former), identity(joined("hub"))]
    found = predecessors("edge", known, SiteId(bytes(32)))
    assert found == tuple(one.site for one in reversed(former))[:REPLACES_MAX]
    assert predecessors("edge", known, former[-1].site)[0] == former[-2].site
    assert predecessors("nobody", known, SiteId(bytes(32))) == ()


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retirement, "RETIRED_MAX", 3)
    found = Retirements()
    old = joined("edge")
    for _ in range(5):
        old = joined("edge")
        found.learn(identity(joined("edge", old)))
    assert len(list(found)) == 3
    for _ in range(REPLACES_MAX + 2):
        found.learn(identity(joined("edge", old)))
    assert found.replacement(identity(old), ()) is not None


def test_renewed_passports_are_told_once() -> None:
    site = joined("edge")
    roll = roll_with(CLUSTER.log(), site)
    assert roll.take_renewed() == frozenset()
    roll.admit(
        CLUSTER.certified(site, site.claims, NOW + timedelta(hours=1)), NOW + timedelta(hours=1)
    )
    assert roll.take_renewed() == {site.site}
    assert roll.take_renewed() == frozenset()
