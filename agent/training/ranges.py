"""How the file of an update, or of a mean, is cut where several sites make one round's mean together."""

from agent.wire.documents import Job
from agent.wire.limits import CHUNK_BYTES


def parts_of(job: Job) -> int:
    """In how many parts the updates of a job's rounds are cut; 1: not at all.

    The result of a region is counted whole: few links carry it, and nobody else has to have it.
    """
    return 1 if job.regions else job.ranges


def cut(size: int, parts: int) -> list[range]:
    """The chunks of each part of a file of ``size`` bytes > 0; fewer parts if it has fewer chunks."""
    chunks = -(-size // CHUNK_BYTES)
    count = min(parts, chunks)
    return [range(chunks * n // count, chunks * (n + 1) // count) for n in range(count)]
