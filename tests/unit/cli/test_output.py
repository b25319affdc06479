"""``agent.cli.output``: sizes, times, and text that is only text."""

from datetime import UTC, datetime

import pytest

from agent.cli.output import ago, clean, print_table, size, span


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        ("", "-"),
        ([], "-"),
        (["a", None], "a, -"),
        (True, "yes"),
        (0, "0"),
        ("Zürich", "Zürich"),
        (
            "a\x1b[31m\r\n\x07b",
            "a\N{REPLACEMENT CHARACTER}[31m" + "\N{REPLACEMENT CHARACTER}" * 3 + "b",
        ),
        ("\u202egnp.exe", "\N{REPLACEMENT CHARACTER}gnp.exe"),
    ],
)
def test_whatever_it_is_it_is_one_printable_line(value: object, shown: str) -> None:
    assert clean(value) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 << 20, "3.0 MiB"),
        (5 << 40, "5120.0 GiB"),
    ],
)
def test_sizes_have_their_unit(count: int, shown: str) -> None:
    assert size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(1, "1 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (2e5, "2 d")]
)
def test_spans_have_their_unit(seconds: float, shown: str) -> None:
    assert span(seconds) == shown
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert ago(now.timestamp() - seconds, now) == shown


def test_a_table_in_a_pipe_is_neither_folded_nor_cut(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "why"), [("x", "y" * 200)], nothing="none")
    out = capsys.readouterr().out
    assert "y" * 200 in out
    assert "\x1b" not in out


def test_markup_in_a_cell_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name",), [("[bold]x[/bold] :smile:",)], nothing="none")
    assert "[bold]x[/bold] :smile:" in capsys.readouterr().out


def test_an_empty_table_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name",), [], nothing="There are none.")
    assert capsys.readouterr().out == "There are none.\n"
