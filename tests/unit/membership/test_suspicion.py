from mesh_of_statements import BOOT, accusation, signed, site

from agent.membership.settings import Settings
from agent.membership.suspicion import ACCUSERS_KEPT, Suspicion

SETTINGS = Settings.lan()
FLOOR_S = SETTINGS.suspicion_floor_s(20)


def suspicion(*accusers: str, refused: int = 0) -> Suspicion:
    result = Suspicion(BOOT, 100.0)
    for index, name in enumerate(accusers):
        statement = accusation(name, "b", is_refused=index < refused)
        assert result.add(statement, signed(statement))
    return result


def test_an_accuser_counts_once() -> None:
    one = suspicion("a")
    statement = accusation("a", "b")
    assert not one.add(statement, signed(statement))
    assert list(one.accusers) == [site("a")]


def test_evidence_is_bounded() -> None:
    full = suspicion(*(f"a{number}" for number in range(ACCUSERS_KEPT)))
    late = accusation("late", "b")
    assert not full.add(late, signed(late))


def test_with_too_few_accusers_the_time_is_for_looking_not_for_dying() -> None:
    assert suspicion("a", "c").deadline(SETTINGS, 3, FLOOR_S) == 100.0 + SETTINGS.confirm_after_s


def test_enough_accusers_leave_the_time_to_refute() -> None:
    assert suspicion("a", "c", "d").deadline(SETTINGS, 3, FLOOR_S) == 100.0 + FLOOR_S


def test_two_refused_ports_shorten_the_time() -> None:
    one = suspicion("a", "c", "d", refused=1).deadline(SETTINGS, 3, FLOOR_S)
    two = suspicion("a", "c", "d", refused=2).deadline(SETTINGS, 3, FLOOR_S)
    assert one == 100.0 + FLOOR_S
    assert two == 100.0 + SETTINGS.refused_suspicion_s


def test_in_a_cluster_of_two_one_refusal_is_enough() -> None:
    deadline = suspicion("a", refused=1).deadline(SETTINGS, 1, FLOOR_S)
    assert deadline == 100.0 + SETTINGS.refused_suspicion_s


def test_a_held_suspect_gets_no_verdict_before_its_time() -> None:
    held = suspicion("a", "c", "d")
    held.held_until = 200.0
    assert held.deadline(SETTINGS, 3, FLOOR_S) == 200.0


def test_what_a_revoked_accuser_said_counts_no_longer() -> None:
    one = suspicion("a", "c", "d", refused=2)
    one.discount([site("a"), site("z")])
    assert site("a") not in one.accusers
    assert one.refusals() == sum(evidence.is_refused for evidence in one.accusers.values())
