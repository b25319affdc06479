"""Models at this site: what the catalog wants here, what is fetched, loaded, ready or refused.

A model that crashes its worker is counted in the database and quarantined after ``CRASHES_MAX``, so
that a poison model costs three restarts and not the site.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from agent.foundation.ids import Digest
from agent.foundation.machine import NEVER
from agent.foundation.writes import Delete, Put, Scalar
from agent.site.events import Judged, LoadModel, Noted, Persist, SiteEffect, UnloadModel
from agent.wire.documents import ModelVersion
from agent.wire.inside import model_key

CRASHES_MAX = 3
RETRY_MIN_S, RETRY_MAX_S = 0.5, 30.0

Stage = Literal["fetching", "held", "loading", "ready", "refused"]


@dataclass(slots=True)
class Item:
    """One wanted model version."""

    version: ModelVersion
    stage: Stage = "fetching"
    reason: str = ""
    providers: tuple[str, ...] = ()
    metadata: str = ""
    service_us: int = 0
    failures: int = 0
    retry_at: float = 0.0
    unable: str = ""
    """What its deployment asks for and this site has not got."""


NOTHING: Mapping[bytes, str] = MappingProxyType({})


class Shelf:
    """Keeps the set of loaded models equal to the set of wanted ones."""

    def __init__(
        self,
        is_held: Callable[[Digest], bool],
        fetch: Callable[[ModelVersion], None],
        crashes: dict[bytes, int],
        judged: Callable[[ModelVersion], Judged | None] = lambda _: None,
    ) -> None:
        """``crashes``: by model key, as read from the database; ``judged``: by what a version is."""
        self._judged = judged
        self._is_held, self._fetch, self._crashes = is_held, fetch, crashes
        self._has_worker = False
        self.items: dict[bytes, Item] = {}

    def want(
        self, versions: Sequence[ModelVersion], now: float, unable: Mapping[bytes, str] = NOTHING
    ) -> list[SiteEffect]:
        """The catalog wants exactly these here; ``unable``: why some cannot be served by this site."""
        wanted = {model_key(v.name, v.version): v for v in versions}
        gone = [key for key in self.items if key not in wanted]
        effects: list[SiteEffect] = [
            UnloadModel(key) for key in gone if self.items.pop(key).stage in ("loading", "ready")
        ]
        for key, version in wanted.items():
            known = self.items.get(key)
            if known is not None and known.version.manifest == version.manifest:
                known.version = version
                continue
            if known is not None and known.stage in ("loading", "ready"):
                effects.append(UnloadModel(key))
            self.items[key] = Item(version)
        for key, item in self.items.items():
            if key in unable and item.unable != unable[key]:
                if item.stage in ("loading", "ready"):
                    effects.append(UnloadModel(key))
                item.stage, item.reason = "refused", unable[key]
            elif item.unable and key not in unable:
                item.stage, item.reason = "fetching", ""
            item.unable = unable.get(key, "")
        return [*effects, *self.advance(now)]

    def advance(self, now: float) -> list[SiteEffect]:
        """Move every item on as far as it will go."""
        effects: list[SiteEffect] = []
        for key, item in self.items.items():
            if item.stage == "fetching":
                if self._is_held(item.version.manifest):
                    item.stage, item.reason = "held", ""
                elif now >= item.retry_at:
                    item.retry_at = NEVER
                    item.reason = item.reason or "being fetched"
                    self._fetch(item.version)
            if item.stage == "held":
                if self._crashes.get(key, 0) >= CRASHES_MAX:
                    item.stage = "refused"
                    item.reason = (
                        f"quarantined: it crashed the model worker {CRASHES_MAX} times; push a "
                        "repaired version under a new version name, or try this one again with "
                        f"atoll model release {item.version.name}:{item.version.version}"
                    )
                elif self._has_worker:
                    item.stage, item.reason = "loading", "being loaded"
                    effects.append(LoadModel(key, item.version, self._judged(item.version)))
        return effects

    def fetch_failed(self, digest: Digest, reason: str, now: float) -> None:
        """Try again later: the site that holds it may be back by then."""
        for item in self.items.values():
            if item.version.manifest == digest and item.stage == "fetching":
                item.failures += 1
                item.reason = f"cannot be fetched: {reason}"[:400]
                item.retry_at = now + min(RETRY_MIN_S * 2.0 ** min(item.failures, 8), RETRY_MAX_S)

    def hasten(self, now: float) -> None:
        """There is room again: try soon what could not be fetched."""
        for item in self.items.values():
            if item.stage == "fetching" and item.retry_at != NEVER:
                item.retry_at = min(item.retry_at, now + RETRY_MIN_S)

    def ready(
        self, key: bytes, providers: tuple[str, ...], metadata: str, service_us: int
    ) -> list[SiteEffect]:
        """The worker has it."""
        item = self.items.get(key)
        if item is None:
            return [UnloadModel(key)]
        item.stage, item.reason = "ready", ""
        item.providers, item.metadata, item.service_us = providers, metadata, service_us
        version = item.version
        return [Noted(f"model {version.name}:{version.version} is ready on {providers[0]}")]

    def failed(self, key: bytes, reason: str, *, is_crash: bool) -> list[SiteEffect]:
        """A worker refused it, or died while it was loading or running it.

        After a crash other workers may hold it still; what is lost ``worker_down`` says.
        """
        item = self.items.get(key)
        if item is None:
            return []
        effects: list[SiteEffect] = []
        name = f"{item.version.name}:{item.version.version}"
        reason = reason[:400]
        if is_crash:
            self._crashes[key] = self._crashes.get(key, 0) + 1
            row: dict[str, Scalar] = {"key": key, "crashes": self._crashes[key], "reason": reason}
            effects.append(Persist((Put("models", row),)))
            if self._crashes[key] >= CRASHES_MAX and item.stage in ("loading", "ready"):
                item.stage = "held"
                effects.append(UnloadModel(key))
        else:
            item.stage, item.reason = "refused", reason
        effects.append(Noted(f"model {name}: {reason}", is_warning=True))
        return effects

    def release(self, key: bytes, now: float) -> list[SiteEffect]:
        """The operator wants a refused or quarantined model tried again: its crashes are forgotten."""
        item = self.items.get(key)
        if item is None:
            return []
        effects: list[SiteEffect] = []
        if self._crashes.pop(key, 0):
            effects.append(Persist((Delete("models", (key,)),)))
        if item.stage == "refused" and not item.unable:
            item.stage, item.reason = "held", "released by the operator"
        return [*effects, *self.advance(now)]

    def retry(self, key: bytes) -> None:
        """Fetch or load anew at the next ``want`` or ``advance`` what failed; a quarantine stays."""
        item = self.items.get(key)
        if item is None:
            return
        if item.stage == "refused" and not item.unable:
            item.stage = "held"
        elif item.stage == "fetching" and item.retry_at != NEVER:
            item.retry_at = 0.0

    def worker_up(self, now: float) -> list[SiteEffect]:
        """A worker waits: load everything that is held."""
        self._has_worker = True
        return self.advance(now)

    def worker_down(
        self, reason: str, lost: Collection[bytes], now: float, *, is_any_up: bool
    ) -> list[SiteEffect]:
        """The sessions of ``lost`` are gone; another worker, if any is up, is to load them."""
        self._has_worker = is_any_up
        for key in lost:
            item = self.items.get(key)
            if item is not None and item.stage in ("loading", "ready"):
                item.stage, item.reason = "held", reason
        return self.advance(now)

    def wake_at(self) -> float:
        """When the next fetch is to be tried again."""
        return min(
            (i.retry_at for i in self.items.values() if i.stage == "fetching"), default=NEVER
        )
