"""What an attack found about history after a recovery, and what is heard. Each failed first."""

from random import Random

from federated_site import (
    ANNA,
    BERT,
    CARL,
    ME,
    Around,
    contributions,
    desk,
    digest,
    job,
    of,
    site_id,
    value,
)

from agent.election.roster import Roster
from agent.federation.events import FetchBlob
from agent.federation.history import Counted, History
from agent.federation.lateness import late_by
from agent.federation.register import Register
from agent.federation.value import Contribution


def test_a_round_that_was_lost_is_not_taken_for_the_one_made_anew() -> None:
    """This site has read round 1 and was away during the recovery and round 1 anew, which counts ANNA's update.

    It aggregates round 2, and has not fetched round 1's contributions yet; ANNA offers hers again.
    """
    of_anna, of_bert = Contribution(ANNA, digest("a1"), 5), Contribution(BERT, digest("b1"), 5)
    lost, _, content = contributions(1, None, of_bert)
    anew, _, _ = contributions(1, None, of_anna, of_bert)
    out, around = desk(), Around(ANNA)
    history = History(job(), out, around, lambda: (ANNA,), lambda _: None)
    history.restore(Counted(lost, content))
    history.follow(value(round=1, contributions=lost))
    history.follow(value(round=1, epoch=2**20, recoveries=1, contributions=anew))
    assert [one.digest for one in of(out.take(), FetchBlob)] == [anew]
    assert late_by(ANNA, 1, digest("p0"), 2, 2, history.content) is None, "round 2 counts it again"


def test_one_member_that_tells_ever_new_tales_does_not_drown_what_two_say() -> None:
    register = Register(job(committee=(ME, BERT, CARL)), ME, 1, desk(), Random(1), None)
    true = Roster(2, (ANNA, ME, BERT), ())
    register.hear(ANNA, true, 0.0)
    liar = site_id("liar")
    for n in range(9):
        register.hear(liar, Roster(4 + 2 * n, (liar, ME, BERT), ()), 0.0)
    register.hear(BERT, true, 0.0)
    assert register.roster == true
