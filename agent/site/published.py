"""Model versions that jobs made: derived by every site alike from what the registers decided.

No document says that such a model exists and nobody has to sign one: the job (signed by an admin)
names what it publishes and where, the register names the exact bytes.
"""

from collections.abc import Callable, Iterable

from agent.catalog.catalog import Catalog
from agent.federation.burial import Tombstone
from agent.federation.job import JobMachine
from agent.foundation.ids import Digest, JobId
from agent.wire.documents import Job, Key, ModelVersion, Stamp

Published = tuple[ModelVersion, tuple[str, ...]]


def published(
    machines: Iterable[JobMachine],
    catalog: Catalog,
    tombstone: Callable[[JobId], Tombstone | None],
) -> list[Published]:
    """Each finished job's model and the names of the sites to serve it (empty: all).

    In the order in which the jobs were asked for, which every site knows alike.
    """
    found: list[tuple[Stamp, str, Published]] = []
    for machine in machines:
        job, value = machine.job, machine.value
        if value is None or value.exported is None or not job.publish or job.is_cancelled:
            continue
        made = _version(job, value.exported, value.exported_bytes, value.round)
        found.append((_stamp(job, catalog), job.id, (made, job.deploy_sites)))
    for job in catalog.of_kind(Job):
        stone = tombstone(job.id) if job.publish and not job.is_cancelled else None
        if stone is not None and stone.model_bytes and stone.result is not None:
            made = _version(job, stone.result, stone.model_bytes, stone.round)
            found.append((_stamp(job, catalog), job.id, (made, job.deploy_sites)))
    return [one for _, _, one in sorted(found, key=lambda item: item[:2])]


def _version(job: Job, exported: Digest, size: int, rounds: int) -> ModelVersion:
    return ModelVersion(
        job.publish, version_name(job.id), exported, size, "onnx", job.residency,
        f"job {job.id}, {rounds} rounds",
    )  # fmt: skip


def _stamp(job: Job, catalog: Catalog) -> Stamp:
    entry = catalog.get(Key("job", job.id))
    return entry.document.stamp if entry is not None else Stamp(0, 0)


def newest(every: Iterable[Published]) -> list[Published]:
    """The last one of each name: what is served without an operator's word."""
    return list({version.name: (version, sites) for version, sites in every}.values())


def version_name(job_id: str) -> str:
    """Job ids are never reused, so the id itself is a version; names are at most 64 characters."""
    return job_id[-64:].lstrip("._-")
