"""Which waiting requests run together, and which rows of the result are whose.

Rule: requests are joined along their first dimension only if the model was seen to treat rows apart
(``agent.workers.inference_batching``) and all other dimensions agree. By default nobody waits for
company: what is queued when a runner is free is taken together, so that a request alone is as fast as
ever and a queue drains at the pace of the size that pays. (Triton's dynamic batching with zero delay.)
An operator whose accelerator is far from full may let the first one wait (``Company``).

How many pay is measured while serving, for each model and form of input: on a CPU two small images
may be cheaper together and four large ones dearer, on a GPU sixty-four cost as much as one.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import ceil

from agent.serving.request import InferRequest
from agent.serving.signature import FREE, Signature

ROWS_MAX = 64
"""Of one batch: everybody in it waits for all of it."""
RUN_US_MAX = 100_000
"""Neither does a batch grow that would run longer than this."""
GAIN_MIN = 0.97
"""Twice the rows must make each at least 3 % cheaper, or joining only adds waiting and copies."""
SMOOTHING = 0.2
TRY_AGAIN_RUNS = 500
"""What did not pay is tried again after so many runs: the machine may be another one by then."""
FORMS_MAX = 64
"""Forms of input remembered for one model; the one used longest ago is forgotten."""


def has_batch_dimension(signature: Signature) -> bool:
    """Whether each input and output leaves its first dimension to the request."""
    specs = signature.inputs + signature.outputs
    return bool(signature.inputs) and all(spec.shape[:1] == (FREE,) for spec in specs)


def rows_of(request: InferRequest) -> int:
    """Rows that all inputs have; 0 if they do not agree (such a request runs alone)."""
    rows = {tensor.shape[0] if tensor.shape else 0 for tensor in request.inputs}
    return rows.pop() if len(rows) == 1 else 0


def form_of(request: InferRequest) -> Hashable:
    """Two requests with equal forms can be joined."""
    return frozenset((tensor.spec.name, tensor.shape[1:]) for tensor in request.inputs)


@dataclass(frozen=True, slots=True)
class Company:
    """What an operator asks of batches beyond what is learned; by default nothing.

    Source: Triton's ``max_queue_delay_microseconds`` and ``preferred_batch_size``
    (triton-inference-server/server ``docs/user_guide/batcher.md``).
    """

    delay_s: float = 0.0
    """How long the first request may wait for others, from its arrival on, seconds."""
    preferred: tuple[int, ...] = ()
    """Numbers of requests, rising. One that is reached ends the waiting, and no more are taken than
    the largest that is reached; where none is, all that are there."""

    def taken(self, there: int, most: int) -> int:
        """How many of ``there`` requests to run together; ``most`` pay."""
        count = min(there, most)
        return max((one for one in self.preferred if one <= count), default=count)

    def is_enough(self, there: int, most: int) -> bool:
        """Whether nothing is to be gained by waiting for more."""
        return there >= most or any(one <= there for one in self.preferred)


class Sizes:
    """The number of rows that pays for one model, by form of input; learned from its runs."""

    def __init__(self, rows_max: int = ROWS_MAX) -> None:
        """``rows_max`` 1: never join."""
        self._rows_max = rows_max
        self._forms: OrderedDict[Hashable, _Costs] = OrderedDict()

    @property
    def may_join(self) -> bool:
        """Whether requests are run together at all."""
        return self._rows_max > 1

    def rows_max(self, form: Hashable) -> int:
        """How many rows of ``form`` to run together now."""
        costs = self._forms.get(form)
        return min(self._rows_max, 2 if costs is None else costs.rows_max())

    @property
    def most(self) -> int:
        """How many rows of any form to run together now."""
        if not self.may_join:
            return 1
        most = max((costs.rows_max() for costs in self._forms.values()), default=2)
        return min(self._rows_max, most)

    def ran(self, form: Hashable, rows: int, run_us: int) -> None:
        """``rows`` of ``form`` took ``run_us`` microseconds together."""
        if not self.may_join or rows < 1:
            return
        costs = self._forms.setdefault(form, _Costs())
        self._forms.move_to_end(form)
        if len(self._forms) > FORMS_MAX:
            self._forms.popitem(last=False)
        costs.ran(rows, run_us)


class _Costs:
    """Microseconds a row, by the power of two of rows that ran together."""

    def __init__(self) -> None:
        self._row_us: dict[int, float] = {}
        self._runs = 0

    def rows_max(self) -> int:
        """Climb while twice the rows are cheaper; the first unknown step is tried."""
        rows = 1
        while rows < ROWS_MAX:
            here, twice = self._row_us.get(rows), self._row_us.get(2 * rows)
            if here is None or 2 * rows * here > RUN_US_MAX:
                return rows
            if twice is None:
                return 2 * rows
            if twice > GAIN_MIN * here:
                return rows
            rows *= 2
        return rows

    def ran(self, rows: int, run_us: int) -> None:
        step, row_us = 1 << (rows.bit_length() - 1), run_us / rows
        known = self._row_us.get(step)
        self._row_us[step] = row_us if known is None else known + SMOOTHING * (row_us - known)
        self._runs += 1
        if self._runs % TRY_AGAIN_RUNS == 0:
            self._row_us.pop(2 * self.rows_max(), None)


def share(waiting: int, *, runners: int, rows_max: int) -> int:
    """How many of ``waiting`` requests for one model one of ``runners`` takes."""
    return max(1, min(ceil(waiting / max(1, runners)), rows_max))


def groups(requests: Sequence[InferRequest], sizes: Sizes) -> list[list[int]]:
    """Indices of requests that run together, in the order of their first members.

    Each request is in one group; a group of several has at most the rows that pay for its form.
    """
    found: list[list[int]] = []
    open_group: dict[Hashable, tuple[list[int], int]] = {}
    for index, request in enumerate(requests):
        rows, form = rows_of(request), form_of(request)
        rows_max = sizes.rows_max(form)
        if not 0 < rows < rows_max:
            found.append([index])
            continue
        members, held = open_group.get(form, ([], 0))
        if members and held + rows <= rows_max:
            members.append(index)
        else:
            members, held = [index], 0
            found.append(members)
        open_group[form] = (members, held + rows)
    return found
