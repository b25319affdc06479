"""Model versions that jobs made: derived by every site alike from what the registers decided.

No document says that such a model exists and nobody has to sign one: the job (signed by an admin)
names what it publishes and where, the register names the exact bytes.
"""

from collections.abc import Iterable

from agent.catalog.catalog import Catalog
from agent.federation.job import JobMachine
from agent.wire.documents import Key, ModelVersion, Stamp

Published = tuple[ModelVersion, tuple[str, ...]]


def published(machines: Iterable[JobMachine], catalog: Catalog) -> list[Published]:
    """Each finished job's model and the names of the sites to serve it (empty: all).

    In the order in which the jobs were asked for, which every site knows alike.
    """
    found: list[tuple[Stamp, str, Published]] = []
    for machine in machines:
        job, value = machine.job, machine.value
        if value is None or value.exported is None or not job.publish or job.is_cancelled:
            continue
        version = ModelVersion(
            job.publish, version_name(job.id), value.exported, value.exported_bytes, "onnx",
            job.residency, f"job {job.id}, {value.round} rounds",
        )  # fmt: skip
        entry = catalog.get(Key("job", job.id))
        stamp = entry.document.stamp if entry is not None else Stamp(0, 0)
        found.append((stamp, job.id, (version, job.deploy_sites)))
    return [one for _, _, one in sorted(found, key=lambda item: item[:2])]


def newest(every: Iterable[Published]) -> list[Published]:
    """The last one of each name: what is served without an operator's word."""
    return list({version.name: (version, sites) for version, sites in every}.values())


def version_name(job_id: str) -> str:
    """Job ids are never reused, so the id itself is a version; names are at most 64 characters."""
    return job_id[-64:].lstrip("._-")
