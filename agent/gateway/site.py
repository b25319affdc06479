"""What the gateway knows of its site and cluster: the last view, its workers, its admission.

The control process replaces the view whole; the gateway decides on it alone, and goes on deciding
when the control process is busy.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from random import Random

from agent.drivers.lag import LoopLag
from agent.foundation.errors import Busy, Unreachable
from agent.foundation.ids import Digest, SiteId
from agent.gateway.figures import Figures, Tally
from agent.gateway.waits import Waits
from agent.gateway.worker_link import WorkerLink
from agent.routing.outlook import Outlook
from agent.serving.access import Access
from agent.serving.admission import Admission
from agent.wire.inside import LocalModel, RemoteSite, View
from agent.wire.residency import law_digest

WAITING_MAX = 1024
"""Requests admitted at once: each holds a connection, a task and its body."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator allows."""

    request_bytes_max: int = 64 << 20
    """As Triton's default (``--http-max-input-size``), after decompression."""
    queue_max_s: float = 1.0
    """Longest predicted wait of an admitted request."""
    deadline_max_s: float = 60.0
    """Time limit of a request that states none, and the most that one may state."""
    weights: Mapping[str, int] = field(default_factory=dict)
    """Of applications in sharing the site, by name."""
    is_token_required: bool = True
    """Whether applications need a token."""


class SiteState:
    """Shared by all endpoints of one gateway process."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.admission = Admission(
            queue_max_s=limits.queue_max_s, waiting_max=WAITING_MAX, weights=limits.weights
        )
        self.figures = Figures()
        self.tallies: dict[bytes, Tally] = {}
        """Of the models that this site is to serve, by key."""
        self.waits = Waits()
        self.outlook = Outlook(Random())  # noqa: S311 - a choice among equals
        self.access: Access | None = None
        """None until the control process has sent the tokens: before the first view."""
        self.lag = LoopLag("atoll_loop_lag_seconds", "Delay of the gateway's event loop")
        self.figures_of_control: Callable[[], Awaitable[str]] = _no_figures
        """More counters, in the Prometheus text format; set once there is who to ask."""
        self.workers: dict[int, WorkerLink] = {}
        self.residency_of_blob: dict[Digest, tuple[str, ...]] = {}
        self.law_digest = b""
        """Of the jurisdictions, groups and policies of the view."""
        self._view: View | None = None
        self._local: dict[bytes, LocalModel] = {}
        self._serving: dict[bytes, tuple[RemoteSite, ...]] = {}

    @property
    def has_view(self) -> bool:
        """Whether the control process has said anything yet."""
        return self._view is not None

    @property
    def view(self) -> View:
        """The last view.

        Raises:
            Busy: none has come yet.
        """
        if self._view is None:
            raise Busy("the site is starting", mend="try again later")
        return self._view

    def replace_view(self, view: View) -> None:
        """Decide by ``view`` from now on."""
        self._view = view
        self._local = {model.key: model for model in view.local}
        self.residency_of_blob = {label.manifest: label.residency for label in view.blobs}
        self.law_digest = law_digest(view.vocabulary, view.groups, view.policies)
        serving: dict[bytes, list[RemoteSite]] = {}
        for remote in view.sites:
            for served in remote.serving:
                serving.setdefault(served.key, []).append(remote)
        self._serving = {key: tuple(sites) for key, sites in serving.items()}
        for model in view.local:
            self.admission.seed(model.key, model.service_us)
        self.admission.forget(set(self._local))
        self.tallies = {key: self.tallies.get(key) or Tally() for key in self._local}

    def local(self, key: bytes) -> LocalModel | None:
        """A model that this site is to serve."""
        return self._local.get(key)

    def serving(self, key: bytes) -> tuple[RemoteSite, ...]:
        """The other sites that say they serve a model."""
        return self._serving.get(key, ())

    def members_hosts(self) -> set[str]:
        """The addresses of the members that are known."""
        return set() if self._view is None else {remote.host for remote in self._view.sites}

    def remote(self, site: SiteId) -> RemoteSite | None:
        """A member by its id."""
        return next((remote for remote in self.view.sites if remote.site == site), None)

    # --- workers -----------------------------------------------------------------------------------
    @property
    def is_worker_up(self) -> bool:
        """Whether any model worker is attached."""
        return any(link.is_up for link in self.workers.values())

    @property
    def runners(self) -> int:
        """Requests that all workers run at once; at least 1."""
        return max(1, sum(link.runners for link in self.workers.values() if link.is_up))

    @property
    def slots(self) -> int:
        """Requests that all workers hold at once."""
        return sum(link.slots for link in self.workers.values() if link.is_up)

    def worker_for(self, key: bytes, tried: Collection[int] = ()) -> WorkerLink:
        """The least busy worker that holds the model and has not lost the request already.

        Raises:
            Unreachable: there is none.
        """
        if not self.is_worker_up:
            raise Unreachable("the model worker has stopped", why="it is being restarted")
        links = [
            link
            for link in self.workers.values()
            if link.is_up and key in link.models and link.index not in tried
        ]
        if not links:
            raise Unreachable("no model worker has the model now", why="it is being loaded again")
        return min(links, key=lambda link: link.busy)

    def render_workers(self) -> str:
        """The gauges of each worker in Prometheus' text format; bounded by ``WORKERS_MAX``."""
        gauges = (
            ("atoll_worker_busy", "Requests with the worker or waiting for it", lambda w: w.busy),
            ("atoll_worker_slots", "Requests it can hold", lambda w: w.slots),
            ("atoll_worker_models", "Models it can answer for", lambda w: len(w.models)),
        )
        lines = []
        for name, text, value in gauges:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
            lines += [
                f'{name}{{worker="{index}"}} {value(link)}'
                for index, link in sorted(self.workers.items())
                if link.is_up
            ]
        return "\n".join([*lines, ""])

    def hold(self, index: int, models: frozenset[bytes]) -> None:
        """A worker can answer for exactly these."""
        if (link := self.workers.get(index)) is not None:
            link.models = models

    def attach(self, link: WorkerLink) -> None:
        """Give requests to a worker, in place of a former one with its index."""
        self.detach(link.index)
        self.workers[link.index] = link

    def detach(self, index: int, *, is_blameless: bool = False) -> None:
        """Fail the requests of a worker that is gone; ``is_blameless``: what it ran is not why."""
        if (link := self.workers.pop(index, None)) is not None:
            link.close()
            link.judge(is_blameless=is_blameless)

    # --- readiness ---------------------------------------------------------------------------------
    @property
    def why_not_ready(self) -> str:
        """Why this site takes no requests; empty if it does."""
        if self._view is None:
            return "the site is starting"
        if self._view.is_draining:
            return "the site is draining"
        if self._view.local and not self.is_worker_up:
            return "the model worker is restarting"
        if self._view.local and not any(model.is_ready for model in self._view.local):
            return "no model is ready"
        return ""


async def _no_figures() -> str:
    return ""
