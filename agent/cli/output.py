"""How answers look to a person.

Rule: text from other sites is shown as text: a control character could move the cursor, retitle the
terminal or hide a line, so none is passed on.
"""

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

PLAIN_WIDTH = 400
"""Where there is no terminal (a pipe, a file), rows are never folded or cut short of this."""


def clean(value: object) -> str:
    """``value`` as one line of printable text; ``-`` for nothing."""
    if value is None or value == "":
        return "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(clean(item) for item in value) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def print_json(value: Any) -> None:
    """For scripts: stable keys, one document."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, nothing: str) -> None:
    """Aligned columns, or the sentence ``nothing`` if there are no rows."""
    from rich import box  # noqa: PLC0415 - 60 ms that only tables pay for
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    lines = [[clean(cell) for cell in row] for row in rows]
    if not lines:
        print(nothing)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for line in lines:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in line))
    console = Console(highlight=False, markup=False, emoji=False)
    if console.is_terminal:
        console.print(table)
        return
    console = Console(highlight=False, markup=False, emoji=False, width=PLAIN_WIDTH)
    with console.capture() as drawn:
        console.print(table)
    for shown in drawn.get().splitlines():
        print(shown.rstrip())


def ago(instant: float | None, now: datetime) -> str:
    """How long ago a Unix time was: ``3 s``, ``5 min``, ``2 h``, ``4 d``."""
    if instant is None:
        return "-"
    return span((now - datetime.fromtimestamp(instant, UTC)).total_seconds())


def span(seconds: float) -> str:
    """A length of time in its largest fitting unit."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if abs(seconds) >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(count: float) -> str:
    """A number of bytes in its largest fitting binary unit."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:  # noqa: PLR2004 - binary units
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


_STYLES = {
    word: style
    for style, words in {
        "green": ("alive", "ready", "connected", "finished", "ok"),
        "yellow": ("suspect", "waiting", "fetching", "loading", "draining", "running", "starting"),
        "red": ("dead", "failed", "refused", "isolated", "PROBLEM"),
        "dim": ("left", "cancelled", "-"),
    }.items()
    for word in words
}
