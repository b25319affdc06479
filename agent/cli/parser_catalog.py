"""What can be typed about the catalog as a whole: files of documents, and what documents said before."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cli.parser import Verbs
from agent.cli.parser import _admin_key as admin_key
from agent.cli.parser import _group as group
from agent.cli.parser import _verb as verb

if TYPE_CHECKING:
    from agent.wire.documents import Stamp

KINDS = ("model", "deployment", "job", "policy", "scope")
"""As ``wire.documents.KINDS``; a test compares the two."""
_STAMP = re.compile(r"(\d{1,16})\.(\d{1,9})")


def stamp(text: str) -> "Stamp":
    """A document's stamp as ``atoll history`` shows it."""
    from agent.wire.documents import Stamp  # noqa: PLC0415 - other verbs need not wait for it

    match = _STAMP.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a stamp; atoll history shows them")
    return Stamp(int(match[1]), int(match[2]))


def add(verbs: Verbs) -> None:
    """The verbs of this module."""
    apply = verb(verbs, "apply", "catalog:apply", "Make the catalog say what a file says.")
    apply.add_argument("file", type=Path, metavar="FILE.toml", help="- reads stdin")
    admin_key(apply)
    diff = verb(verbs, "diff", "catalog:diff", "What apply would change; exit code 3 if anything.")
    diff.add_argument("file", type=Path, metavar="FILE.toml", help="- reads stdin")
    get = verb(verbs, "get", "catalog:get", "Documents of the catalog, as apply takes them.")
    get.add_argument(
        "kind",
        nargs="?",
        choices=KINDS,
        metavar="KIND",
        help="model, deployment, job, policy or scope",
    )
    get.add_argument("name", nargs="?", metavar="NAME")
    history = verb(
        verbs, "history", "catalog:history", "What a document has said, and who signed that."
    )
    _document(history)
    rollback = verb(
        verbs, "rollback", "catalog:rollback", "Make a document say again what it said before."
    )
    _document(rollback)
    rollback.add_argument(
        "--to", type=stamp, metavar="STAMP", help="of atoll history (default: the one before)"
    )
    admin_key(rollback)
    parts = group(verbs, "rollout", "A new version in waves: how far it is; pause, resume.")
    status = verb(parts, "status", "rollout:status", "Waves, what each site tells, and gates.")
    status.add_argument("model", nargs="?", metavar="MODEL", help="(default: all)")
    pause = verb(parts, "pause", "rollout:pause", "Let no further site begin.")
    pause.add_argument("model", metavar="MODEL")
    admin_key(pause)
    resume = verb(parts, "resume", "rollout:resume", "Go on after a pause.")
    resume.add_argument("model", metavar="MODEL")
    resume.add_argument(
        "--again", action="store_true", help="after a failure: from the first wave, once more"
    )
    admin_key(resume)


def _document(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "kind", choices=KINDS, metavar="KIND", help="model, deployment, job, policy or scope"
    )
    parser.add_argument("name", metavar="NAME")
