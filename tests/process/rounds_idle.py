"""A site's workshop with many jobs that are over."""

import time
from random import Random

from agent.federation.desk import Surroundings
from agent.federation.events import ViewChanged
from agent.federation.restored import Restored
from agent.federation.value import JobValue, encode_value
from agent.foundation.ids import Digest, JobId, SiteId
from agent.foundation.machine import NEVER
from agent.foundation.writes import Scalar
from agent.site.workshop import Workshop
from agent.wire.documents import Job

ME = SiteId(b"m" * 32)
OTHERS = tuple(SiteId(bytes([n]) * 32) for n in range(3))


class Around:
    """Nobody is gone, nothing is held."""

    def alive(self) -> dict[SiteId, float]:
        return dict.fromkeys((*OTHERS, ME), 1.0)

    def __getattr__(self, name: str) -> object:
        return lambda *_: {"region": "", "refusal": ""}.get(name, False)


def idle_jobs(number: int) -> tuple[int, int, float]:
    """What they ask for when the view changes (after their start), how many want time, microseconds for all."""
    stored, jobs = {}, []
    for n in range(number):
        job = Job(
            JobId(f"job-{n:08x}"), "mnist-2nn", "digits", OTHERS, 3, 1, 8, 0.1, 1, 1, 60.0, "", (),
        )  # fmt: skip
        value = JobValue(
            job.id, 1, OTHERS[0], 3, Digest(bytes(32)), None, "finished", None, 0, "", ()
        )
        row: dict[str, Scalar] = {
            "job": job.id, "promised_number": 1, "promised_proposer": b"p" * 48, "accepted_number": 1,
            "accepted_proposer": b"p" * 48, "value": encode_value(value),
        }  # fmt: skip
        stored[job.id] = Restored(value=value, register=row)
        jobs.append(job)
    numbers = iter(range(10**9))
    around: Surroundings = Around()  # type: ignore[assignment]
    workshop = Workshop(ME, 1, lambda: next(numbers), around, Random(1), stored, "")
    for job in jobs:
        workshop.open(job, 0.0)
    workshop.woke(0.0)
    began = time.perf_counter()
    effects = workshop.step_all(ViewChanged(), 1.0)
    took_us = 1e6 * (time.perf_counter() - began)
    timers = sum(machine.wake_at() != NEVER for machine in workshop.machines.values())
    return len(effects), timers, took_us
