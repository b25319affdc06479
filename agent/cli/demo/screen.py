"""What the demo prints: a story with numbered steps, live where there is a terminal."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

Json = dict[str, Any]
STATUS_COLOUR = {"alive": "green", "suspect": "yellow", "dead": "red"}


class Screen:
    """Standard output, coloured on a terminal and plain in a pipe."""

    def __init__(self) -> None:
        """Find out what standard output is."""
        wide = None if Console().is_terminal else 110
        self.console = Console(highlight=False, width=wide)
        self._step = 0

    def step(self, title: str) -> None:
        """Begin the next step."""
        self._step += 1
        self.console.print(f"\n[bold]{self._step}. {title}[/bold]")

    def say(self, text: str) -> None:
        """A line of the story."""
        self.console.print(f"   {text}")

    def proven(self, text: str) -> None:
        """A claim that was just checked."""
        self.console.print(f"   [green]✓[/green] {text}")

    def command(self, text: str) -> None:
        """A command as the user would type it."""
        self.console.print(f"   [dim]$ {text}[/dim]", soft_wrap=True)

    def failed(self, what: str, folder: Path | None) -> None:
        """The end that nobody wants."""
        self.console.print(f"\n[bold red]The demo failed:[/bold red] {what}", soft_wrap=True)
        if folder is not None and folder.exists():
            self.console.print(f"State and logs of the sites are in {folder}", soft_wrap=True)

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = ""
    ) -> None:
        """A table of the story."""
        self.console.print(_table(columns, rows, title))

    @contextmanager
    def live_members(self) -> Iterator["MembersView"]:
        """A table of members that follows the mesh; printed once at the end without a terminal."""
        view = MembersView(self.console)
        with Live(
            view.table([]), console=self.console, refresh_per_second=8, transient=True
        ) as live:
            view.live = live
            yield view
        self.console.print(view.table(view.rows))

    @contextmanager
    def progress(self, rounds: int) -> Iterator["RoundsView"]:
        """A progress bar over rounds; a line a round without a terminal."""
        bar = Progress(
            TextColumn("   {task.description}"), BarColumn(24),
            TextColumn("round {task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[detail]}"), TimeElapsedColumn(),
            console=self.console, transient=False, disable=not self.console.is_terminal,
        )  # fmt: skip
        with bar:
            task = bar.add_task("training", total=rounds, detail="")
            yield RoundsView(self, bar, task)


class MembersView:
    """Members as one site sees them."""

    def __init__(self, console: Console) -> None:
        """``live`` is set while the table is on the screen."""
        self.console, self.rows = console, list[Json]()
        self.live: Live | None = None

    def show(self, rows: list[Json]) -> None:
        """The newest view."""
        self.rows = rows
        if self.live is not None:
            self.live.update(self.table(rows))

    def table(self, rows: list[Json]) -> Table:
        """The table of these members."""
        cells = [
            (
                row["name"], row["tier"], row["region"], row["jurisdiction"],
                f"[{STATUS_COLOUR.get(row['status'], 'white')}]{row['status']}[/]",
                "here" if row["self"] else "-" if row["rtt_ms"] is None else f"{row['rtt_ms']:.1f}",
                f"{row['load']:.2f}", ", ".join(row["serving"]) or "-",
            )
            for row in rows
        ]  # fmt: skip
        columns = ("site", "tier", "region", "law", "status", "rtt ms", "load", "serves")
        return _table(columns, cells, "")


class RoundsView:
    """Training as it goes."""

    def __init__(self, screen: Screen, bar: Progress, task: Any) -> None:
        """Drawn on ``bar`` where there is a terminal."""
        self._screen, self._bar, self._task = screen, bar, task
        self._last = -1

    def show(self, job: Json) -> None:
        """The newest state of the job."""
        detail = f"aggregator {job['aggregator'] or '-'}, epoch {job['epoch']}"
        done = job["rounds_done"]
        accuracy = next((r["accuracy"] for r in reversed(done) if r["accuracy"] is not None), None)
        if accuracy is not None:
            detail += f", accuracy {accuracy:.3f}"
        self._bar.update(self._task, completed=job["round"], detail=detail)
        if self._bar.disable and job["round"] != self._last:
            self._screen.say(f"round {job['round']}/{job['rounds']}  {detail}")
        self._last = job["round"]


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str) -> Table:
    table = Table(title=title or None, title_justify="left", padding=(0, 1), pad_edge=True)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    return table
