"""What the operator and applications see of models and do with them at this site."""

import asyncio
from collections.abc import Mapping, Sequence

from agent.api.bodies import Json
from agent.daemon.driver import Driver
from agent.daemon.inference import Inference
from agent.daemon.outside import Outside
from agent.foundation.errors import Busy, NotFound, UsageError
from agent.site.events import ModelOverridden, ModelReleased
from agent.site.overrides import ALL
from agent.site.shelf import Item
from agent.site.view import view_of
from agent.wire.documents import ModelVersion
from agent.wire.inside import model_key

LOAD_WAIT_S = 50.0
"""Clients of the protocol give up after 60 s; whoever asks again meanwhile waits for the same load."""
LOADS_MAX = 64
"""Loads waited for at once; each is a task and a caller who holds a connection."""


class ModelDesk:
    """The models of one site."""

    def __init__(self, driver: Driver, outside: Outside, inference: Inference) -> None:
        self._driver, self._outside, self._inference = driver, outside, inference
        self._waiting = 0
        inference.control = self.control

    # --- reading ---------------------------------------------------------------------------------
    def status(self) -> list[Json]:
        """``models`` of ``Operations.status``: what is to be served here, or was unloaded."""
        site = self._driver.site
        rows = [
            {
                "name": item.version.name, "version": item.version.version,
                "state": shown(item.stage), "reason": self._reason(item),
                "digest": item.version.manifest.hex(), "providers": list(item.providers),
            }
            for item in site.shelf.items.values()
        ]  # fmt: skip
        overrides = site.holdings.overrides
        return rows + [
            {
                "name": one.name, "version": one.version, "state": "unloaded",
                "reason": self._decided(one), "digest": one.manifest.hex(), "providers": [],
            }
            for one in site.versions.planned()
            if overrides.is_unloaded(one.name, one.version)
        ]  # fmt: skip

    def models(self) -> list[Json]:
        """See ``Operations.models``."""
        site = self._driver.site
        default = {known.key: known.is_default for known in view_of(site).known}
        every = sorted(site.versions.every().items())
        return [
            {
                "name": version.name, "version": version.version,
                "digest": version.manifest.hex(), "bytes": version.bytes,
                "residency": list(version.residency), "source": version.source,
                "deployed": default.get(model_key(*known), False),
                "sites": self._holders(version),
            }
            for known, version in every
        ]  # fmt: skip

    def _holders(self, version: ModelVersion) -> list[Json]:
        site, key = self._driver.site, model_key(version.name, version.version)
        own, found = site.identity.claims.name, list[Json]()
        if (item := site.shelf.items.get(key)) is not None:
            found.append({
                "name": own, "state": shown(item.stage), "reason": self._reason(item),
                "service_us": item.service_us,
            })  # fmt: skip
        elif site.holdings.overrides.is_unloaded(version.name, version.version):
            found.append({
                "name": own, "state": "unloaded", "reason": self._decided(version),
                "service_us": 0,
            })  # fmt: skip
        for member in site.swim.members().values():
            served = next((one for one in member.record.serving if one.key == key), None)
            identity = site.roll.get(member.site)
            if served is not None and identity is not None and member.state != "left":
                name, state, reason = identity.claims.name, "ready", ""
                if member.state != "alive":
                    state, reason = "waiting", f"the site is {member.state}"
                elif served.is_refused:
                    state, reason = "refused", f"atoll status at {name} says why"
                found.append(
                    {"name": name, "state": state, "reason": reason,
                     "service_us": served.service_us}
                )  # fmt: skip
        return sorted(found, key=lambda row: str(row["name"]))

    def _reason(self, item: Item) -> str:
        return item.reason or self._decided(item.version)

    def _decided(self, version: ModelVersion) -> str:
        decided = self._driver.site.holdings.overrides.of(version.name, version.version)
        return "" if decided is None else str(decided)

    # --- changing --------------------------------------------------------------------------------
    def release(self, model: str) -> Json:
        """See ``Operations.release_model``."""
        name, _, version = model.partition(":")
        key = model_key(name, version)
        item = self._driver.site.shelf.items.get(key)
        if item is None:
            raise NotFound(
                f"this site is not to serve {model!r}",
                mend="name a model and its version as atoll model list shows them",
            )
        before = {
            "name": name, "version": version, "state": shown(item.stage), "reason": item.reason,
        }  # fmt: skip
        self._driver.feed(ModelReleased(key))
        return before

    async def control(self, model: str, who: str, *, is_load: bool) -> None:
        """Load or unload ``name`` or ``name:version``, for ``who``; as ``load`` and ``unload``."""
        name, _, version = model.partition(":")
        if is_load:
            await self._load(name, version or ALL, who)
        else:
            self._driver.site.holdings.check_unloadable(name, version or ALL)
            await self._decide(name, version or ALL, who, is_served=False)
        await self._inference.show()

    async def _load(self, name: str, version: str, who: str) -> None:
        """Serve it here from now on; returns when it is ready.

        Raises:
            NotFound: the catalog does not have it.
            Refused: its residency label keeps it away from here.
            UsageError: it cannot be loaded; says why.
            Busy: its bytes cannot be fetched now, it needs longer, or too many wait already.
        """
        shelf = self._driver.site.shelf
        targets = self._driver.site.holdings.check_loadable(name, version)
        if self._waiting >= LOADS_MAX:
            raise Busy("too many loads are waited for", why=f"the bound is {LOADS_MAX}")
        failures = {key: item.failures for key, item in shelf.items.items()}
        changed = asyncio.Event()
        unwatch = self._outside.watch_shelf(changed.set)
        self._waiting += 1
        try:
            async with asyncio.timeout(LOAD_WAIT_S):
                await self._decide(name, version, who, is_served=True)
                while not self._are_ready(targets, failures):
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            raise Busy(
                f"model {name!r} is not ready after {LOAD_WAIT_S:g} s",
                why="; ".join(
                    item.reason
                    for one in targets
                    if (item := shelf.items.get(model_key(one.name, one.version))) is not None
                ),
                mend="it is still being tried; atoll status shows how it is",
            ) from None
        finally:
            self._waiting -= 1
            unwatch()

    def _are_ready(self, targets: Sequence[ModelVersion], failures: Mapping[bytes, int]) -> bool:
        """Whether all are; raises what ``_load`` raises if one will not be."""
        are_ready = True
        for one in targets:
            key, what = (
                model_key(one.name, one.version),
                f"model {one.name!r} version {one.version!r}",
            )
            item = self._driver.site.shelf.items.get(key)
            if item is None:
                raise Busy(f"{what} is not served here", why=self._decided(one))
            if item.stage == "refused":
                raise UsageError(f"{what} cannot be loaded", why=item.reason)
            if item.stage == "fetching" and item.failures > failures.get(key, 0):
                raise Busy(f"{what} is not here yet", why=item.reason, mend="it is tried again")
            are_ready = are_ready and item.stage == "ready"
        return are_ready

    async def _decide(self, name: str, version: str, who: str, *, is_served: bool) -> None:
        token, decided = self._outside.expect()
        self._driver.feed(ModelOverridden(token, name, version, is_served, who))
        await decided


def shown(stage: str) -> str:
    """A stage of the shelf as the operator sees it."""
    return "loading" if stage == "held" else stage
