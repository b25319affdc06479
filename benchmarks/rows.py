"""One figure as benchmarks/results/*.json has it, and as a person reads it."""

import statistics
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]


def row(
    name: str, values: Sequence[float] | None, unit: str, goal: float | None = None, *,
    is_least: bool = False, peer: str = "", peer_value: float | None = None,
    of: Callable[[Sequence[float]], float] = statistics.median,
) -> Row:  # fmt: skip
    """``of`` makes one figure of all runs; no values: it was tried and never came about.

    ``is_least``: the goal is a least, not a most.
    """
    value = of(values) if values else None
    is_good = value is not None and (goal is None or (value >= goal if is_least else value <= goal))
    made = {
        "name": name, "value": None if value is None else round(value, 3), "unit": unit,
        "goal": None if goal is None else round(goal, 3), "held": None if goal is None else is_good,
        "peer": peer if peer_value is not None else "",
        "peer_value": None if peer_value is None else round(peer_value, 3),
        "runs": [round(one, 3) for one in values or ()],
    }  # fmt: skip
    return made | {"is_least": True} if is_least else made


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


def commit() -> str:
    """What is checked out."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT
    )  # fmt: skip
    return done.stdout.strip() or "unknown"
