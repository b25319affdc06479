"""Renews the figures in docs/status.md from benchmarks/results/*.json.

Only the lines between the two markers are replaced; the words around them are written by hand.
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STATUS = ROOT / "docs" / "status.md"
BEGIN, END = "<!-- figures: made by benchmarks/status.py -->", "<!-- end of figures -->"

RUNS_TOLD_MAX = 9
"""More than these are told by their number, the least and the greatest; the results file has all."""


def main() -> int:
    """Rewrite the figures; 0 if that was possible."""
    text = STATUS.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    parts = [_area(path) for path in sorted((ROOT / "benchmarks" / "results").glob("*.json"))]
    STATUS.write_text(f"{before}{BEGIN}\n\n{''.join(parts)}{END}{after}")
    return 0


def _area(path: Path) -> str:
    rows = json.loads(path.read_text())
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows)) or "?"
    lines = [
        f"### {path.stem} (commit {commits}; `make bench-{path.stem}`)",
        "",
        "| quantity | measured | all runs | goal | beside |",
        "|---|---|---|---|---|",
        *(_line(row) for row in rows),
        *_plots(rows),
    ]
    return "\n".join(lines) + "\n\n"


def _plots(rows: list[dict[str, Any]]) -> list[str]:
    """Rows that name a plot, its series and their place in it: one chart for each plot, a line for each series."""
    lines: list[str] = []
    for title in dict.fromkeys(row["plot"] for row in rows if "plot" in row):
        points = [row for row in rows if row.get("plot") == title]
        xs = sorted({point["x"] for point in points})
        most = max(point["value"] for point in points)
        lines += [
            "",
            f"Lines, from the lowest on the right: {_order(points, xs[-1])}.",
            "",
            "```mermaid",
            "xychart-beta",
        ]
        lines += [f'  title "{title}"', f"  x-axis {json.dumps([str(x) for x in xs])}"]
        lines += [f"  y-axis 0 --> {most * 1.05:.2f}"]
        for series in dict.fromkeys(point["series"] for point in points):
            known = {p["x"]: p["value"] for p in points if p["series"] == series}
            # A line has a point everywhere: before its first, it stands where that is.
            values = [known.get(x, known[min(known)]) for x in xs]
            lines.append(f"  line {json.dumps(values)}")
        lines.append("```")
    return lines


def _order(points: list[dict[str, Any]], x: int) -> str:
    last = sorted((p for p in points if p["x"] == x), key=lambda point: point["value"])
    return ", ".join(f"{point['series']} ({point['value']} at {x})" for point in last)


def _line(row: dict[str, Any]) -> str:
    goal = (
        ""
        if row["goal"] is None
        else f"{'>=' if row.get('is_least') else '<='} {row['goal']} {row['unit']}: "
        f"{'held' if row['held'] else '**missed**'}"
    )
    peer = "" if row["peer_value"] is None else f"{row['peer']}: {row['peer_value']} {row['unit']}"
    runs = row["runs"]
    told = (
        f"{len(runs)}: {min(runs)} to {max(runs)}"
        if len(runs) > RUNS_TOLD_MAX
        else ", ".join(map(str, runs))
    )
    return f"| {row['name']} | {row['value']} {row['unit']} | {told} | {goal} | {peer} |"


if __name__ == "__main__":
    sys.exit(main())
