"""Counters of the gateway, as Triton's users know them: per model, cumulative, for Prometheus."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.catalog.gates import BOUNDS_S
from agent.drivers.histogram import REQUEST_BOUNDS_S, Histogram

FAILURES = {503: "REJECTED", 499: "CANCELED", 504: "CANCELED", 500: "BACKEND"}
"""Status to Triton's ``reason`` label; anything else is OTHER."""
VERSIONS_FAULT = (500, 504)
"""Statuses that speak against a model version: it failed, or did not end in time."""
MODELS_MAX = 1000
"""Label values are bounded: counters of models beyond this are added up under one name."""
APPLICATIONS_MAX = 300
"""The same of applications: all tokens that a site may have, and some members."""

DECISIONS = (
    "away", "retried", "retry refused", "hedged", "hedge won", "hedge refused", "broken",
)  # fmt: skip
"""Sent away by choice; asked of another site after a failure, or beside a late one; breaker opened."""

Family = tuple[str, str, str]
_COUNTERS: Mapping[str, Family] = {
    "success": ("nv_inference_request_success", "counter", "Requests answered"),
    "count": ("nv_inference_count", "counter", "Inferences run here"),
    "executions": ("nv_inference_exec_count", "counter", "Runs of the model, each of one or more"),
    "request_us": ("nv_inference_request_duration_us", "counter", "Time to answer"),
    "queue_us": ("nv_inference_queue_duration_us", "counter", "Time before the work began"),
    "run_us": ("nv_inference_compute_infer_duration_us", "counter", "Time inside the model"),
}
_TIMES: tuple[tuple[str, str], ...] = (
    ("atoll_model_request_seconds", "Time from a request's arrival to its answer"),
    ("atoll_model_queue_seconds", "Time of a request before its work began here"),
    ("atoll_model_compute_seconds", "Time of a request inside the model here"),
)
_BATCHES = "atoll_model_runs_total"


@dataclass(slots=True)
class ModelFigures:
    """Counters of one model version."""

    success: int = 0
    count: int = 0
    request_us: int = 0
    queue_us: int = 0
    run_us: int = 0
    executions: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    sizes: dict[int, list[int]] = field(default_factory=dict)
    """Runs and their microseconds by how many requests shared them; bounded by a worker's slots."""
    times: tuple[Histogram, ...] = field(
        default_factory=lambda: tuple(Histogram(REQUEST_BOUNDS_S) for _ in _TIMES)
    )
    """As ``_TIMES``."""

    def succeeded(
        self, request_us: int, queue_us: int, run_us: int, together: int, *, is_first: bool
    ) -> None:
        """One request was answered; ``run_us`` is 0 if another site ran it.

        ``together`` requests shared its run, and ``is_first`` is true for one of them.
        """
        self.success += 1
        self.count += run_us > 0
        if run_us and is_first:
            self.executions += 1
            runs = self.sizes.setdefault(together, [0, 0])
            runs[0] += 1
            runs[1] += run_us
        self.request_us += request_us
        self.queue_us += queue_us
        self.run_us += run_us
        whole, queue, compute = self.times
        whole.note(request_us / 1e6)
        if run_us:
            queue.note(queue_us / 1e6)
            compute.note(run_us / 1e6)

    def failed(self, status: int) -> None:
        """One request was answered with an error."""
        self.failures[FAILURES.get(status, "OTHER")] += 1

    def statistics(self) -> dict[str, Any]:
        """The ``inference_stats`` of Triton's statistics extension (times in ns)."""
        failed = sum(self.failures.values())
        return {
            "success": {"count": self.success, "ns": self.request_us * 1000},
            "fail": {"count": failed, "ns": 0},
            "queue": {"count": self.count, "ns": self.queue_us * 1000},
            "compute_infer": {"count": self.count, "ns": self.run_us * 1000},
        }

    def batches(self) -> list[dict[str, Any]]:
        """The ``batch_stats`` of the same extension: runs by how many requests shared them."""
        return [
            {"batch_size": size, "compute_infer": {"count": runs, "ns": total_us * 1000}}
            for size, (runs, total_us) in sorted(self.sizes.items())
        ]


class Tally:
    """Requests that one model version has run at this site, for those who judge it."""

    __slots__ = ("errors", "invalid", "requests", "times")

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.invalid = 0
        self.times = Histogram(BOUNDS_S)

    def note(self, status: int, took_s: float, *, is_lost: bool = False) -> None:
        """One request has run, or was lost with a worker; what the load did is no matter."""
        if status in VERSIONS_FAULT or is_lost:
            self.requests += 1
            self.errors += 1
        elif status == 200:  # noqa: PLR2004 - answered
            self.requests += 1
            self.times.note(took_s)
        elif status == 400:  # noqa: PLR2004 - it does not fit the model
            self.invalid += 1


