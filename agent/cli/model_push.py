"""``atoll model push``: upload, sign, and wait until the model is ready where it is wanted."""

import argparse
import os
import stat
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from agent.catalog.rollout import is_rollout
from agent.catalog.written import Golden
from agent.cli.client import AdminClient
from agent.cli.output import clean, print_json, size, span
from agent.cli.rollout import continue_rollouts
from agent.cli.signing import load_signer, submit_bodies, unpack_body
from agent.cli.site_files import admin_client
from agent.cli.text_files import read_text, unreadable
from agent.foundation.errors import AtollError, NotFound, UsageError
from agent.foundation.ids import Digest
from agent.wire.documents import GOLDEN_CHARS_MAX, Deployment, ModelVersion, key_of
from agent.wire.limits import BLOB_BYTES_MAX

POLL_S = 0.2
"""Loading takes seconds; a person waits."""
SOURCE_CHARS_MAX = 256
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass(frozen=True, slots=True)
class Readiness:
    """Where a pushed model stands."""

    places: tuple[dict[str, Any], ...]
    """``sites`` of ``/1/models``."""
    missing: tuple[str, ...]
    """Names asked for at which the cluster does not (yet) expect it."""
    replicas: int = 0
    """It is enough if so many are ready, wherever; one that refuses is replaced by another."""

    @property
    def is_settled(self) -> bool:
        """Whether waiting longer is of no use: ready everywhere, or refused somewhere."""
        if self.replicas:
            ready = [place for place in self.places if place["state"] == "ready"]
            return len(ready) >= self.replicas
        if self.refused:
            return True
        is_ready = all(place["state"] == "ready" for place in self.places)
        return bool(self.places) and not self.missing and is_ready

    @property
    def refused(self) -> tuple[dict[str, Any], ...]:
        """Sites that will not serve it as it is."""
        if self.replicas:
            return ()
        return tuple(place for place in self.places if place["state"] in ("refused", "unloaded"))

    def __str__(self) -> str:
        """One line for a person."""
        parts = [f"{clean(place['name'])} {clean(place['state'])}" for place in self.places]
        return ", ".join([*parts, *(f"{name} not yet" for name in self.missing)]) or "nowhere yet"


def push(asked: argparse.Namespace) -> int:
    """Publish FILE as ``name:version`` and have it served."""
    with _opened(asked.file) as file:
        return _push(asked, file, os.fstat(file.fileno()).st_size)


def _push(asked: argparse.Namespace, file: BinaryIO, length: int) -> int:
    signer = load_signer(asked)
    client = admin_client(asked)
    sites = asked.sites
    if not (sites or is_selective(asked)):
        sites = (client.get("/1/status")["name"],)
    members = client.get("/1/members")["members"]
    golden = "" if asked.golden is None else _golden(asked.golden)
    absent = tuple(name for name in sites if name not in {row["name"] for row in members})
    stored = client.upload("/1/blobs", file, length)
    version = ModelVersion(
        name=asked.name,
        version=asked.version,
        manifest=Digest(bytes.fromhex(stored["digest"])),
        bytes=stored["bytes"],
        format="onnx",
        residency=asked.residency,
        source=asked.file.name[:SOURCE_CHARS_MAX],
        golden=golden,
    )
    deployment = Deployment(
        model=asked.name,
        version=asked.version,
        sites=sites,
        tiers=asked.tiers,
        regions=asked.regions,
        replicas=asked.replicas,
        jurisdictions=asked.jurisdictions,
        accelerator="gpu" if asked.gpu else "",
        memory_bytes_min=asked.memory_min,
        power_free_w_min=asked.power_min,
    )
    deployment = _in_waves(client, deployment)
    results = submit_bodies(client, signer, (version, deployment))
    if not asked.json:
        _say_published(asked, deployment, length)
    for name in absent:
        print(
            f"atoll: no site {name!r} is known; it serves the model once it joins", file=sys.stderr
        )
    expected = tuple(name for name in sites if name not in absent)
    if not sites:
        expected = _all_of(members, asked)
        if not expected:
            print("atoll: no living site may hold it yet", file=sys.stderr)
    if asked.no_wait or not expected or is_rollout(deployment):
        if asked.json:
            print_json({"digest": stored["digest"], "results": results})
        return 0
    if (
        asked.gpu or asked.memory_min or asked.power_min
    ):  # who has that, only the sites themselves know
        expected = ()
    return _wait(client, asked, expected, stored["digest"])


def _say_published(asked: argparse.Namespace, deployment: Deployment, length: int) -> None:
    where = ", ".join(deployment.sites) or "every allowed site"
    if asked.replicas:
        where = f"{asked.replicas} of the allowed sites"
    print(f"published {asked.name}:{asked.version} ({size(length)}) for {where}")
    if is_rollout(deployment):
        print(f"it comes in waves: atoll rollout status {asked.name} shows how far it is")


