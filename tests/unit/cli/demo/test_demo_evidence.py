import copy
from typing import Any

import pytest

from agent.cli.demo.cluster import Failed
from agent.cli.demo.evidence import check_history, compare, counted_names

Json = dict[str, Any]


def history() -> list[Json]:
    return [
        {
            "round": number, "epoch": 1 if number < 3 else 2, "parameters": f"p{number}",
            "contributions": f"c{number}",
            "counted": [
                {"site": site, "name": f"name-{site}", "update": f"u{number}{site}"}
                for site in ("a", "b", "c")
            ],
        }
        for number in (1, 2, 3)
    ]  # fmt: skip


def test_a_sound_history_passes() -> None:
    check_history(history())
    compare(history(), history())
    assert counted_names(history()[0]) == {"name-a", "name-b", "name-c"}


def test_a_missing_round_is_noticed() -> None:
    rounds = history()
    del rounds[1]
    with pytest.raises(Failed, match="round 2 is missing"):
        check_history(rounds)


def test_an_update_counted_twice_is_noticed() -> None:
    rounds = history()
    rounds[2]["counted"][0]["update"] = rounds[0]["counted"][0]["update"]
    with pytest.raises(Failed, match="update of round 1 is counted again in round 3"):
        check_history(rounds)


def test_a_site_counted_twice_in_one_round_is_noticed() -> None:
    rounds = history()
    rounds[1]["counted"][1]["site"] = "a"
    with pytest.raises(Failed, match="round 2 counts a site twice"):
        check_history(rounds)


def test_an_epoch_that_falls_is_noticed() -> None:
    rounds = history()
    rounds[2]["epoch"] = 0
    with pytest.raises(Failed, match="committed in epoch 0 after 1"):
        check_history(rounds)


@pytest.mark.parametrize("key", ["epoch", "parameters", "contributions"])
def test_databases_that_differ_are_noticed(key: str) -> None:
    other = copy.deepcopy(history())
    other[1][key] = "another"
    with pytest.raises(Failed, match=f"round 2: the databases differ in {key}"):
        compare(history(), other)


def test_a_difference_in_the_counted_updates_is_noticed() -> None:
    other = copy.deepcopy(history())
    other[1]["counted"][0]["update"] = "another"
    with pytest.raises(Failed, match="differ in the updates"):
        compare(history(), other)
