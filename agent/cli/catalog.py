"""The catalog from a file and back: ``apply``, ``diff``, ``get``, ``history``, ``rollback``."""

import argparse
import base64
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agent.catalog.written import DOCUMENTS_PER_FILE_MAX, changes, read, table_of, write
from agent.cli.client import AdminClient
from agent.cli.output import clean, print_json, print_table
from agent.cli.rollout import continue_rollouts
from agent.cli.signing import load_signer, submit_bodies, submit_packed, unpack_body
from agent.cli.site_files import admin_client
from agent.cli.text_files import read_text
from agent.foundation.errors import NotFound, UsageError
from agent.wire.documents import (
    Body,
    Deployment,
    Job,
    Key,
    ModelVersion,
    Policy,
    Stamp,
    Unknown,
    key_of,
)

DIFFERS = 3
"""Exit code of ``diff``: neither a failure (1) nor wrong usage (2)."""
FILE_BYTES_MAX = 1 << 20
"""A hundred times the largest useful file; refuses a device given by mistake."""


def apply(asked: argparse.Namespace) -> int:
    """Make the catalog say what the file says; what it says already is not signed again."""
    wanted = _read(asked.file)
    client = admin_client(asked)
    present = _present(client)
    _check_versions(wanted, present)
    wanted = continue_rollouts(client, wanted, present)
    differing = {key: body for key, body in wanted.items() if present.get(key) != body}
    if differing:
        submit_bodies(client, load_signer(asked), list(differing.values()))
    if asked.json:
        print_json({"changed": [{"kind": key.kind, "name": key.name} for key in differing]})
        return 0
    for key, body in wanted.items():
        if key in differing:
            _tell(key, present.get(key), body)
        else:
            print(f"{key.kind} {key.name} is unchanged")
    return 0


def diff(asked: argparse.Namespace) -> int:
    """Print what ``apply`` would change; ``DIFFERS`` if it would change anything."""
    wanted, client = _read(asked.file), admin_client(asked)
    present = _present(client)
    wanted = continue_rollouts(client, wanted, present)
    differing = {key: body for key, body in wanted.items() if present.get(key) != body}
    if asked.json:
        print_json(
            {
                "differs": [
                    {"kind": key.kind, "name": key.name, "changes": changes(present.get(key), body)}
                    for key, body in differing.items()
                ]
            }
        )
    else:
        for key, body in differing.items():
            _tell(key, present.get(key), body)
    return DIFFERS if differing else 0


def get(asked: argparse.Namespace) -> int:
    """Print documents as ``apply`` takes them."""
    rows = _documents(admin_client(asked), kind=asked.kind or "", name=asked.name or "")
    if asked.name and not rows:
        raise NotFound(f"there is no {asked.kind} {asked.name!r}", mend="atoll get shows all")
    if asked.json:
        print_json({"documents": [_described(row, body) for row, body in rows]})
        return 0
    texts = []
    for _, body in rows:
        text = "" if isinstance(body, Unknown) else write(body)
        if isinstance(body, Job):  # applied by nobody: submitted once
            text = "".join(f"# {line}\n" for line in text.splitlines())
        elif isinstance(body, Unknown):
            text = f"# {body.kind} {body.name}: made by a newer version of Atoll\n"
        texts.append(text)
    print("\n".join(texts) or "# The catalog is empty.\n", end="")
    return 0


def history(asked: argparse.Namespace) -> int:
    """Print what this site knows that a document has said, newest first."""
    rows = _history(admin_client(asked), asked.kind, asked.name)
    pairs = list(zip(rows, [*rows[1:], (None, None)], strict=True))
    if asked.json:
        print_json(
            {
                "history": [
                    {**_described(row, body), "changes": changes(former, body)}
                    for (row, body), (_, former) in pairs
                ]
            }
        )
        return 0
    print_table(
        ("stamp", "signed at", "by", "what changed"),
        [
            (
                _stamp(row),
                f"{datetime.fromtimestamp(row['wall_ms'] / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC",
                row["author"][:12],
                "; ".join(changes(former, body)) or "signed again",
            )
            for (row, body), (_, former) in pairs
        ],
        nothing="No history.",
    )
    return 0


