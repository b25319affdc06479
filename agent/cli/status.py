"""``atoll status``: one screen, at most 24 lines, quick enough to watch."""

import argparse
import itertools
from datetime import UTC, datetime
from typing import Any

from agent.cli.output import clean, print_json, size, span
from agent.cli.site_files import admin_client

STATES = ("alive", "suspect", "dead", "left")
LINES_PER_LIST_MAX = 3
"""Processes, workers, models, jobs: with six other lines, reasons and findings they fill a screen of 24."""


def status(asked: argparse.Namespace) -> int:
    """Print how this site is."""
    answer = admin_client(asked).get("/1/status")
    if asked.json:
        print_json(answer)
    else:
        print("\n".join(lines(answer)))
    return 0


def lines(answer: dict[str, Any]) -> list[str]:
    """The screen."""
    members = answer["members"]
    hardware = answer["hardware"]
    provided = clean(hardware["providers"])
    place = ", ".join(clean(answer[key]) for key in ("region", "tier", "jurisdiction"))
    counts = ", ".join(f"{members[state]} {state}" for state in STATES)
    age = span(answer["uptime_s"])
    found = [
        f"{clean(answer['name'])} is {clean(answer['state'])} (up {age}, Atoll {clean(answer['version'])})",
        *(f"  because  {clean(reason)}" for reason in answer["reasons"][:LINES_PER_LIST_MAX]),
        f"site      {clean(answer['site'][:16])}  {place}",
        f"cluster   {clean(answer['cluster'][:16])}  {counts}",
        f"http      {clean(answer['http'])}",
        f"identity  {_certificate(answer['certificate'])}",
        f"hardware  {clean(hardware['profile'])} ({clean(hardware['why'])}); {provided}",
    ]
    found += _list(
        "process",
        [
            f"{clean(row['name'])} {clean(row['state'])}"
            f"  pid {clean(row['pid'])}, {size(row['rss_bytes'] or 0)}, {row['restarts']} restarts"
            for row in answer["processes"]
            if "worker" not in row
        ],
    )
    found += _list("worker", [_worker(row) for row in answer["processes"] if "worker" in row])
    found += _list(
        "model",
        [
            f"{clean(row['name'])}:{clean(row['version'])} {clean(row['state'])}"
            + (f"  {clean(row['reason'])}" if row.get("reason") else "")
            for row in answer["models"]
        ],
    )
    found += _list(
        "job",
        [
            f"{clean(row['id'])} {clean(row['state'])}  round {row['round']}/{row['rounds']},"
            f" epoch {row['epoch']}, aggregator {clean(row['aggregator'])}"
            for row in answer["jobs"]
        ],
    )
    found += [f"store     {clean(finding)}" for finding in answer["store"][:LINES_PER_LIST_MAX]]
    return found


def _certificate(certificate: dict[str, Any]) -> str:
    until = (
        f"{_shown(certificate['expires_at'])}, renewed from {_shown(certificate['renew_at'])} on"
    )
    by = f", last by {clean(certificate['renewed_by'])}" if certificate["renewed_by"] else ""
    return f"certificate until {until}{by}"


def _worker(row: dict[str, Any]) -> str:
    """A model worker, its process, and what it runs on."""
    device = f"GPU {clean(row['device'])}" if row["device"] else ""
    loading = f"{clean(row['loading'])} being loaded" if row["loading"] else ""
    more = [loading, device, *(clean(one) for one in row["providers"]), clean(row["sandbox"])]
    return (
        f"{clean(row['worker'])} {clean(row['state'])}  pid {clean(row['pid'])},"
        f" {size(row['rss_bytes'] or 0)}, {clean(row['restarts'])} restarts, {clean(row['models'])} models"
        + "".join(f"; {text}" for text in more if text)
    )


def _shown(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"


def _list(title: str, rows: list[str]) -> list[str]:
    shown = rows if len(rows) <= LINES_PER_LIST_MAX else rows[: LINES_PER_LIST_MAX - 1]
    titles = itertools.chain((title,), itertools.repeat(""))
    found = [f"{head:8}  {row}" for head, row in zip(titles, shown, strict=False)]
    if len(shown) < len(rows):
        found.append(f"          and {len(rows) - len(shown)} more (--json shows all)")
    return found