def _in_waves(client: AdminClient, wanted: Deployment) -> Deployment:
    """As the deployment that it replaces says, if that speaks of waves."""
    key = key_of(wanted)
    rows = client.get("/1/documents", kind=key.kind, name=key.name)["documents"]
    former = unpack_body(rows[0]["body"]) if rows else None
    if not isinstance(former, Deployment) or former.rollout is None:
        return wanted
    wanted = replace(wanted, rollout=replace(former.rollout, is_paused=False))
    settled = continue_rollouts(client, {key: wanted}, {key: former})[key]
    assert isinstance(settled, Deployment)
    return settled


def _golden(path: Path) -> str:
    text = read_text(path, GOLDEN_CHARS_MAX).strip()
    if why := Golden().problem(text):
        raise UsageError(f"{path} is no golden question", why=f"it {why}")
    return text


def is_selective(asked: argparse.Namespace) -> bool:
    """Whether the sites are chosen by what they are, not by name."""
    chosen = asked.tiers, asked.regions, asked.jurisdictions, asked.replicas, asked.gpu
    return any(map(bool, (asked.everywhere, asked.memory_min, asked.power_min, *chosen)))


def _opened(path: Path) -> BinaryIO:
    """The model's file, open.

    What is signed is what was named: no link is followed, and what is no plain file is not even opened
    (opening some devices does something, and a FIFO would wait for a writer).

    Raises:
        UsageError: it is no plain file of a possible size, or cannot be read.
    """
    try:
        if why := _why_no_file(path, path.lstat()):
            raise UsageError(f"{path} is not a model", why=why)
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        file = os.fdopen(os.open(path, flags), "rb")
    except OSError as error:
        raise unreadable(path, error) from None
    if why := _why_no_file(path, os.fstat(file.fileno())):  # another one by now
        file.close()
        raise UsageError(f"{path} is not a model", why=why)
    return file


def _why_no_file(path: Path, found: os.stat_result) -> str:
    if stat.S_ISLNK(found.st_mode):
        return f"it is a symbolic link; push the file itself: {path.readlink()}"
    for is_kind, kind in _KINDS:
        if is_kind(found.st_mode):
            return f"it is {kind}, and a model is a file"
    if not 0 < found.st_size <= BLOB_BYTES_MAX:
        return f"it has {found.st_size:,} bytes, and a model has 1 to {BLOB_BYTES_MAX:,}"
    return ""


def _all_of(members: list[dict[str, Any]], asked: argparse.Namespace) -> tuple[str, ...]:
    """The sites that serve a model deployed everywhere: those alive, where the label lets it go."""
    return tuple(
        row["name"]
        for row in members
        if row["status"] in ("alive", "draining")
        and all(
            not names or row[key] in names
            for key, names in (
                ("jurisdiction", asked.residency), ("jurisdiction", asked.jurisdictions),
                ("tier", asked.tiers), ("region", asked.regions),
            )
        )
    )  # fmt: skip


def _wait(
    client: AdminClient, asked: argparse.Namespace, expected: tuple[str, ...], digest: str
) -> int:
    before = time.monotonic()
    while True:
        answer = client.get("/1/models")
        if asked.replicas:
            state = readiness(answer, asked.name, asked.version, (), asked.replicas)
        else:
            state = readiness(answer, asked.name, asked.version, expected)
        took_s = time.monotonic() - before
        if state.is_settled or took_s > asked.timeout:
            break
        time.sleep(POLL_S)  # a person waits in front of this; nothing else does
    if asked.json:
        print_json({"digest": digest, "ready": state.is_settled, "sites": list(state.places)})
    if state.refused:
        first = state.refused[0]
        raise AtollError(
            f"{clean(first['name'])} refuses {asked.name}:{asked.version}",
            why=clean(first["reason"]),
            mend=f"there: atoll model load {asked.name}"
            if first["state"] == "unloaded"
            else "mend the model and push it under a new version",
        )
    if not state.is_settled:
        raise AtollError(
            f"{asked.name}:{asked.version} is not ready everywhere after {span(asked.timeout)}",
            why=str(state),
            mend="`atoll model list` shows it later; `atoll members` shows which sites are alive",
        )
    if not asked.json:
        print(f"ready after {took_s:.1f} s: {', '.join(clean(p['name']) for p in state.places)}")
    return 0


def readiness(
    answer: dict[str, Any], name: str, version: str, expected: tuple[str, ...], replicas: int = 0
) -> Readiness:
    """Where ``name:version`` stands, in an answer of ``/1/models``.

    Raises:
        NotFound: the answer lacks it, though it was just published.
    """
    for row in answer["models"]:
        if (row["name"], row["version"]) == (name, version):
            places = tuple(row["sites"])
            there = {place["name"] for place in places}
            missing = tuple(one for one in expected if one not in there)
            return Readiness(places, missing, replicas)
    raise NotFound(f"{name}:{version} is not in the catalog", why="it was published a moment ago")