def rollback(asked: argparse.Namespace) -> int:
    """Sign the content of a former document anew, so that it is the newest."""
    client = admin_client(asked)
    if asked.kind == "job":
        raise UsageError(
            "a job is not taken back",
            why="what it has trained stays",
            mend="atoll job cancel ends it",
        )
    (_, present), *former = _history(client, asked.kind, asked.name)
    if not former:
        raise NotFound(
            f"{asked.kind} {asked.name} has no former document here",
            mend="atoll history at another site may know one; atoll apply changes it",
        )
    row, found = former[0] if asked.to is None else _of_stamp(former, asked.to)
    key = Key(asked.kind, asked.name)
    if found == present:
        print(f"{key.kind} {key.name} is unchanged: it says that already")
        return 0
    if isinstance(found, Deployment) and found.rollout is not None and found.rollout.previous:
        # Back at once: its waves were those of that time, from a version older still.
        found = replace(found, rollout=replace(found.rollout, previous="", attempt=0))
        submit_bodies(client, load_signer(asked), [found])
    else:
        # Its bytes, not what this version understands of them: a newer one may know more fields.
        submit_packed(client, load_signer(asked), [base64.b64decode(row["body"])])
    _tell(key, present, found)
    return 0


# --- reading ------------------------------------------------------------------------------------------
def _read(path: Path) -> dict[Key, Body]:
    """The bodies that the file asks for.

    Raises:
        UsageError: it cannot be read, or asks for nothing or too much.
        ConfigError: with every problem and its line.
    """
    found = read(read_text(path, FILE_BYTES_MAX), str(path))
    if not 0 < len(found) <= DOCUMENTS_PER_FILE_MAX:
        raise UsageError(
            f"{path} has {len(found)} documents",
            why=f"1 to {DOCUMENTS_PER_FILE_MAX} can be changed together",
            mend='write [deployment.MODEL], [policy.NAME] and [model."NAME:VERSION"]; atoll get shows'
            " the form",
        )
    return found


def _check_versions(wanted: dict[Key, Body], present: dict[Key, Body]) -> None:
    """A deployment of a version that nobody has published, or keeps, would serve nothing, silently."""
    for body in wanted.values():
        if isinstance(body, Policy) and not (body.answer_in or body.needs_label):
            raise UsageError(
                f"policy {body.name} asks for nothing",
                mend='give it answer_in = ["DE"] or needs_label = true; is_active = false takes one back',
            )
        terms = body.rollout if isinstance(body, Deployment) else None
        if terms is not None and bool(terms.accuracy_min) != bool(terms.holdout):
            raise UsageError(
                f"the rollout of {key_of(body).name} has only one of accuracy_min and holdout",
                why="accuracy is judged on the data set that holdout names, where a site has bound it",
                mend="give both, or neither",
            )
        if isinstance(body, Deployment) and body.is_active:
            key = Key("model", f"{body.model}:{body.version}")
            version = wanted.get(key, present.get(key))
            if version is None:
                raise UsageError(
                    f"deployment {body.model} names {key.name}, which is not in the catalog",
                    mend="atoll model push publishes it; atoll model list shows what there is",
                )
            if isinstance(version, ModelVersion) and version.is_retired:
                raise UsageError(
                    f"deployment {body.model} names {key.name}, which is retired",
                    why="sites need not keep its bytes any more",
                    mend="atoll model push publishes it again; or apply it without is_retired, if "
                    "atoll blobs list shows that somebody still has it",
                )


def _documents(client: AdminClient, **query: str) -> list[tuple[dict[str, Any], Body]]:
    rows = client.get("/1/documents", **query)["documents"]
    return [(row, unpack_body(row["body"])) for row in rows]


def _present(client: AdminClient) -> dict[Key, Body]:
    return {Key(row["kind"], row["name"]): body for row, body in _documents(client)}


def _history(client: AdminClient, kind: str, name: str) -> list[tuple[dict[str, Any], Body]]:
    rows = client.get("/1/documents/history", kind=kind, name=name)["history"]
    return [(row, unpack_body(row["body"])) for row in rows]


def _of_stamp(
    former: Iterable[tuple[dict[str, Any], Body]], stamp: Stamp
) -> tuple[dict[str, Any], Body]:
    known = []
    for row, body in former:
        if (row["wall_ms"], row["count"]) == (stamp.wall_ms, stamp.count):
            return row, body
        known.append(_stamp(row))
    raise NotFound(
        f"no former document has the stamp {stamp.wall_ms}.{stamp.count}",
        why=f"known here: {', '.join(known)}",
    )


# --- telling --------------------------------------------------------------------------------------------
def _tell(key: Key, former: Body | None, body: Body) -> None:
    print(f"{key.kind} {clean(key.name)} {'is new' if former is None else 'changes'}")
    for line in changes(former, body):
        print(f"  {line}")


def _stamp(row: dict[str, Any]) -> str:
    return f"{row['wall_ms']}.{row['count']}"


def _described(row: dict[str, Any], body: Body) -> dict[str, Any]:
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in table_of(body).items()}
    return {
        "kind": row["kind"], "name": row["name"], "stamp": _stamp(row), "author": row["author"],
        "content": plain,
    }  # fmt: skip
