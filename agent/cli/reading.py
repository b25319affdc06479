"""The verbs that show tables: members, peers, models, and where a request would go."""

import argparse
from typing import Any

from agent.cli.output import ago, clean, print_json, print_table, size
from agent.cli.site_files import admin_client
from agent.drivers.clock import wall


def members(asked: argparse.Namespace) -> int:
    """Print the sites of the cluster."""
    answer = admin_client(asked).get("/1/members")
    if asked.json:
        print_json(answer)
        return 0
    print_table(
        (
            "site",
            "name",
            "tier",
            "region",
            "law",
            "status",
            "rtt ms",
            "load",
            "endpoint",
            "serving",
        ),
        [
            (
                row["site"][:8],
                row["name"] + (" (here)" if row["self"] else ""),
                row["tier"],
                row["region"],
                row["jurisdiction"],
                row["status"],
                ("~" if row["rtt_is_estimated"] else "") + _number(row["rtt_ms"], 1),
                _number(row["load"], 2),
                row["endpoint"],
                row["serving"],
            )
            for row in answer["members"]
        ],
        nothing="No members.",
    )
    return 0


def peers(asked: argparse.Namespace) -> int:
    """Print how other sites were looked for, and with ``--why`` what came of it."""
    answer = admin_client(asked).get("/1/peers")
    if asked.json:
        print_json(answer)
        return 0
    now = wall()
    columns = ["source", "target", "name", "outcome", "cause", "last", "tries"]
    if asked.why:
        columns += ["in words", "try"]
    rows = []
    for row in answer["peers"]:
        cells = [
            row["source"],
            row["target"],
            row["name"] or (row["site"] or "")[:8],
            row["outcome"],
            row.get("cause", ""),
            ago(row["last_at"], now) + " ago" if row["last_at"] is not None else "never",
            row["attempts"],
        ]
        words = "" if row["reason"] == row.get("cause") else row["reason"]
        rows.append([*cells, words, row["mend"]] if asked.why else cells)
    print_table(
        columns,
        rows,
        nothing="No other site has been looked for: mDNS is off and there are no seeds"
        " (see [discovery] in the settings).",
    )
    return 0


def models(asked: argparse.Namespace) -> int:
    """Print the model versions and where each is ready."""
    answer = admin_client(asked).get("/1/models")
    if asked.json:
        print_json(answer)
        return 0
    print_table(
        ("model", "version", "default", "size", "residency", "digest", "sites"),
        [
            (
                row["name"],
                row["version"],
                row["deployed"],
                size(row["bytes"]),
                row["residency"] or "anywhere",
                row["digest"][:12],
                [_place(site) for site in row["sites"]],
            )
            for row in answer["models"]
        ],
        nothing="No models; `atoll model push` publishes one.",
    )
    return 0


def explain(asked: argparse.Namespace) -> int:
    """Print every candidate for a request, and what removed it."""
    answer = admin_client(asked).get(
        "/1/route/explain", model=asked.model, residency=",".join(asked.residency),
        application=asked.application,
    )  # fmt: skip
    if asked.json:
        print_json(answer)
        return 0
    request, held = (
        clean(answer[key]) if answer[key] else "anywhere"
        for key in ("request_residency", "model_residency")
    )
    print(f"{clean(answer['model'])}:{clean(answer['version'])}")
    print(f"may be answered: {request}; the model may be: {held}")
    if answer["policies"]:
        print(f"policies narrow it: {clean(answer['policies'])}")
    print(f"goes to: {clean(answer['chosen']) if answer['chosen'] else 'no site'}")
    print_table(
        (
            "site",
            "name",
            "law",
            "predicted ms",
            "rtt",
            "queue",
            "service",
            "penalty",
            "breaker",
            "removed by",
        ),
        [
            *(
                [*_who(row), *(_number(row[key], 2) for key in _PARTS), row["breaker"], row["held"]]
                for row in answer["candidates"]
            ),
            *(
                [*_who(row), *("-" for _ in _PARTS), "-", row["removed_by"]]
                for row in answer["removed"]
            ),
        ],
        nothing="There are no candidates.",
    )
    return 0


_PARTS = ("predicted_ms", "rtt_ms", "queue_ms", "service_ms", "penalty_ms")


def _who(row: dict[str, Any]) -> list[object]:
    here = " (here)" if row["is_local"] else ""
    return [row["site"][:8], f"{row['name']}{here}", row["jurisdiction"]]


def _place(site: dict[str, Any]) -> str:
    reason = f" ({site['reason']})" if site["reason"] else ""
    return f"{site['name']} {site['state']}{reason}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
