"""One site's job machine on a bench: rows are durable at once, other sites are played by the test."""

from collections.abc import Mapping
from hashlib import sha256
from itertools import count
from random import Random
from typing import Any, TypeVar

from agent.federation.desk import Desk
from agent.federation.events import Answer, Ask, JobEffect, JobEvent, Persist, Persisted, Replied
from agent.federation.job import JobMachine
from agent.federation.restored import Restored
from agent.federation.value import Contribution, Contributions, JobValue, blob_digest
from agent.foundation.ids import Digest, JobId, SiteId
from agent.foundation.machine import NEVER, Woke
from agent.wire.documents import Job
from agent.wire.mesh import Call, Reply
from agent.wire.schema import pack

T = TypeVar("T")


def site_id(name: str) -> SiteId:
    return SiteId(sha256(name.encode()).digest())


def digest(name: str) -> Digest:
    return Digest(sha256(b"blob " + name.encode()).digest())


ME, ANNA, BERT, CARL = (site_id(name) for name in ("me", "anna", "bert", "carl"))
JOB = JobId("job-00000001")
OPERATION = b"o" * 20


def job(**changes: Any) -> Job:
    fields: dict[str, Any] = {
        "id": JOB, "recipe": "mnist-2nn", "dataset": "mnist", "committee": (ME,), "rounds": 3,
        "epochs": 1, "batch": 32, "learning_rate": 0.1, "seed": 1, "sites_min": 1,
        "round_timeout_s": 60.0, "publish": "", "residency": (),
    }  # fmt: skip
    return Job(**(fields | changes))


def value(**changes: Any) -> JobValue:
    fields: dict[str, Any] = {
        "job": JOB, "epoch": 1, "aggregator": ANNA, "round": 0, "parameters": digest("p0"),
        "contributions": None, "state": "running", "exported": None, "exported_bytes": 0,
        "reason": "", "operations": (OPERATION,),
    }  # fmt: skip
    return JobValue(**(fields | changes))


def contributions(
    round_: int, previous: Digest | None = None, *entries: Contribution
) -> tuple[Digest, bytes, Contributions]:
    content = Contributions(
        JOB, round_, 1, ANNA, digest(f"p{round_ - 1}"), digest(f"p{round_}"), entries, previous
    )
    data = pack(content)
    return blob_digest(data), data, content


class Around:
    """Surroundings that a test sets."""

    def __init__(self, *alive: SiteId) -> None:
        self.living = dict.fromkeys(sorted({ME, *alive}), 1.0)
        self.held: set[Digest] = set()
        self.refuses = ""
        self.aggregates = True
        self.outlaws: set[SiteId] = set()
        self.gone: set[SiteId] = set()
        self.regions: dict[SiteId, str] = {}

    def alive(self) -> Mapping[SiteId, float]:
        return self.living

    def region(self, site: SiteId) -> str:
        return self.regions.get(site, "")

    def is_held(self, blob: Digest) -> bool:
        return blob in self.held

    def refusal(self, job: Job) -> str:  # noqa: ARG002
        return self.refuses

    def can_aggregate(self) -> bool:
        return self.aggregates

    def unix_s(self, now: float) -> float:
        return now

    def may_hold(self, job: Job, site: SiteId) -> bool:  # noqa: ARG002
        return site not in self.outlaws

    def is_gone(self, site: SiteId) -> bool:
        return site in self.gone

    def substitute(self, job: Job, members: tuple[SiteId, ...], gone: SiteId) -> SiteId | None:  # noqa: ARG002
        return next((site for site in self.living if site not in members), None)


def desk() -> Desk:
    numbers = count(1)
    return Desk(lambda: next(numbers), b"p" * 12)


class Bench:
    """A machine, and everything that it has asked for."""

    def __init__(
        self, the_job: Job, *alive: SiteId, restored: Restored | None = None, now: float = 0.0
    ) -> None:
        self.around = Around(*alive)
        self.now = now
        self.restored = restored or Restored()
        self.the_job = the_job
        self.rows: dict[str, dict[str, Any]] = {}
        self.effects: list[JobEffect] = []

    def start(self) -> "Bench":
        self.machine = JobMachine(
            self.the_job, ME, 1, desk(), self.around, Random(1), self.now, self.restored
        )
        return self

    def step(self, event: JobEvent) -> list[JobEffect]:
        """One event and what follows from durable rows; effects since then."""
        waiting, made = [event], list[JobEffect]()
        for _ in range(200):
            if not waiting:
                break
            for effect in self.machine.step(waiting.pop(0), self.now):
                made.append(effect)
                if isinstance(effect, Persist):
                    for write in effect.writes:
                        self.rows[write.table] = dict(write.row)  # type: ignore[union-attr]
                    if effect.token is not None:
                        waiting.append(Persisted(effect.token))
        assert not waiting, "no machine has unbounded work at one instant"
        self.effects += made
        return made

    def wake(self) -> list[JobEffect]:
        """The next wake-up, whenever it is."""
        at = self.machine.wake_at()
        assert at != NEVER
        self.now = max(self.now, at)
        made = self.step(Woke())
        assert self.machine.wake_at() > self.now, "time must be able to pass"
        return made

    def run_to(self, deadline: float) -> list[JobEffect]:
        """Every wake-up until ``deadline``."""
        made: list[JobEffect] = []
        while self.machine.wake_at() <= deadline:
            made += self.wake()
        self.now = deadline
        return made

    def reply(self, ask: Ask, reply: Reply | None) -> list[JobEffect]:
        return self.step(Replied(ask.call, reply))


def of(effects: list[JobEffect], kind: type[T]) -> list[T]:
    return [effect for effect in effects if isinstance(effect, kind)]


def asked(effects: list[JobEffect], message: type[Call]) -> list[Ask]:
    return [e for e in effects if isinstance(e, Ask) and isinstance(e.message, message)]


def answered(effects: list[JobEffect]) -> Reply:
    (answer,) = of(effects, Answer)
    return answer.reply
