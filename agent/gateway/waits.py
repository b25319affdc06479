"""How long requests wait for their turn, and how many are refused, by application and priority."""

from collections import Counter
from collections.abc import Iterator

from agent.drivers.histogram import REQUEST_BOUNDS_S, Histogram
from agent.serving.admission import OTHERS
from agent.serving.fair import APPLICATIONS_MAX, PARTS, Priority

WAIT = "atoll_queue_seconds"
REFUSED = "atoll_refused_total"


class Waits:
    """Since the start; names of applications beyond ``APPLICATIONS_MAX`` count as one."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._waits: tuple[dict[str, Histogram], ...] = tuple({} for _ in PARTS)
        """By priority and application."""
        self._refused: Counter[tuple[str, Priority]] = Counter()

    def note(self, application: str, priority: Priority, wait_us: int) -> None:
        """A request of this site's own workers began after ``wait_us`` microseconds."""
        waits = self._waits[priority]
        found = waits.get(application)
        if found is None:
            found = waits.setdefault(self._named(application), Histogram(REQUEST_BOUNDS_S))
        found.note(wait_us / 1e6)

    def refuse(self, application: str, priority: Priority) -> None:
        """A request was not let in: it would have waited too long."""
        self._refused[self._named(application), priority] += 1

    def render(self) -> str:
        """The Prometheus text format."""
        return "".join(f"{line}\n" for line in self._lines())

    def _named(self, application: str) -> str:
        if application not in self._names and len(self._names) >= APPLICATIONS_MAX:
            application = OTHERS
        self._names.add(application)
        return application

    def _lines(self) -> Iterator[str]:
        yield f"# HELP {WAIT} Time of a request before its work began here"
        yield f"# TYPE {WAIT} histogram"
        for priority in Priority:
            for application, waits in self._waits[priority].items():
                yield from waits.lines(WAIT, _labels(application, priority))
        yield f"# HELP {REFUSED} Requests not let in here: they would have waited too long"
        yield f"# TYPE {REFUSED} counter"
        for flow, count in self._refused.items():
            yield f"{REFUSED}{{{_labels(*flow)[:-1]}}} {count}"


def _labels(application: str, priority: Priority) -> str:
    return f'application="{application}",priority="{priority.name.lower()}",'
