"""What became of a job's rounds, read from every site's own database; shares nothing with what made them."""

import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from daemon_cluster import Daemon

Row = dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """One site's rows of one job."""

    site: str
    identity: str
    rounds: list[Row]
    updates: dict[int, Row]


def evidence(site: Daemon, identity: str, job: str) -> Evidence:
    """Read when the site has stopped: while it runs, nobody else opens its database."""
    with contextlib.closing(sqlite3.connect(site.state_dir / "atoll.db")) as database:
        database.row_factory = sqlite3.Row
        rounds = database.execute("SELECT * FROM rounds WHERE job = ? ORDER BY round", [job])
        updates = database.execute("SELECT * FROM updates WHERE job = ?", [job])
        return Evidence(
            site.name, identity, [dict(row) for row in rounds],
            {row["round"]: dict(row) for row in updates},
        )  # fmt: skip


def problems(sites: Sequence[Evidence], rounds: int) -> list[str]:
    """Every broken rule, as sentences: gaps, repeats, stale commits, updates lost or counted twice."""
    found: list[str] = []
    for one in sites:
        numbers = [row["round"] for row in one.rounds]
        if numbers != list(range(1, rounds + 1)):
            found.append(f"{one.site} has rounds {numbers} of {rounds}")
    if found:
        return found
    first = sites[0]
    for one in sites[1:]:
        found += [
            f"{one.site} has another round {here['round']} than {first.site}"
            for here, there in zip(one.rounds, first.rounds, strict=True)
            if any(
                here[key] != there[key]
                for key in ("contributions", "parameters", "epoch", "counted")
            )
        ]
    return [*found, *_stale(first.rounds), *_counted(sites, first.rounds)]


def _stale(rounds: list[Row]) -> Iterator[str]:
    """No round is of an older epoch than the one before it, and an epoch has one aggregator."""
    by_epoch: dict[int, bytes] = {}
    last = 0
    for row in rounds:
        if row["epoch"] < last:
            yield f"round {row['round']} is of epoch {row['epoch']}, after one of epoch {last}"
        last = max(last, row["epoch"])
        if by_epoch.setdefault(row["epoch"], row["aggregator"]) != row["aggregator"]:
            yield f"epoch {row['epoch']} has two aggregators"


def _counted(sites: Sequence[Evidence], rounds: list[Row]) -> Iterator[str]:
    counted = {row["round"]: json.loads(row["counted"]) for row in rounds}
    times = Counter(one["update"] for entries in counted.values() for one in entries)
    for update, number in times.items():
        if number > 1:
            yield f"update {update[:12]} was counted {number} times"
    for site in sites:
        for number, entries in counted.items():
            mine = [one["update"] for one in entries if one["site"] == site.identity]
            row = site.updates.get(number)
            if len(mine) > 1:
                yield f"round {number} counts {site.site} twice"
            elif mine and (row is None or row["digest"].hex() != mine[0]):
                yield f"round {number} counts of {site.site} what it has not made"
            elif mine and row is not None and row["state"] != "counted":
                yield f"{site.site} takes its update of round {number} for {row['state']}"
            elif row is not None and row["state"] == "counted" and not mine:
                yield f"{site.site} takes its update of round {number} for counted: it is lost"
            elif row is not None and row["state"] == "open":
                yield f"{site.site} still offers its update of round {number}"
