"""Which of a site's model workers loads which model, and which hold it.

Rule: a model is tried by one worker before the others get it. A model that ends its worker while it is
loaded then costs one worker at a time, and the others go on answering for all that they hold. In the
end every worker holds every model, so that any of them can take any request and the loss of one leaves
nothing unanswered; their sessions share the memory set aside, and those used longest ago are let go.

A model that ended the worker which loaded it is tried again only where another worker stands by, by the
one that holds least: until the site gives such a model up, somebody answers for all the others.

A worker loads one model after the other: of those it was sent, the first is the one it is at work on,
and so the one to blame if it ends. Pure: loads are returned, not carried out.
"""

from collections.abc import Iterable
from dataclasses import dataclass

WORKERS_MAX = 8
"""Each is a process with ONNX Runtime in it, 80 MiB before the first model."""
CORES_EACH = 4
"""Runs that one worker on the CPU is given before a second worker is worth its memory."""


def worker_count(configured: int, *, accelerators: int, runs: int) -> int:
    """How many workers a site has.

    Args:
        configured: by the operator; 0 leaves it to what follows.
        accelerators: that models can run on here; each gets a worker of its own.
        runs: models run at once on the CPU.
    """
    wanted = configured or accelerators or runs // CORES_EACH
    return min(max(wanted, 1), WORKERS_MAX)


@dataclass(frozen=True, slots=True)
class Load:
    """Send the model to the worker."""

    worker: int
    key: bytes


@dataclass(frozen=True, slots=True)
class Down:
    """What the end of a worker means."""

    at_work_on: bytes | None
    """The load that it had not answered and was sent first."""
    lost: frozenset[bytes]
    """Wanted models that no worker holds or is loading any more."""


@dataclass(slots=True)
class _Wanted:
    """A model as it was last asked for."""

    number: int
    is_tried: bool = False
    """A worker has loaded it."""


@dataclass(slots=True)
class _Loading:
    """A load that the worker has not answered."""

    key: bytes
    number: int
    """Of the wish; an answer to a former one says nothing about this one."""
    is_sent: bool = False


class _Worker:
    """One that is up."""

    def __init__(self) -> None:
        self.holds: set[bytes] = set()
        self.loading: list[_Loading] = []
        """Those sent first, in the order in which they were."""

    def has(self, key: bytes) -> bool:
        return key in self.holds or any(one.key == key for one in self.loading)

    def forget_unsent(self, key: bytes) -> None:
        self.loading = [one for one in self.loading if one.key != key or one.is_sent]


