"""Reading back what is durable, before the first packet is sent.

The boot epoch is raised and committed first: nonces, sequences and proposer names derive from it and
must never be used twice.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

from agent.catalog.history import TABLE as FORMER
from agent.catalog.rollout import Standing
from agent.config.rules import split_host_port
from agent.drivers.blobs import BlobStore
from agent.drivers.clock import wall
from agent.drivers.sqlite_library import Database
from agent.drivers.store import Store
from agent.drivers.store_boot import FINDING
from agent.federation import burial
from agent.federation.history import read_back
from agent.federation.participant import Update
from agent.federation.restored import Restored
from agent.federation.value import Contributions, JobValue
from agent.foundation.errors import AtollError, Malformed
from agent.foundation.ids import Digest, JobId, SiteId
from agent.foundation.writes import Delete, Put, Write
from agent.membership.coordinates import Coordinate
from agent.site.duplicates import COPIED, DUPLICATE, MEND
from agent.site.overrides import Override
from agent.site.stored import COORDINATE_KEY, VOTING_BARRED_KEY, Stored
from agent.wire.documents import RANGES_MAX, Document, Key, Stamp
from agent.wire.mesh import Cut, Introduction
from agent.wire.records import Gate, Passport, Signed, Stage
from agent.wire.schema import unpack

Row = dict[str, Any]
T = TypeVar("T")
BOOT_EPOCH = "boot_epoch"
JOIN_SEEDS = "token_seeds"
BOOT_EPOCH_JUMP = 1 << 16
"""After a damaged database: far beyond any epoch that may have been used and forgotten."""

CUT_BYTES_MAX = 64 * RANGES_MAX
"""The blob that names an update's parts: 34 bytes for each."""

_log = logging.getLogger("atoll.daemon")


async def raise_boot_epoch(store: Store, me: SiteId) -> int:
    """A boot epoch that was never used before, durable; below 2**32.

    After a damaged database the same transaction bars ``me`` from voting for ever: which promises it
    has forgotten nobody knows. A new identity in the same folder may vote.
    """

    def present(database: Database) -> int:
        rows = list(database.query("SELECT value FROM meta WHERE key = ?", [BOOT_EPOCH]))
        return int(rows[0]["value"]) if rows else 0

    last = await store.read(present)
    jump = BOOT_EPOCH_JUMP if store.findings else 1
    writes: list[Write] = [Put("meta", {"key": BOOT_EPOCH, "value": last + jump})]
    if store.findings:
        writes.append(
            Put("meta", {"key": VOTING_BARRED_KEY, "value": f"{me.hex()} {wall():%Y-%m-%d}"})
        )
        writes.append(Delete("meta", (FINDING,)))
    await store.commit(writes)
    return last + jump


async def barred_because(store: Store, me: SiteId) -> str:
    """Why ``me`` must not vote in any register; empty if it may."""
    rows: list[Row] = await store.read(
        lambda database: list(
            database.query("SELECT value FROM meta WHERE key = ?", [VOTING_BARRED_KEY])
        )
    )
    barred, day, why, *_ = (*str(rows[0]["value"] if rows else "").split(" "), "", "", "")
    if barred != me.hex():
        return ""
    if why == COPIED:
        return (
            f"{DUPLICATE}: on {day} another process was found to use this site's key, so what it"
            f" promised is not known here and it does not vote; {MEND}"
        )
    return (
        f"this site does not vote: its database was damaged and moved aside on {day}, and with it "
        "went what it had promised; drain it, remove its state folder and join again"
    )


async def token_seeds(store: Store) -> tuple[tuple[str, int], ...]:
    """Addresses (host, mesh port) that the join token named; written by ``atoll join``."""
    rows = await store.read(
        lambda database: list(database.query("SELECT value FROM meta WHERE key = ?", [JOIN_SEEDS]))
    )
    text = str(rows[0]["value"]) if rows else ""
    pairs = (split_host_port(part) for part in text.split())
    return tuple(pair for pair in pairs if pair is not None)


async def restore(store: Store, blobs: BlobStore, me: SiteId) -> Stored:
    """Everything durable, decoded; an undecodable row is reported and left out."""
    tables = (
        "peers", "documents", "jobs", "register", "updates", "models", "overrides", "rollouts",
        burial.TABLE,
    )  # fmt: skip
    rows = {name: await store.read(_everything(name)) for name in tables}
    # Not who was counted: of many jobs that is more than all else together.
    query = "SELECT job, round, contributions FROM rounds"
    rows["rounds"] = await store.read(lambda database: list(database.query(query)))
    peers = _decoded(
        rows["peers"],
        lambda row: Introduction(
            unpack(Passport, row["passport"]), Signed(row["record"], row["signature"])
        ),
    )
    documents = _decoded(rows["documents"], lambda row: unpack(Document, row["document"]))
    held = frozenset(blobs.list())
    return Stored(
        peers=tuple(peers),
        documents=tuple(documents),
        history=await _history(store),
        jobs=_jobs(rows, blobs, held),
        tombstones=dict(_decoded(rows[burial.TABLE], burial.read)),
        crashes={row["key"]: row["crashes"] for row in rows["models"]},
        overrides=tuple(map(_override, rows["overrides"])),
        rollouts=dict(_decoded(rows["rollouts"], _part)),
        blobs=held,
        parts=frozenset(blobs.list_partial()),
        coordinate=await _coordinate(store),
        barred_because=await barred_because(store, me),
    )


