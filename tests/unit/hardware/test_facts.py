from agent.hardware.facts import LIST_MAX, TEXT_CHARS_MAX, Fact, Facts


def test_the_later_of_two_facts_wins_and_all_come_by_name() -> None:
    facts = Facts.of([Fact("b", 1, "x"), Fact("a", "t", "x"), Fact("b", 2, "y")])
    assert [fact.name for fact in facts] == ["a", "b"]
    assert facts.number("b") == 2
    assert facts.number("a") is None
    assert facts.text("b") == "2"
    assert facts.texts("a") == ("t",)
    assert facts.text("none") is None
    assert facts.texts("none") == ()


def test_facts_are_cut_to_their_bounds() -> None:
    facts = Facts.of([Fact("a", "x" * 1000, "x"), Fact("b", ("y" * 1000,) * 2000, "x")])
    assert len(facts.text("a") or "") == TEXT_CHARS_MAX
    assert len(facts.texts("b")) == LIST_MAX
    assert len(facts.texts("b")[0]) == TEXT_CHARS_MAX