@dataclass(slots=True)
class ApplicationFigures:
    """Inference requests of one application."""

    requests: int = 0
    errors: int = 0


class Figures:
    """All counters of one gateway."""

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.forwarded = 0
        self.received = 0
        self.rerun = 0
        self.replayed = 0
        self.workers_lost = 0
        self.routing: Counter[str] = Counter(dict.fromkeys(DECISIONS, 0))
        """Decisions about other sites."""
        self.turned_away: Counter[str] = Counter()
        """Requests of any kind by why their token was not good enough."""
        self._models: dict[tuple[str, str], ModelFigures] = {}
        self._applications: dict[str, ApplicationFigures] = {}

    def of_application(self, name: str) -> ApplicationFigures:
        """The counters of one application."""
        if name not in self._applications and len(self._applications) >= APPLICATIONS_MAX:
            name = "others"
        return self._applications.setdefault(name, ApplicationFigures())

    def of(self, model: str, version: str) -> ModelFigures:
        """The counters of one model version of the catalog."""
        name = (model, version)
        if name not in self._models and len(self._models) >= MODELS_MAX:
            name = ("others", "")
        return self._models.setdefault(name, ModelFigures())

    def render(self, gauges: Iterable[tuple[str, str, float]]) -> str:
        """The Prometheus text format; ``gauges`` are (name, help, value)."""
        lines: list[str] = []
        for column, (name, kind, help_text) in _COUNTERS.items():
            lines += (f"# HELP {name} {help_text}", f"# TYPE {name} {kind}")
            lines += (
                f"{name}{_labels(model)} {getattr(figures, column)}"
                for model, figures in self._models.items()
            )
        name = "nv_inference_request_failure"
        lines += (f"# HELP {name} Requests answered with an error", f"# TYPE {name} counter")
        lines += (
            f"{name}{_labels(model, reason)} {count}"
            for model, figures in self._models.items()
            for reason, count in figures.failures.items()
        )
        lines += self._render_times()
        lines += self._render_applications()
        name = "atoll_routing_total"
        lines += (f"# HELP {name} Decisions about other sites", f"# TYPE {name} counter")
        lines += (
            f'{name}{{decision="{decision}"}} {count}' for decision, count in self.routing.items()
        )
        totals = (
            ("atoll_requests_total", "Inference requests taken", self.requests),
            ("atoll_errors_total", "Inference requests answered with an error", self.errors),
            ("atoll_forwarded_total", "Requests answered by another site", self.forwarded),
            ("atoll_received_total", "Requests taken from other sites", self.received),
            (
                "atoll_replayed_total",
                "Requests answered as before, by their idempotency key",
                self.replayed,
            ),
            ("atoll_rerun_total", "Requests run again because their worker ended", self.rerun),
            ("atoll_workers_lost_total", "Model workers that ended", self.workers_lost),
        )
        for name, help_text, value in totals:
            lines += (f"# HELP {name} {help_text}", f"# TYPE {name} counter", f"{name} {value}")
        for name, help_text, gauge in gauges:
            lines += (f"# HELP {name} {help_text}", f"# TYPE {name} gauge", f"{name} {gauge:g}")
        return "\n".join(lines) + "\n"

    def _render_times(self) -> Iterator[str]:
        for place, (name, help_text) in enumerate(_TIMES):
            yield from (f"# HELP {name} {help_text}", f"# TYPE {name} histogram")
            for model, figures in self._models.items():
                yield from figures.times[place].lines(name, f"{_pairs(model)},")
        yield f"# HELP {_BATCHES} Runs of the model by how many requests shared them"
        yield f"# TYPE {_BATCHES} counter"
        for model, figures in self._models.items():
            for size, (runs, _) in figures.sizes.items():
                yield f'{_BATCHES}{{{_pairs(model)},requests="{size}"}} {runs}'

    def _render_applications(self) -> Iterator[str]:
        for column, help_text in (
            ("requests", "Inference requests by application"),
            ("errors", "Of these, answered with an error"),
        ):
            name = f"atoll_application_{column}_total"
            yield from (f"# HELP {name} {help_text}", f"# TYPE {name} counter")
            for application, figures in self._applications.items():
                yield f'{name}{{application="{_escape(application)}"}} {getattr(figures, column)}'
        name = "atoll_turned_away_total"
        yield from (f"# HELP {name} Requests without a fitting token", f"# TYPE {name} counter")
        for reason, count in self.turned_away.items():
            yield f'{name}{{reason="{reason}"}} {count}'


def _labels(model: tuple[str, str], reason: str | None = None) -> str:
    extra = "" if reason is None else f',reason="{reason}"'
    return f"{{{_pairs(model)}{extra}}}"


def _pairs(model: tuple[str, str]) -> str:
    return f'model="{_escape(model[0])}",version="{_escape(model[1])}"'


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
