"""Rows of benchmarks/results/inference.json: made, merged by part, printed."""

import json
import statistics
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "inference.json"
Row = dict[str, Any]


def row(
    name: str, values: Sequence[float], unit: str, goal: float | None = None, *,
    is_least: bool = False, peer: str = "", peer_value: float | None = None,
    of: Callable[[Sequence[float]], float] = statistics.median,
) -> Row:  # fmt: skip
    """``of`` makes one figure of all runs; ``is_least``: the goal is a least, not a most."""
    value = of(values)
    held = None if goal is None else value >= goal if is_least else value <= goal
    made = {
        "name": name, "value": round(value, 3), "unit": unit,
        "goal": None if goal is None else round(goal, 3), "held": held,
        "peer": peer, "peer_value": None if peer_value is None else round(peer_value, 3),
        "runs": [round(v, 3) for v in values],
    }  # fmt: skip
    return made | {"is_least": True} if is_least else made


def merge(parts: dict[str, list[Row]], order: Sequence[str]) -> None:
    """Put the rows of these parts into the results file, in place of what it had of them."""
    commit = _commit()
    former: list[Row] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    kept = {part: [one for one in former if one["part"] == part] for part in order}
    for part, rows in parts.items():
        kept[part] = [one | {"part": part, "commit": commit} for one in rows]
    RESULTS.write_text(json.dumps([one for part in order for one in kept[part]], indent=1) + "\n")


def line(one: Row) -> str:
    """For a person."""
    bound = ">=" if one.get("is_least") else "<="
    goal = (
        ""
        if one["goal"] is None
        else f"  goal {bound} {one['goal']} ({'held' if one['held'] else 'MISSED'})"
    )
    peer = "" if one["peer_value"] is None else f"  [{one['peer']}: {one['peer_value']}]"
    return f"{one['name']:<78} {one['value']!s:>9} {one['unit']}{goal}{peer}"


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT
    )  # fmt: skip
    return done.stdout.strip() or "unknown"
