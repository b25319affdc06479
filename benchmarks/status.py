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
    ]
    return "\n".join(lines) + "\n\n"


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
