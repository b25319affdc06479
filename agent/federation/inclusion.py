"""Was this site's update counted? The answer from bytes that this site can check itself.

The register names the last round's contributions by digest, each of them names the one before: from the
committed value on, every link is hashed here and compared with what this site made. Whoever runs
the aggregation can leave an update out (then it shows), but cannot claim to have counted it.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from agent.federation.lateness import made_for
from agent.federation.participant import Update
from agent.federation.value import Contribution, Contributions, JobValue, blob_digest
from agent.foundation.errors import Malformed
from agent.foundation.ids import Digest, SiteId
from agent.wire.schema import unpack

ROUNDS_MAX = 10_000
"""As many as a job may have."""

Standing = Literal["counted", "not counted", "open"]


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one update of this site."""

    round: int
    update: Digest
    samples: int
    standing: Standing
    """``open``: no round that could have counted it is committed yet, or a later one still may."""
    among: int
    """Updates that the round counted; 0 while open."""
    epoch: int
    aggregator: SiteId | None
    counted_in: int
    """The round that counted it, which may be a later one; 0: none."""


@dataclass(frozen=True, slots=True)
class Inclusion:
    """All updates of this site, and what is wrong with the rounds that should have counted them."""

    rows: tuple[Row, ...]
    findings: tuple[str, ...]
    """Empty: every committed round is what its digest says, and follows from the one before."""
    rounds: int
    """Committed rounds that were checked."""


def verify(
    me: SiteId,
    value: JobValue | None,
    read: Callable[[Digest], bytes | None],
    updates: Sequence[Update],
    staleness_max: int = 0,
) -> Inclusion:
    """Follow the committed rounds back to the first, and look for this site's updates in them.

    Args:
        me: whose updates.
        value: the newest value that a majority of the committee has confirmed; None: nobody began.
        read: the bytes of a blob; None if it is not here.
        updates: what this site made, by its own records; the last of each round.
        staleness_max: of the job; how many rounds late an update may be counted.
    """
    chain, findings = _chain(value, read)
    committed = 0 if value is None else value.round
    own = {update.round: update for update in updates}
    seen: Counter[tuple[str, Digest]] = Counter()
    counted: dict[Digest, int] = {}
    for number, content in sorted(chain.items()):
        for entry in content.entries:
            # Two sites with the same data may make the same bytes.
            seen[entry.region or entry.site.hex(), entry.update] += 1
            if entry.site == me and not entry.region:
                counted.setdefault(entry.update, number)
                update = own.get(made_for(entry, number))
                findings += _compared(number, content, entry, update, staleness_max)
    is_training = value is not None and value.state == "running"
    decided = committed - staleness_max if is_training else committed
    rows = tuple(
        _row(update, counted.get(update.digest, 0), chain, decided)
        for update in sorted(updates, key=lambda one: one.round)
    )
    findings += [
        f"update {update.hex()[:16]} was counted {times} times"
        for (_, update), times in seen.items()
        if times > 1
    ]
    return Inclusion(rows, tuple(findings), len(chain))


@dataclass(frozen=True, slots=True)
class RegionInclusion:
    """Which round of the whole job has counted each round of a region."""

    counted_in: Mapping[int, int]
    findings: tuple[str, ...]
    """Empty: the whole job has counted what the region has made, each round of it once."""


def verify_region(
    name: str,
    whole: JobValue | None,
    region: JobValue | None,
    read: Callable[[Digest], bytes | None],
) -> RegionInclusion:
    """Follow both chains, the whole job's and the region's, and compare what one says of the other.

    Args:
        name: of the region.
        whole: the newest confirmed value of the whole job.
        region: of the region's register.
        read: the bytes of a blob; None if it is not here.
    """
    rounds, findings = _chain(whole, read)
    made, _ = _chain(region, read)  # its own findings are ``verify``'s
    counted_in: dict[int, int] = {}
    # Of rounds that were lost with the region's majority nothing is left; others bear their numbers now.
    was_recovered = region is not None and region.recoveries > 0
    for number, content in sorted(rounds.items()):
        for entry in content.entries:
            if entry.region != name:
                continue
            for one in range(entry.after + 1, min(entry.until, max(made, default=0)) + 1):
                if one in counted_in and not was_recovered:
                    findings += [f"round {one} of the region was counted twice"]
                counted_in[one] = number
            last = made.get(entry.until)
            if last is not None and last.parameters != entry.update and not was_recovered:
                findings += [f"round {number} counts of the region what it has not made"]
    for number, content in sorted(made.items()):
        started = rounds.get(content.above - 1)
        if content.above > 1 and started is not None and started.parameters != content.base:
            findings += [f"round {number} of the region does not start from the whole job's"]
    return RegionInclusion(counted_in, tuple(findings))


def _chain(
    value: JobValue | None, read: Callable[[Digest], bytes | None]
) -> tuple[dict[int, Contributions], list[str]]:
    rounds: dict[int, Contributions] = {}
    if value is None:
        return rounds, []
    name, number = value.contributions, value.round
    parameters = value.parameters if value.above is None or value.alone else None
    while name is not None and len(rounds) < ROUNDS_MAX:
        content = _named(name, read(name))
        if isinstance(content, str):
            return rounds, [f"round {number}: {content}"]
        is_next = parameters is None or content.parameters == parameters
        if (content.job, content.round) != (value.job, number) or not is_next:
            return rounds, [f"round {number}: what comes after does not follow from it"]
        rounds[number] = content
        # A region's round may start from the whole job's parameters; see ``verify_region``.
        parameters = None if content.above else content.base
        name, number = content.previous, number - 1
    return rounds, [f"round {number}: nothing names what it counted"] if number > 0 else []


def _named(name: Digest, data: bytes | None) -> Contributions | str:
    if data is None:
        return "what it counted is not here yet"
    if blob_digest(data) != name:
        return "what it counted is not what the digest says"
    try:
        return unpack(Contributions, data)
    except Malformed as error:
        return f"what it counted cannot be read ({error.what})"


def _row(update: Update, counted_in: int, chain: Mapping[int, Contributions], decided: int) -> Row:
    """``decided``: updates for rounds up to this one can be counted no more."""
    content = chain.get(counted_in or update.round)
    standing: Standing = "counted" if counted_in else "open"
    if not counted_in and update.round <= decided:
        standing = "not counted"
    if content is None or standing == "open":
        return Row(update.round, update.digest, update.samples, standing, 0, 0, None, 0)
    return Row(
        update.round, update.digest, update.samples, standing, len(content.entries), content.epoch,
        content.aggregator, counted_in,
    )  # fmt: skip


def _compared(
    number: int,
    content: Contributions,
    entry: Contribution,
    update: Update | None,
    staleness_max: int,
) -> list[str]:
    """What a round says of this site, beside what this site knows."""
    if not 0 <= number - made_for(entry, number) <= staleness_max:
        return [f"round {number} counts an update for round {entry.round}, which the job forbids"]
    if update is None or update.digest != entry.update:
        return [f"round {number} counts an update that this site has no record of"]
    found = []
    if update.samples != entry.samples:
        found.append(
            f"round {number} counts {entry.samples} samples of this site, which had {update.samples}"
        )
    if update.base != (entry.started_from or content.base):
        found.append(f"round {number} counts an update that started from other parameters")
    return found
