"""Which blobs this site keeps, and what each is to it (decided by ``agent.distribution.retention``)."""

from collections import defaultdict
from collections.abc import Callable
from random import Random
from typing import Protocol, assert_never

from agent.catalog.catalog import Catalog
from agent.distribution.retention import (
    Asked,
    Blob,
    Collect,
    Full,
    Leave,
    Look,
    Looked,
    Remove,
    Retention,
    RetentionEvent,
    Sought,
    Standing,
    Stay,
    Told,
)
from agent.federation.events import ForgetBlob
from agent.foundation.errors import Malformed
from agent.foundation.ids import Digest, SiteId, short
from agent.foundation.machine import Woke
from agent.identity.registry import Roll
from agent.membership.swim import Swim
from agent.site.events import CallEnded, GatewayChanged, Noted, SiteEffect
from agent.site.holdings import Holdings
from agent.site.workshop import Workshop
from agent.wire.documents import Key, ModelVersion
from agent.wire.mesh import Call, Have, HaveReply
from agent.wire.records import Endpoint
from agent.wire.residency import is_within

ASKED_MAX = 16
"""Sites asked whether they hold a blob; two are enough."""
ASK_TIMEOUT_S = 5.0
PARTS_MAX = 10_000
"""Of blobs whose fetch has failed; any beyond are found again at the next start."""


class Asking(Protocol):
    """Calls another site; see ``agent.site.relations.Home``."""

    def __call__(
        self,
        site: SiteId | None,
        endpoint: Endpoint,
        message: Call,
        timeout_s: float,
        then: Callable[[CallEnded, float], None],
    ) -> None:
        """Ask, and go on with ``then``."""


