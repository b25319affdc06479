"""The audit log: ``verify``, ``report``, ``export``."""

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from agent.cli.client import AdminClient
from agent.cli.output import clean, print_json, print_table, size
from agent.cli.site_files import admin_client, settings
from agent.cli.text_files import unreadable
from agent.foundation.errors import AtollError, Refused, UsageError

FILE_MODE = 0o600
"""An audit log says who asked whom for what."""


def verify(asked: argparse.Namespace) -> int:
    """Check every entry, and every end that another site has witnessed."""
    if asked.file is not None:
        return _verify_file(asked)
    found = admin_client(asked).get("/1/audit/verify")
    if asked.json:
        print_json(found)
    else:
        print(f"entries {found['first']} to {found['last']} of this site's audit log")
        for one in found["witnesses"]:
            _tell_witness(one["name"], one["sequence"], one["seen_at"])
        for text in found["alarms"]:
            print(f"alarm: {clean(text)}")
    return _verdict(found["findings"], len(found["witnesses"]), as_json=asked.json)


def _verify_file(asked: argparse.Namespace) -> int:
    # These import cryptography, which other verbs need not wait for.
    from agent.audit.proof import prove  # noqa: PLC0415
    from agent.cli.signing import own_identity  # noqa: PLC0415

    cluster = asked.cluster
    if cluster is None:
        try:
            cluster = own_identity(settings(asked).identity_dir).claims.cluster
        except AtollError:
            raise UsageError(
                "whose log should it be?",
                why="this machine is no site that knows its cluster's id",
                mend="name it with --cluster; atoll status shows it at any site",
            ) from None
    try:
        with asked.file.open(encoding="utf-8", errors="replace") as file:
            proven = prove(_lines(file), cluster)
    except OSError as error:
        raise unreadable(asked.file, error) from None
    if asked.json:
        print_json(
            {
                "site": proven.site.hex(), "name": proven.name, "first": proven.first,
                "last": proven.last, "findings": list(proven.findings),
                "witnesses": [
                    {"name": one.name, "jurisdiction": one.jurisdiction,
                     "sequence": one.sequence, "seen_at": one.seen_ms / 1000}
                    for one in proven.witnesses
                ],
            }
        )  # fmt: skip
    else:
        print(f"entries {proven.first} to {proven.last} of the audit log of {clean(proven.name)}")
        for one in proven.witnesses:
            name = f"{one.name} ({one.jurisdiction})"
            _tell_witness(name, one.sequence, one.seen_ms / 1000)
    return _verdict(list(proven.findings), len(proven.witnesses), as_json=asked.json)


def _lines(file: TextIO) -> Iterator[str]:
    from agent.audit.proof import LINE_BYTES_MAX  # noqa: PLC0415 - as above

    while line := file.readline(LINE_BYTES_MAX + 1):
        yield line


def _tell_witness(name: str, sequence: int, seen_at: float) -> None:
    at = f"{datetime.fromtimestamp(seen_at, UTC):%Y-%m-%d %H:%M:%S} UTC"
    print(f"  {clean(name)} witnessed its end at entry {sequence}, {at}")


def _verdict(findings: list[str], witnesses: int, *, as_json: bool) -> int:
    if findings:
        raise Refused("the audit log is not sound", why="\n".join(map(clean, findings)))
    if not as_json:
        by = "" if witnesses else "; nobody has witnessed where it ends, so entries may lack there"
        print(f"sound: nothing was changed, removed or added{by}")
    return 0


def report(asked: argparse.Namespace) -> int:
    """What left this site: by kind, label and receiver; 1 if anything went where its label forbids."""
    query = {"jurisdiction": asked.jurisdiction or ""}
    for name in ("since", "until"):
        if (day := getattr(asked, name)) is not None:
            query[name] = str(day.timestamp())
    rows: list[dict[str, Any]] = admin_client(asked).get("/1/audit/report", **query)["rows"]
    columns = (
        "kind",
        "label",
        "receiver",
        "jurisdiction",
        "entries",
        "bytes",
        "answered",
        "bytes back",
        "allowed",
    )
    plain = [
        (row["kind"], ",".join(row["label"]) or "anywhere", row["name"], row["jurisdiction"],
         row["entries"], row["bytes"], row["answered"] if row["kind"] == "forward" else "-",
         row["bytes_back"], "yes" if row["is_within"] else "NO")
        for row in rows
    ]  # fmt: skip
    if asked.json:
        print_json({"rows": rows})
    elif asked.csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(columns)
        writer.writerows(plain)
    else:
        shown = [(*one[:5], size(one[5]), one[6], size(one[7]), one[8]) for one in plain]
        print_table(columns, shown, nothing="Nothing with that label has left this site.")
    return 0 if all(row["is_within"] for row in rows) else 1


def export(asked: argparse.Namespace) -> int:
    """Write the log with all that proves it to a new file."""
    from agent.audit.proof import head_line  # noqa: PLC0415 - imports cryptography

    client = admin_client(asked)
    cluster = bytes.fromhex(client.get("/1/status")["cluster"])
    proof = client.get("/1/audit/proof")
    count = 0
    try:
        with _new(asked.file) as file:
            file.write(head_line(cluster, proof) + "\n")
            for row in _rows(client):
                file.write(json.dumps(row) + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UsageError(f"{asked.file} cannot be written", why=error.strerror or "") from None
    if asked.json:
        print_json({"file": str(asked.file), "entries": count})
    else:
        print(
            f"{count} entries and the receipts of {len(proof['receipts'])} witnesses in {asked.file};"
            f" verify them anywhere: atoll audit verify {asked.file} --cluster {cluster.hex()}"
        )
    return 0


def _new(path: Path) -> TextIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE), "w")


def _rows(client: AdminClient) -> Iterator[dict[str, Any]]:
    after = 0
    while rows := client.get("/1/audit/entries", after=str(after))["rows"]:
        yield from rows
        after = rows[-1]["sequence"]
