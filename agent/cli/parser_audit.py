"""What can be typed about the audit log."""

import argparse
import re
from datetime import UTC, datetime
from pathlib import Path

from agent.cli.parser import Verbs, label
from agent.cli.parser import _group as group
from agent.cli.parser import _verb as verb


def moment(text: str) -> datetime:
    """A day, or a time of it, in UTC."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a date such as 2026-11-26 or 2026-11-26T17:00"
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def cluster(text: str) -> bytes:
    """A cluster's id."""
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a cluster's id: 64 hexadecimal digits")
    return bytes.fromhex(text)


def add(verbs: Verbs) -> None:
    """The verbs of this module."""
    audit = group(verbs, "audit", "What left this site, and the proof of it.")
    check = verb(
        audit, "verify", "audit:verify",
        "Check that nothing was changed, removed or added, also by what other sites have witnessed.",
    )  # fmt: skip
    check.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help="an export (default: this site's log)"
    )
    check.add_argument(
        "--cluster", type=cluster, metavar="ID", help="of the export (default: this site's)"
    )
    told = verb(
        audit, "report", "audit:report",
        "What left, by label and receiver; exit code 1 if any went where its label forbids.",
    )  # fmt: skip
    told.add_argument(
        "--jurisdiction", type=label, metavar="DE", help="only what is labelled with it"
    )
    told.add_argument("--since", type=moment, metavar="DATE", help="from this moment on (UTC)")
    told.add_argument("--until", type=moment, metavar="DATE", help="up to this moment (UTC)")
    told.add_argument("--csv", action="store_true", help="comma-separated values")
    export = verb(
        audit, "export", "audit:export",
        "Write the log with certificates and witnesses to a new file that proves itself anywhere.",
    )  # fmt: skip
    export.add_argument("file", type=Path, metavar="FILE")
