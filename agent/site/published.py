"""Model versions that jobs made: derived by every site alike from what the registers decided.

No document says that such a model exists and nobody has to sign one: the job (signed by an admin)
names what it publishes and where, the register names the exact bytes.
"""

from collections.abc import Iterable

from agent.federation.job import JobMachine
from agent.wire.documents import ModelVersion


def published(machines: Iterable[JobMachine]) -> list[tuple[ModelVersion, tuple[str, ...]]]:
    """Each finished job's model and the names of the sites to serve it (empty: all)."""
    found = []
    for machine in machines:
        job, value = machine.job, machine.value
        if value is None or value.exported is None or not job.publish or job.is_cancelled:
            continue
        version = ModelVersion(
            job.publish, version_name(job.id), value.exported, value.exported_bytes, "onnx",
            job.residency, f"job {job.id}, {value.round} rounds",
        )  # fmt: skip
        found.append((version, job.deploy_sites))
    return sorted(found, key=lambda pair: (pair[0].name, pair[0].version))


def version_name(job_id: str) -> str:
    """Job ids are never reused, so the id itself is a version; names are at most 64 characters."""
    return job_id[-64:].lstrip("._-")
