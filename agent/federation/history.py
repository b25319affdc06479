"""Which updates every committed round counted, as this site knows it.

The register names the last round's contributions by digest, and each of them names the one before:
a site that was away follows the chain back and ends with the same history as everybody else.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agent.federation.desk import Desk, Surroundings
from agent.federation.events import FetchBlob, Label, Persist, ReadBlob
from agent.federation.value import Contributions, JobValue, blob_digest
from agent.foundation.errors import Malformed
from agent.foundation.ids import Digest, SiteId
from agent.foundation.writes import Put, Scalar
from agent.wire.documents import Job
from agent.wire.schema import unpack

RETRY_AFTER_S = 2.0


@dataclass(frozen=True, slots=True)
class Counted:
    """One committed round: who was counted, and how good its base parameters were."""

    contributions: Digest
    content: Contributions

    @property
    def accuracy(self) -> float | None:
        """Accuracy of the round's base parameters, weighted by hold-out sizes; None if unreported."""
        right = total = 0.0
        for entry in self.content.entries:
            metrics = dict(entry.metrics)
            if "accuracy" in metrics and metrics.get("holdout", 0.0) > 0:
                right += metrics["accuracy"] * metrics["holdout"]
                total += metrics["holdout"]
        return right / total if total else None


class History:
    """Follows the chain of contributions back to the first round."""

    def __init__(
        self,
        job: Job,
        desk: Desk,
        surroundings: Surroundings,
        sources: Callable[[], tuple[SiteId, ...]],
        settled: Callable[[Contributions], None],
    ) -> None:
        """``settled`` is called once for each round whose counted set has become known."""
        self._job, self._desk, self._surroundings = job, desk, surroundings
        self._sources, self._settled = sources, settled
        self._rounds: dict[int, Counted] = {}
        self._seeking: Digest | None = None
        self._retry_at: float | None = None

    @property
    def rounds(self) -> Mapping[int, Counted]:
        """Committed rounds known here, by number."""
        return self._rounds

    def restore(self, counted: Counted) -> None:
        """A round read back from this site's database at start."""
        self._rounds[counted.content.round] = counted

    def follow(self, value: JobValue) -> None:
        """The register names ``value.contributions``: have it, and what it links to."""
        if value.contributions is None or value.round in self._rounds or self._seeking is not None:
            return
        self._seek(value.contributions)

    def record(self, digest: Digest, content: Contributions, now: float) -> None:
        """A round's counted set has become known (also called by the aggregator that made it)."""
        if content.round in self._rounds:
            return
        self._rounds[content.round] = Counted(digest, content)
        counted = [
            {
                "site": e.site.hex(),
                "update": e.update.hex(),
                "samples": e.samples,
                **dict(e.metrics),
            }
            for e in content.entries
        ]
        row: dict[str, Scalar] = {
            "job": self._job.id, "round": content.round, "epoch": content.epoch,
            "aggregator": content.aggregator, "parameters": content.parameters,
            "contributions": digest, "counted": json.dumps(counted), "committed_at": self._surroundings.unix_s(now),
        }  # fmt: skip
        self._desk.emit(Persist((Put("rounds", row),)), Label(digest, self._job.residency))
        self._settled(content)

    def blob_arrived(self, digest: Digest) -> None:
        """Go on when the sought contributions are here."""
        if digest == self._seeking:
            self._desk.emit(ReadBlob(digest))

    def blob_missing(self, digest: Digest, now: float) -> None:
        """Try again later: some site that was counted still has it."""
        if digest == self._seeking:
            self._retry_at = now + RETRY_AFTER_S

    def blob_read(self, digest: Digest, data: bytes, now: float) -> None:
        """Take the contributions; the digest already proves that they are the ones named."""
        if digest != self._seeking:
            return
        self._seeking = None
        assert blob_digest(data) == digest
        try:
            content = unpack(Contributions, data)
        except Malformed:
            return  # committed by a newer version of Atoll: the round stands, its details are unreadable
        self.record(digest, content, now)
        if content.previous is not None and content.round - 1 not in self._rounds:
            self._seek(content.previous)

    def woke(self, now: float) -> None:
        """Retry when due."""
        if self._retry_at is not None and now >= self._retry_at and self._seeking is not None:
            self._retry_at = None
            self._seek(self._seeking)

    def wake_at(self) -> float | None:
        """When a retry is due."""
        return self._retry_at

    def _seek(self, digest: Digest) -> None:
        self._seeking = digest
        if self._surroundings.is_held(digest):
            self._desk.emit(ReadBlob(digest))
        else:
            self._desk.emit(FetchBlob(digest, self._sources()))
