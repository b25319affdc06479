"""Writes docs/commands.md: every command of ``atoll`` with its options, from the parser itself.

Run: python packaging/commands_page.py > docs/commands.md (a test compares them).
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_HEAD = """\
# Commands

Every command takes `--config FILE` (default `/etc/atoll/atoll.toml`), `--socket PATH` and `--json`. An error says what
happened, why, and how to mend it, and ends with exit code 1; wrong usage ends with 2.
"""
_COMMON = {"--help", "--config", "--socket", "--json"}


def page(parser: argparse.ArgumentParser) -> str:
    """The whole page for this parser."""
    return "\n".join([_HEAD, *_sections(parser, parser.prog)])


def _sections(parser: argparse.ArgumentParser, prog: str) -> Iterator[str]:
    for title, leaf in _leaves(parser, prog):
        yield f"## {title}\n\n{leaf.description or ''}\n"
        lines = [
            f"| {_written(action)} | {_told(action)} |"
            for action in leaf._actions  # noqa: SLF001 - argparse tells its arguments nowhere else
            if not set(action.option_strings) & _COMMON
            and not isinstance(action, argparse._SubParsersAction)  # noqa: SLF001 - as above
        ]
        if lines:
            yield "\n".join(["| argument | meaning |", "|---|---|", *lines]) + "\n"


def _leaves(
    parser: argparse.ArgumentParser, prefix: str
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    groups = [
        action
        for action in parser._actions  # noqa: SLF001 - as above
        if isinstance(action, argparse._SubParsersAction)  # noqa: SLF001 - as above
    ]
    if not groups or not all(group.required for group in groups):
        yield prefix, parser  # it does something on its own
    for group in groups:
        for word, inner in group.choices.items():
            yield from _leaves(inner, f"{prefix} {word}")


def _written(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
    names = ", ".join(action.option_strings)
    is_optional = bool(action.option_strings) and not action.required
    text = " ".join(part for part in (names, value) if part)
    return f"`{text}`" if is_optional or not action.option_strings else f"`{text}` (required)"


def _told(action: argparse.Action) -> str:
    choices = f"one of {', '.join(map(str, action.choices))}" if action.choices else ""
    told = (action.help or "").replace("%(default)s", str(action.default)).replace("|", "\\|")
    return "; ".join(part for part in (told, choices) if part)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from agent.cli.parser import build

    sys.stdout.write(page(build()))
