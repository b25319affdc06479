import pytest

from agent.election.ballots import PROPOSER_BYTES, owner, proposer_id, quorum_of
from agent.foundation.ids import SiteId
from agent.foundation.randomness import Rng
from agent.wire.mesh import Ballot, Prepare
from agent.wire.schema import pack, unpack

SITE = SiteId(bytes(range(32)))


def test_a_proposer_name_fits_the_wire_and_names_its_owner() -> None:
    ballot = Ballot(1, proposer_id(SITE, 2**32 - 1, Rng(1)))
    assert len(ballot.proposer) == PROPOSER_BYTES
    assert unpack(Prepare, pack(Prepare("job", ballot))).ballot == ballot
    assert owner(ballot) == SITE


def test_names_differ_within_a_boot_and_between_boots_with_the_same_randomness() -> None:
    rng = Rng(1)
    names = {proposer_id(SITE, 1, rng) for _ in range(100)}
    names.add(proposer_id(SITE, 2, Rng(1)))
    assert len(names) == 101


@pytest.mark.parametrize(("size", "quorum"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
def test_any_two_majorities_meet(size: int, quorum: int) -> None:
    assert quorum_of(size) == quorum
    assert 2 * quorum > size