def _override(row: Row) -> Override:
    return Override(row["name"], row["version"], bool(row["is_served"]), row["who"], row["at_s"])


def _part(row: Row) -> tuple[str, tuple[bytes, Standing]]:
    try:
        standing = Standing(Stage(row["stage"]), Gate(row["gate"]), row["reason"])
    except ValueError as error:
        raise Malformed(f"rollout of {row['model']}", why=str(error)) from None
    return row["model"], (row["rollout"], standing)


async def _history(store: Store) -> tuple[tuple[Key, int, Stamp], ...]:
    query = f"SELECT kind, name, slot, wall_ms, count FROM {FORMER}"  # noqa: S608 - constant
    rows = await store.read(lambda database: list(database.query(query)))
    return tuple(
        (Key(row["kind"], row["name"]), row["slot"], Stamp(row["wall_ms"], row["count"]))
        for row in rows
    )


async def _coordinate(store: Store) -> bytes:
    rows = await store.read(
        lambda database: list(
            database.query("SELECT value FROM meta WHERE key = ?", [COORDINATE_KEY])
        )
    )
    value = rows[0]["value"] if rows else b""
    # Whatever it is, a site without a place finds one in a minute.
    is_place = isinstance(value, bytes) and Coordinate.unpack(value) is not None
    return bytes(value) if is_place else b""


def _jobs(
    rows: dict[str, list[Row]], blobs: BlobStore, held: frozenset[Digest]
) -> dict[JobId, Restored]:
    values = {row["job"]: row["value"] for row in rows["jobs"] if row["value"] is not None}
    registers = {row["job"]: row for row in rows["register"]}
    updates = {row["job"]: row for row in rows["updates"] if row["state"] == "open"}
    rounds: defaultdict[str, dict[int, Digest]] = defaultdict(dict)
    for row in rows["rounds"]:
        if row["contributions"] in held:
            rounds[row["job"]][row["round"]] = Digest(row["contributions"])
    found: dict[JobId, Restored] = {}
    for name in sorted({*values, *registers, *updates}):
        value = _decoded([values[name]] if name in values else [], _value)
        last = value[0] if value else None
        counted = read_back(rounds.get(name, {}), last, partial(_counted, name, blobs))
        register = registers.get(name)
        found[JobId(name)] = Restored(
            last,
            {key: register[key] for key in register if key != "row_hash"} if register else None,
            _update(updates[name], blobs) if name in updates else None,
            counted,
        )
    return found


def _value(data: bytes) -> JobValue:
    return unpack(JobValue, data)


def _read(digest: Digest, blobs: BlobStore) -> bytes:
    """A small blob."""
    chunks = range(len(blobs.manifest(digest).chunks))
    return b"".join(blobs.read_chunk(digest, index) for index in chunks)


def _counted(job: str, blobs: BlobStore, digest: Digest) -> Contributions | None:
    try:
        return unpack(Contributions, _read(digest, blobs))
    except AtollError as error:
        _log.warning("a round of %s is fetched again: %s", job, error)
        return None


def _update(row: Row, blobs: BlobStore) -> Update:
    metrics = tuple((str(name), float(value)) for name, value in json.loads(row["metrics"]))
    digest = Digest(row["digest"])
    parts = _parts(digest, blobs) if blobs.is_held(digest) else ()
    return Update(row["round"], Digest(row["base"]), digest, row["samples"], metrics, parts)


def _parts(digest: Digest, blobs: BlobStore) -> tuple[Digest, ...]:
    """What an update names, if it is cut; parameters begin otherwise (``agent.workers.parameters``)."""
    try:
        if blobs.size(digest) > CUT_BYTES_MAX:
            return ()
        return unpack(Cut, _read(digest, blobs)).parts
    except AtollError:
        return ()


def _everything(table: str) -> Callable[[Database], list[Row]]:
    return lambda database: [dict(row) for row in database[table].rows]


def _decoded(rows: Iterable[Any], decode: Callable[[Any], T]) -> list[T]:
    found: list[T] = []
    for row in rows:
        try:
            found.append(decode(row))
        except AtollError as error:
            _log.warning("a stored row is left out: %s", error)
    return found
