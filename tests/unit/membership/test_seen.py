from agent.membership.seen import Seen


def test_a_statement_is_remembered_for_at_least_one_generation() -> None:
    seen = Seen(10)
    seen.add(b"first")
    for number in range(10):
        seen.add(b"%d" % number)
    assert b"first" in seen


def test_memory_is_bounded() -> None:
    seen = Seen(10)
    for number in range(100):
        seen.add(b"%d" % number)
    assert sum(b"%d" % number in seen for number in range(100)) <= 20
    assert b"99" in seen
