"""Checks of what the sites' databases say about a job's rounds."""

from collections.abc import Sequence
from typing import Any

from agent.cli.demo.cluster import Failed

Json = dict[str, Any]


def counted_names(done: Json) -> set[str]:
    """Names of the sites whose updates a round counted."""
    return {str(one["name"]) for one in done["counted"]}


def check_history(rounds: Sequence[Json]) -> None:
    """Rounds follow without gap or repeat, epochs never fall, and no update is counted twice.

    Raises:
        Failed: naming the first round where that is not so.
    """
    seen: dict[str, int] = {}
    epoch = 0
    for number, done in enumerate(rounds, start=1):
        if done["round"] != number:
            raise Failed(f"round {number} is missing; the database has {done['round']} instead")
        if done["epoch"] < epoch:
            raise Failed(f"round {number} was committed in epoch {done['epoch']} after {epoch}")
        epoch = done["epoch"]
        sites = [one["site"] for one in done["counted"]]
        if len(set(sites)) != len(sites):
            raise Failed(f"round {number} counts a site twice")
        for one in done["counted"]:
            if (first := seen.setdefault(one["update"], number)) != number:
                raise Failed(f"an update of round {first} is counted again in round {number}")


def compare(one: Sequence[Json], two: Sequence[Json]) -> None:
    """Two databases hold the same rounds.

    Raises:
        Failed: naming the first difference.
    """
    for mine, theirs in zip(one, two, strict=True):
        for key in ("round", "epoch", "parameters", "contributions"):
            if mine[key] != theirs[key]:
                raise Failed(f"round {mine['round']}: the databases differ in {key}")
        updates = [{c["update"] for c in done["counted"]} for done in (mine, theirs)]
        if updates[0] != updates[1]:
            raise Failed(f"round {mine['round']}: the databases differ in the updates counted")