class Keeping:
    """The blobs of one site."""

    def __init__(
        self,
        *,
        holdings: Holdings,
        catalog: Catalog,
        workshop: Workshop,
        swim: Swim,
        roll: Roll,
        retention: Retention,
        parts: set[Digest],
        rng: Random,
        emit: Callable[[SiteEffect], None],
        ask: Asking,
    ) -> None:
        """``parts``: blobs of which something is on the disk, as far as is known."""
        self._holdings, self._catalog, self._workshop = holdings, catalog, workshop
        self._swim, self._roll, self._retention, self._rng = swim, roll, retention, rng
        self._parts, self._emit, self._ask = parts, emit, ask
        self._left_label: tuple[str, ...] | None = None
        self._removed: list[Digest] = []

    # --- what happens ----------------------------------------------------------------------------
    def full(self, now: float) -> None:
        """Something did not fit: make room, if that loses nothing."""
        self._step(Full(), now)

    def collect(self, now: float) -> tuple[str, ...]:
        """Remove what nothing names and, of what nobody wants here, the parts; digests in hex."""
        self._removed = []
        self._step(Collect(), now)
        return tuple(digest.hex() for digest in self._removed)

    def sought(self, digests: tuple[Digest, ...], now: float) -> None:
        """Another site asks for these."""
        for digest in digests:
            if digest in self._holdings.held:
                self._step(Sought(digest), now)

    def stored(self, digest: Digest) -> None:
        """The blob is whole."""
        self._parts.discard(digest)

    def failed(self, digest: Digest) -> None:
        """A part of it may have come."""
        if digest not in self._holdings.held and len(self._parts) < PARTS_MAX:
            self._parts.add(digest)

    def woke(self, now: float) -> None:
        """Look, when it is time."""
        self._step(Woke(), now)

    def wake_at(self) -> float:
        """When it is time to look."""
        return self._retention.wake_at()

    # --- what each is ----------------------------------------------------------------------------
    def names(self) -> dict[Digest, list[tuple[str, Standing]]]:
        """What names each blob, here or not: a text for a person, and what it makes of the blob.

        Raises:
            Malformed: a newer version has decided something that this one cannot read, so a blob that
                is missing here may be needed.
        """
        found: dict[Digest, list[tuple[str, Standing]]] = defaultdict(list)
        served = {(i.version.name, i.version.version) for i in self._holdings.shelf.items.values()}
        for item in self._holdings.shelf.items.values():
            version = item.version
            text = f"model {version.name}:{version.version}, {item.stage} here"
            found[version.manifest].append((text, Standing.WANTED))
        versions = [one for one, _ in self._holdings.versions.published()]
        for version in (*versions, *self._catalog.of_kind(ModelVersion)):
            if (version.name, version.version) not in served:
                retired = self._is_retired(version)
                text = f"model {version.name}:{version.version}{', retired' if retired else ''}"
                standing = Standing.UNNAMED if retired else Standing.NAMED
                found[version.manifest].append((text, standing))
        for job, machine in self._workshop.machines.items():
            references = machine.references()
            exported = machine.value.exported if machine.value is not None else None
            for digest in references.needed:
                found[digest].append((f"job {job}", Standing.WANTED))
            for digest in references.named:
                if digest != exported:  # as a model it is above
                    found[digest].append((f"job {job}, ended", Standing.NAMED))
        return found

    def goes_at(self, digest: Digest) -> float:
        """When the blob is to go; ``NEVER`` unless nothing names it."""
        return self._retention.goes_at(digest)

    def _is_retired(self, version: ModelVersion) -> bool:
        entry = self._catalog.get(Key("model", f"{version.name}:{version.version}"))
        body = entry.body if entry is not None else None
        return isinstance(body, ModelVersion) and body.is_retired

    def _blobs(self) -> dict[Digest, Blob]:
        try:
            names = self.names()
        except Malformed:
            return {}  # whatever is here may be needed
        found: dict[Digest, Blob] = {}
        here = set(self._holdings.held)
        if (leaving := self._retention.leaving) is not None:
            here.add(leaving)
        for digest in sorted(here | self._parts):
            standings = (standing for _, standing in names.get(digest, ()))
            found[digest] = Blob(max(standings, default=Standing.UNNAMED), digest in here)
        return found

    # --- carrying out ----------------------------------------------------------------------------
    def _step(self, event: RetentionEvent, now: float) -> None:
        for effect in self._retention.step(event, now):
            match effect:
                case Look():
                    self._step(Looked(self._blobs()), now)
                case Remove(digest, why):
                    self._remove(digest, why, now)
                case Leave(digest):
                    self._leave(digest, now)
                case Stay(digest):
                    self._stay(digest, now)
                case _:
                    assert_never(effect)

    def _remove(self, digest: Digest, why: str, now: float) -> None:
        if self._standing(digest) is Standing.WANTED:  # since it was looked at
            self._stay(digest, now)
            return
        self._parts.discard(digest)
        self._holdings.let_go(digest)
        self._removed.append(digest)
        self._emit(ForgetBlob(digest))
        self._emit(Noted(f"blob {short(digest)} is removed: {why}"))
        self._holdings.shelf.hasten(now)

    def _standing(self, digest: Digest) -> Standing:
        try:
            names = self.names().get(digest, ())
        except Malformed:
            return Standing.WANTED
        return max((standing for _, standing in names), default=Standing.UNNAMED)

    def _leave(self, digest: Digest, now: float) -> None:
        self._left_label = self._holdings.let_go(digest)
        self._emit(GatewayChanged())
        label = self._left_label or ()
        sites = [
            member
            for member in self._swim.members().values()
            if member.state == "alive" and self._may_hold(member.site, label)
        ]
        self._rng.shuffle(sites)
        asked = sites[:ASKED_MAX]
        self._step(Asked(digest, frozenset(member.site for member in asked)), now)
        for member in asked:
            self._ask(
                member.site, member.record.endpoint, Have((digest,)), ASK_TIMEOUT_S,
                self._taker(digest, member.site),
            )  # fmt: skip

    def _taker(self, digest: Digest, site: SiteId) -> Callable[[CallEnded, float], None]:
        def told(ended: CallEnded, now: float) -> None:
            is_held = isinstance(ended.reply, HaveReply) and ended.reply.held == (True,)
            self._step(Told(digest, site, is_held), now)

        return told

    def _stay(self, digest: Digest, now: float) -> None:
        if digest not in self._parts:
            if self._left_label is not None:
                self._holdings.labels.setdefault(digest, self._left_label)
            self._holdings.stored(digest, now)

    def _may_hold(self, site: SiteId, label: tuple[str, ...]) -> bool:
        identity = self._roll.get(site)
        return identity is not None and is_within(
            identity.claims.jurisdiction, label, self._roll.groups
        )
