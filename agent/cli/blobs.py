"""What a site keeps: its blobs, and versions of models that nobody will want again."""

import argparse
from typing import Any

from agent.cli.client import AdminClient
from agent.cli.output import clean, print_json, print_table, size, span
from agent.cli.signing import load_signer, submit_bodies, unpack_body
from agent.cli.site_files import admin_client
from agent.foundation.errors import NotFound, UsageError
from agent.foundation.ids import Digest
from agent.wire.documents import Deployment, ModelVersion

DIGEST_CHARS_SHOWN = 16
NAMES_SHOWN_MAX = 4
"""Of one blob; ``--json`` has all."""


def show(asked: argparse.Namespace) -> int:
    """Print every blob that is here, why it is kept, and how much room there is."""
    answer = admin_client(asked).get("/1/blobs")
    if asked.json:
        print_json(answer)
        return 0
    rows = sorted(answer["blobs"], key=lambda row: -row["bytes"])
    print_table(
        ("digest", "size", "state", "is", "why", "residency"),
        [
            (
                row["digest"][:DIGEST_CHARS_SHOWN], size(row["bytes"]), row["state"],
                row["standing"], _why(row), row["residency"],
            )
            for row in rows
        ],
        nothing="No blobs here.",
    )  # fmt: skip
    bound = f" of {size(answer['bytes_max'])}" if answer["bytes_max"] else ""
    print(
        f"{len(rows)} blobs take {size(answer['used_bytes'])}{bound}; {size(answer['free_bytes'])} of the"
        f" disk are free, {size(answer['reserve_bytes'])} stay in reserve"
    )
    return 0


def collect(asked: argparse.Namespace) -> int:
    """Have what nothing names go now."""
    removed = admin_client(asked).post("/1/blobs/collect", {})["removed"]
    if asked.json:
        print_json({"removed": removed})
    elif removed:
        print(f"{len(removed)} blobs go: {', '.join(one[:DIGEST_CHARS_SHOWN] for one in removed)}")
    else:
        print("nothing goes: something names every blob that is here")
    return 0


def retire(asked: argparse.Namespace) -> int:
    """Sign that nobody will want a version of a model again."""
    client = admin_client(asked)
    name, _, number = asked.model.partition(":")
    version = _version(client, name, number)
    if version.is_retired:
        print(f"{asked.model} is retired already")
        return 0
    _refuse_if_deployed(client, name, number)
    retired = ModelVersion(
        version.name, version.version, version.manifest, version.bytes, version.format,
        version.residency, version.source, version.golden, is_retired=True,
    )  # fmt: skip
    submit_bodies(client, load_signer(asked), [retired])
    if asked.json:
        print_json({"name": name, "version": number, "is_retired": True})
    else:
        print(f"{asked.model} is retired: sites that do not serve it let its bytes go")
    return 0


def _why(row: dict[str, Any]) -> str:
    names = [clean(name) for name in row["names"]]
    more = [f"and {len(names) - NAMES_SHOWN_MAX} more"] if len(names) > NAMES_SHOWN_MAX else []
    told = "; ".join([*names[:NAMES_SHOWN_MAX], *more]) or "nothing names it"
    return told if row["goes_in_s"] is None else f"{told}; goes in {span(row['goes_in_s'])}"


def _version(client: AdminClient, name: str, number: str) -> ModelVersion:
    """As the catalog has it, or as a job has made it."""
    for row in client.get("/1/documents", kind="model", name=f"{name}:{number}")["documents"]:
        body = unpack_body(row["body"])
        if isinstance(body, ModelVersion):
            return body
    for row in client.get("/1/models")["models"]:
        if (row["name"], row["version"]) == (name, number):
            return ModelVersion(
                name, number, Digest(bytes.fromhex(row["digest"])), row["bytes"], "onnx",
                tuple(row["residency"]), row["source"],
            )  # fmt: skip
    raise NotFound(f"there is no model {name}:{number}", mend="see atoll model list")


def _refuse_if_deployed(client: AdminClient, name: str, number: str) -> None:
    for row in client.get("/1/documents", kind="deployment", name=name)["documents"]:
        body = unpack_body(row["body"])
        if not isinstance(body, Deployment) or not body.is_active:
            continue
        previous = body.rollout.previous if body.rollout is not None else ""
        if number in (body.version, previous):
            raise UsageError(
                f"{name}:{number} is deployed"
                + (" until its successor has proved itself" if number == previous else ""),
                mend=f"deploy another version of {name} first, or withdraw the deployment: apply "
                "is_active = false",
            )
    deployed = [
        one for one in client.get("/1/models")["models"] if one["name"] == name and one["deployed"]
    ]
    if any(one["version"] == number for one in deployed):
        raise UsageError(
            f"{name}:{number} is what answers for {name}",
            why="it is the newest that a job has made",
            mend=f"deploy another version of {name} first",
        )