class Pool:
    """The workers of one site by index, and what each holds."""

    def __init__(self, count: int) -> None:
        """``count``: workers that the site keeps alive."""
        self._count = count
        self._workers: dict[int, _Worker] = {}
        self._wanted: dict[bytes, _Wanted] = {}
        self._suspects: set[bytes] = set()
        """Wanted models that ended a worker when it loaded them last."""
        self._put_off: set[bytes] = set()
        """Of these, those that wait for a second worker."""
        self._number = 0

    @property
    def up(self) -> tuple[int, ...]:
        """Indices of the workers that are up."""
        return tuple(sorted(self._workers))

    def holds(self, index: int) -> frozenset[bytes]:
        """The models that one worker can answer for."""
        worker = self._workers.get(index)
        return frozenset() if worker is None else frozenset(worker.holds)

    def loading(self, index: int) -> int:
        """How many models one worker is to load yet."""
        worker = self._workers.get(index)
        return 0 if worker is None else len(worker.loading)

    def want(self, key: bytes) -> list[Load]:
        """Have the model loaded, also anew: one worker tries it.

        A worker that holds it already keeps its former session until the new one is there.
        """
        self._number += 1
        self._wanted[key] = _Wanted(self._number)
        for worker in self._workers.values():
            worker.forget_unsent(key)
        if not self._workers:
            return []
        return self._tried(key)

    def withdraw(self, key: bytes) -> None:
        """The model is not wanted any more: no worker is to hold it."""
        self._wanted.pop(key, None)
        self._suspects.discard(key)
        self._put_off.discard(key)
        for worker in self._workers.values():
            worker.holds.discard(key)
            worker.forget_unsent(key)

    def came_up(self, index: int) -> list[Load]:
        """A worker waits for models: it is to load what others have loaded, and what was put off."""
        self._workers[index] = _Worker()
        tried = [key for key, wanted in self._wanted.items() if wanted.is_tried]
        loads = [load for key in tried for load in self._assigned((index,), key)]
        return loads + [load for key in sorted(self._put_off) for load in self._tried(key)]

    def suspect(self, key: bytes) -> None:
        """A worker has ended while it loaded the model, and nobody ended it."""
        if key in self._wanted:
            self._suspects.add(key)

    def sent(self, load: Load) -> None:
        """The worker has been given the model's bytes."""
        worker = self._workers.get(load.worker)
        found = next((one for one in self._unsent(worker) if one.key == load.key), None)
        if worker is None or found is None:
            return
        found.is_sent = True
        worker.loading.remove(found)
        worker.loading.insert(sum(one.is_sent for one in worker.loading), found)

    def loaded(self, index: int, key: bytes) -> tuple[bool, list[Load]]:
        """The worker holds it: whether it is the first since the model was asked for, and what now."""
        wanted = self._wanted.get(key)
        if wanted is None or self._answered(index, key) != wanted.number:
            return False, []
        self._workers[index].holds.add(key)
        self._suspects.discard(key)
        is_first, wanted.is_tried = not wanted.is_tried, True
        others = [one for one in self.up if one != index] if is_first else []
        return is_first, self._assigned(others, key)

    def refused(self, index: int, key: bytes) -> bool:
        """The worker does not take it; whether the site cannot have it, rather than this worker."""
        wanted = self._wanted.get(key)
        if wanted is None or self._answered(index, key) != wanted.number:
            return False
        return not wanted.is_tried or not self._is_left(key)

    def went_down(self, index: int) -> Down:
        """The worker has ended, and with it its sessions."""
        worker = self._workers.pop(index, None)
        if worker is None:
            return Down(None, frozenset())
        at_work_on = next((one.key for one in worker.loading if one.is_sent), None)
        lost = (key for key in self._wanted if worker.has(key) and not self._is_left(key))
        return Down(at_work_on, frozenset(lost))

    def _is_left(self, key: bytes) -> bool:
        """Whether any worker holds the model or is to load it."""
        return any(worker.has(key) for worker in self._workers.values())

    def _tried(self, key: bytes) -> list[Load]:
        """One worker tries the model, now or when that is safe."""
        workers = self._workers
        self._put_off.discard(key)
        if key not in self._suspects or self._count == 1:
            # The fewest loads before it, so that models that come together load side by side.
            return self._assigned((min(self.up, key=lambda one: len(workers[one].loading)),), key)
        if len(workers) == 1:
            self._put_off.add(key)
            return []
        # All suspects one after the other at one worker: those that hold more go on serving.
        trying = (one for one in self.up if self._suspects & {i.key for i in workers[one].loading})
        least = min(self.up, key=lambda one: len(workers[one].holds))
        return self._assigned((next(trying, least),), key)

    def _assigned(self, indices: Iterable[int], key: bytes) -> list[Load]:
        loads = [Load(index, key) for index in indices]
        for load in loads:
            wish = _Loading(key, self._wanted[key].number)
            self._workers[load.worker].loading.append(wish)
        return loads

    def _unsent(self, worker: _Worker | None) -> list[_Loading]:
        return [] if worker is None else [one for one in worker.loading if not one.is_sent]

    def _answered(self, index: int, key: bytes) -> int:
        """The number of the wish that the worker has answered; 0 if it was not asked."""
        worker = self._workers.get(index)
        if worker is None:
            return 0
        found = next((one for one in worker.loading if one.key == key), None)
        if found is None:
            return 0
        worker.loading.remove(found)
        return found.number
