"""What this site says of itself, and when a change is worth a new record.

Rule: ``sequence`` rises with every record, ``incarnation`` only at start and to refute. Addresses,
status, models and catalog are told at once; load and service times only when they matter.
"""

from dataclasses import fields, replace
from operator import attrgetter
from typing import Literal

from agent.foundation.machine import NEVER
from agent.foundation.notary import Notary
from agent.membership.events import LocalChanged
from agent.membership.settings import Settings
from agent.wire.records import STATEMENTS, Served, Signed, SiteRecord

SEQUENCE_MAX = 2**63 - 1
_SAID = attrgetter(
    *(one.name for one in fields(SiteRecord) if one.name not in ("sequence", "coordinate"))
)
"""What a record says but for its number and its place."""
_MEASURED = attrgetter("load"), attrgetter("serving"), attrgetter("trials")


class OwnRecord:
    """The current record of this site, signed, and the changes that wait to be told."""

    def __init__(self, record: SiteRecord, notary: Notary, settings: Settings, now: float) -> None:
        """``record`` is the first one of this boot: sequence = incarnation = boot epoch << 32."""
        self._notary, self._settings = notary, settings
        self._published_at = now
        self._load_at = float("-inf")
        self._due_at = NEVER
        self._wanted = record
        self.record = record
        self.signed = self._sign(record)

    @property
    def due_at(self) -> float:
        """When waiting changes are to be published."""
        return self._due_at

    def change(self, change: LocalChanged, now: float) -> None:
        """Take in a change; it is published at ``due_at``."""
        wanted = self._wanted
        self._wanted = replace(
            wanted,
            status=wanted.status if change.status is None else change.status,
            endpoint=wanted.endpoint if change.endpoint is None else change.endpoint,
            load=wanted.load if change.load is None else change.load,
            capacity=wanted.capacity if change.capacity is None else change.capacity,
            serving=wanted.serving if change.serving is None else change.serving,
            catalog=wanted.catalog if change.catalog is None else change.catalog,
            trials=wanted.trials if change.trials is None else change.trials,
        )
        if self._is_urgent():
            self._due_at = max(now, self._published_at + self._settings.record_interval_s)
        elif self._is_notable():
            self._due_at = max(now, self._load_at + self._settings.load_interval_s)
        else:
            self._due_at = NEVER

    def publish(self, now: float) -> None:
        """Make and sign the next record from all waiting changes."""
        if any(told(self._wanted) != told(self.record) for told in _MEASURED):
            self._load_at = now
        self._next(self.record.sequence + 1, self.record.incarnation, now)

    def refute(self, above: int, now: float) -> None:
        """Raise the incarnation beyond ``above`` and beyond every sequence used so far."""
        sequence = max(self.record.sequence, above) + 1
        assert sequence <= SEQUENCE_MAX, "2**32 records in one boot"
        self._next(sequence, sequence, now)

    def move(self, coordinate: bytes, now: float) -> bool:
        """Tell a new coordinate; True if that made a record, False if one is due anyway."""
        self._wanted = replace(self._wanted, coordinate=coordinate)
        if self._due_at != NEVER:
            return False
        self._next(self.record.sequence + 1, self.record.incarnation, now)
        return True

    def leave(self, now: float) -> None:
        """Say goodbye: the last record of this life."""
        status: Literal["left"] = "left"
        self._wanted = replace(self._wanted, status=status)
        self.refute(self.record.sequence, now)

    def _next(self, sequence: int, incarnation: int, now: float) -> None:
        record = replace(self._wanted, sequence=sequence, incarnation=incarnation)
        self.record = self._wanted = record
        self.signed = self._sign(record)
        self._published_at, self._due_at = now, NEVER

    def _sign(self, record: SiteRecord) -> Signed:
        body = STATEMENTS.pack(record)
        return Signed(body, self._notary.sign(body))

    def _is_urgent(self) -> bool:
        now, wanted = self.record, self._wanted
        return (
            now.status != wanted.status
            or now.endpoint != wanted.endpoint
            or now.capacity != wanted.capacity
            or now.catalog != wanted.catalog
            or _named(now) != _named(wanted)
            or _staged(now) != _staged(wanted)
        )

    def _is_notable(self) -> bool:
        if abs(self._wanted.load - self.record.load) >= self._settings.load_step:
            return True
        if self._wanted.trials != self.record.trials:  # they count in powers of two
            return True
        pairs = zip(self.record.serving, self._wanted.serving, strict=True)
        return any(self._is_slower_or_faster(told, is_) for told, is_ in pairs)

    def _is_slower_or_faster(self, told: Served, current: Served) -> bool:
        change = abs(current.service_us - told.service_us)
        return change > self._settings.service_step * max(1, told.service_us)


def is_quiet(before: SiteRecord, after: SiteRecord) -> bool:
    """Whether ``after`` says nothing new but where its site lies: worth a sync, not a rumor."""
    return bool(_SAID(before) == _SAID(after))


def _staged(record: SiteRecord) -> list[tuple[bytes, int]]:
    """How far rollouts are; how many requests that took is another matter."""
    return [(trial.rollout, trial.stage) for trial in record.trials]


def _named(record: SiteRecord) -> list[tuple[bytes, bool]]:
    """What is served or refused; how fast is another matter."""
    return [(served.key, served.is_refused) for served in record.serving]
