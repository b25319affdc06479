"""``agent.cli.parser``: what can be typed."""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agent.api import names
from agent.cli import parser
from agent.cli.main import verb_of
from agent.identity.claims import TIERS, is_jurisdiction, is_name

CLAIMS = ["--name", "paris", "--region", "eu-west", "--tier", "edge", "--jurisdiction", "FR"]


def _verbs(of: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                if inner.get_default("run"):
                    yield inner
                yield from _verbs(inner)


def parsed(*words: str) -> argparse.Namespace:
    return parser.parse(words)


def test_every_verb_names_a_function_that_exists() -> None:
    runs = [verb.get_default("run") for verb in _verbs(parser.build())]
    assert len(runs) == len(set(runs)) >= 21
    for run in runs:
        assert callable(verb_of(run)), run


def test_every_verb_and_option_is_explained() -> None:
    for verb in _verbs(parser.build()):
        assert verb.description, verb.prog
        for action in verb._actions:
            if action.option_strings and "--name" not in action.option_strings:
                assert action.help or action.choices or action.required, (verb.prog, action.dest)


def test_common_options_stand_before_or_after_the_verb() -> None:
    assert parsed("--json", "status").json is True
    assert parsed("status", "--json").json is True
    before, after = parsed("--socket", "/a", "status"), parsed("status", "--socket", "/a")
    assert before.socket == after.socket


@pytest.mark.parametrize(
    ("text", "expected"), [("90", 90), ("90s", 90), ("30m", 1800), ("1h", 3600), ("7d", 604_800)]
)
def test_durations_have_units(text: str, expected: float) -> None:
    assert parser.seconds(text) == expected


def test_lists_lose_repetitions_and_keep_their_order() -> None:
    assert parser.labels("FR, DE,FR") == ("FR", "DE")
    assert parser.names("b,a") == ("b", "a")


@pytest.mark.parametrize(
    ("read", "wrong"),
    [
        (parser.name, "../etc/passwd"),
        (parser.name, "Berlin"),
        (parser.name, "a" * 65),
        (parser.names, "a,,b"),
        (parser.labels, "D E"),
        (parser.model, "a:b:c"),
        (parser.model, "a:"),
        (parser.job, "a/b"),
        (parser.seconds, "1 week"),
        (parser.seconds, "-5"),
    ],
)
def test_a_wrong_argument_is_told_before_anything_happens(
    read: Callable[[str], Any], wrong: str
) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        read(wrong)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["model"],
        ["token", "create"],
        ["init", *CLAIMS[:-2]],
        ["init", *CLAIMS[:-2], "--jurisdiction", "F R"],
        ["model", "push", "f", "--name", "a", "--version", "1", "--sites", "a", "--everywhere"],
        ["stat"],
        ["status", "--js"],
    ],
)
def test_wrong_usage_ends_with_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed(*words)
    assert caught.value.code == 2
    assert "usage: atoll" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["a", "A", "a.b-c_d", "-a", ".a", "", "a" * 64, "a" * 65, "ä", "a\n"]
)
def test_names_and_labels_are_those_that_can_be_certified(text: str) -> None:
    assert bool(names.NAME.fullmatch(text)) == is_name(text)
    assert bool(names.LABEL.fullmatch(text)) == is_jurisdiction(text)


def test_tiers_are_those_that_can_be_certified() -> None:
    assert parser.TIERS == TIERS


def test_the_demo_takes_its_arguments_untouched() -> None:
    assert parsed("demo", "--sites", "5").arguments == ("--sites", "5")
