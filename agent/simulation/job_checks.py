"""Judges what a simulated job left behind; shares no code with the machines that made it.

It sees four things only: what acceptors made durable, what sites wrote to their disks, which messages
and pieces of work a site asked for, and every blob's bytes. From these it decides whether the rounds
are those of one job: without gap, without repeat, each update counted once, each mean of exactly the
updates that were named, each commit fenced by its epoch and made safe before it was made.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from agent.distribution.manifest import build, digest_of, encode
from agent.federation.value import Contribution, Contributions, JobValue
from agent.foundation.ids import Digest, SiteId
from agent.wire.schema import unpack

ASKS_PER_SECOND_MAX = 30
"""Of one kind from one site to one other: far above any need, far below what a ping-pong makes."""
EFFECTS_AT_ONCE_MAX = 200
"""At one site at one instant, beside a few for each other site."""


def named(data: bytes) -> Digest:
    """The digest of a blob of one chunk."""
    return digest_of(encode(build([data])))


def mean_of(
    base: Digest, updates: list[tuple[Digest, int, Digest | None]], carried: Digest | None
) -> bytes:
    """The pretended aggregation: its result names exactly what went into it.

    Args:
        base: the round's parameters.
        updates: each with its weight, and older parameters that it started from.
        carried: what the outer optimizer left in the round before.
    """
    parts = [u + weight.to_bytes(8, "big") + (older or b"") for u, weight, older in sorted(updates)]
    return b"mean\0" + sha256(base + b"".join(parts) + (carried or b"")).digest()


def carried_of(mean: bytes) -> bytes:
    """What the pretended outer optimizer leaves with a mean."""
    return b"carried\0" + sha256(mean).digest()


def weight_of(samples: int, late_by: int) -> int:
    """The largest whole number whose square, times the rounds, is no more than that of the samples."""
    weight = 0
    for bit in reversed(range(samples.bit_length())):
        if (weight | 1 << bit) ** 2 * (1 + late_by) <= samples**2:
            weight |= 1 << bit
    return max(1, weight)


@dataclass(frozen=True, slots=True)
class Chosen:
    """A register value that a majority of the committee had made durable under one ballot."""

    taken: Mapping[SiteId, float]
    """When each acceptor of that majority took it (its disk may have been slower)."""
    ballot: tuple[int, bytes]
    value: JobValue
    holders: int
    """Committee disks that held every blob which ``value`` names, at this moment."""
    committee: int
    """How many sites the committee had."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A site closed or forgot its update for ``round`` when it had read ``read`` committed rounds."""

    site: int
    round: int
    read: int
    base: Digest
    """What it had started from."""


@dataclass(frozen=True, slots=True)
class Cut:
    """While it lasted ``minority`` could not reach a majority of the committee."""

    began_at: float
    ended_at: float
    minority: frozenset[SiteId]


@dataclass(slots=True)
class Evidence:
    """What a run left behind."""

    committee: tuple[SiteId, ...]
    rounds: int
    staleness_max: int = 0
    has_outer: bool = False
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    """Every blob that ever was."""
    updates: dict[Digest, tuple[SiteId, int, Digest, int]] = field(default_factory=dict)
    """Updates by digest: whose, for which round, from which base, how many samples."""
    believed: list[tuple[int, JobValue]] = field(default_factory=list)
    """Values that sites went on from, as their rows tell."""
    told: list[tuple[int, JobValue]] = field(default_factory=list)
    """Ends that sites have taken from a tombstone."""
    proposed: list[JobValue] = field(default_factory=list)
    """Every value that was ever sent in an Accept."""
    chosen: list[Chosen] = field(default_factory=list)
    histories: dict[int, dict[int, Mapping[str, Any]]] = field(default_factory=dict)
    """Durable rows of table ``rounds`` by site and round."""
    handed_over: list[tuple[int, int, int]] = field(default_factory=list)
    """Generation of a committee that was put in place, its sites that held all that the register named,
    and how many it has."""
    dropped: list[Dropped] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    invitations: set[tuple[int, SiteId]] = field(default_factory=set)
    """(epoch, site) of every site that acted as the aggregator."""
    unheld: list[str] = field(default_factory=list)
    """Work on blobs that were not there."""
    loops: list[str] = field(default_factory=list)
    """Unbounded work at one instant, or too much of it in a second."""
    after_the_end: list[str] = field(default_factory=list)
    """What sites did after they had seen the end of the job."""
    unfinished: list[str] = field(default_factory=list)
    """Sites for which the job was not over long after all faults had ended."""
    buried: int = 0
    """Tombstones that were put up."""
    is_cancelled: bool = False
    """The operator wants none of it: nothing has to be kept."""
    leftovers: list[str] = field(default_factory=list)
    """Blobs that still lay about when nothing needed them."""
    region: str = ""
    """Whose, if it is not the whole job's."""
    regions: dict[str, "Evidence"] = field(default_factory=dict)
    """Of the whole job's regions."""


def violations(evidence: Evidence) -> list[str]:
    """Every broken rule, as sentences; empty if the job was one job."""
    found = [
        *_fencing(evidence),
        *_one_history(evidence),
        *_counting(evidence),
        *_sites_agree(evidence),
        *_beliefs(evidence),
        *_told(evidence),
        *_cuts(evidence),
        *_dropped(evidence),
        *_handed_over(evidence),
    ]
    found += evidence.unheld
    found += evidence.loops
    found += evidence.after_the_end
    found += evidence.unfinished
    return found


def contents(evidence: Evidence) -> dict[Digest, Contributions]:
    """Every contributions blob that a proposed value names, by digest."""
    names = {value.contributions for value in evidence.proposed} - {None}
    return {
        name: unpack(Contributions, evidence.blobs[name])
        for name in sorted(name for name in names if name is not None)
        if name in evidence.blobs
    }


def _fencing(evidence: Evidence) -> Iterator[str]:
    """One aggregator an epoch, and only its own rounds are committed in it."""
    aggregators: defaultdict[int, set[SiteId]] = defaultdict(set)
    for choice in evidence.chosen:
        aggregators[choice.value.epoch].add(choice.value.aggregator)
    for epoch, site in evidence.invitations:
        aggregators[epoch].add(site)
    for epoch, sites in sorted(aggregators.items()):
        if len(sites) > 1:
            yield f"epoch {epoch} had {len(sites)} aggregators"
    known = contents(evidence)
    # Of the values that name one result, the one of the lowest epoch tells who committed it.
    falling = sorted(evidence.proposed, key=lambda value: -value.epoch)
    first = {value.contributions: value for value in falling if value.contributions is not None}
    chosen = {choice.value.contributions for choice in evidence.chosen}
    for name, value in first.items():
        if name not in chosen or name not in known:
            continue
        content = known[name]
        if (content.epoch, content.aggregator) != (value.epoch, value.aggregator):
            yield (
                f"round {content.round} of epoch {content.epoch} was committed in epoch "
                f"{value.epoch}: not fenced"
            )


def _one_history(evidence: Evidence) -> Iterator[str]:
    """Chosen values, in the order of their ballots, only move forward, one round at a time.

    But for a recovery: rounds whose parameters were lost with the majority are made anew.
    """
    ordered = sorted(evidence.chosen, key=lambda choice: choice.ballot)
    last: JobValue | None = None
    results: dict[tuple[int, ...], tuple[Digest | None, Digest | None]] = {}
    for choice in ordered:
        value = choice.value
        if last is not None and value.recoveries > last.recoveries:
            last = None
            results.clear()
        if last is not None and (value.round, value.epoch) < (last.round, last.epoch):
            yield f"the register went back from round {last.round} to {value.round}"
        if last is not None and value.round == last.round and value.epoch < last.epoch:
            yield f"the epoch went back from {last.epoch} to {value.epoch}"
        result = (value.parameters, value.contributions)
        if value.parameters is not None:
            up = value.above
            above = () if up is None else (up.recoveries, up.round)
            known = results.setdefault((value.round, *above), result)
            if known != result:
                yield f"round {value.round} was committed twice, with different results"
        if value.round > evidence.rounds:
            yield f"round {value.round} of a job of {evidence.rounds} rounds"
        if choice.holders <= choice.committee // 2 and not evidence.is_cancelled:
            yield (
                f"round {value.round} was committed while {choice.holders} of "
                f"{choice.committee} committee disks held what it names"
            )
        last = value


def chain(evidence: Evidence) -> tuple[dict[int, tuple[Digest, Contributions]], list[str]]:
    """The committed rounds by number, followed back from the last chosen value."""
    if not evidence.chosen:
        return {}, []
    last = max(evidence.chosen, key=lambda choice: choice.ballot).value
    rounds: dict[int, tuple[Digest, Contributions]] = {}
    name, expected = last.contributions, last.round
    found: list[str] = []
    while name is not None:
        data = evidence.blobs.get(name)
        if data is None:
            found.append(f"nobody ever had the contributions of round {expected}")
            break
        content = unpack(Contributions, data)
        if content.round != expected:
            found.append(f"round {expected} is followed back to round {content.round}")
            break
        rounds[content.round] = (name, content)
        name, expected = content.previous, expected - 1
    if not found and expected != 0:
        found.append(f"the chain of rounds ends at round {expected}, not at the start")
    return rounds, found


def _counting(evidence: Evidence) -> Iterator[str]:
    rounds, found = chain(evidence)
    yield from found
    seen: dict[Digest, int] = {}
    whose: set[tuple[SiteId, int]] = set()
    for number, (_, content) in sorted(rounds.items()):
        sites = [entry.region or entry.site for entry in content.entries]
        if len(set(sites)) != len(sites):
            yield f"round {number} counts a site twice"
        for entry in content.entries:
            if entry.update in seen:
                yield f"an update was counted in round {seen[entry.update]} and in round {number}"
            seen[entry.update] = number
            made_for, base = entry.round or number, entry.started_from or content.base
            if entry.region:
                yield from _of_region(evidence, number, entry, made_for, base)
                continue
            origin = evidence.updates.get(entry.update)
            if origin != (entry.site, made_for, base, entry.samples):
                yield f"round {number} counts an update that is not its site's for that round"
            if not 0 <= number - made_for <= evidence.staleness_max:
                yield f"round {number} counts an update of round {made_for}"
            if (entry.site, made_for) in whose:
                yield f"two updates of one site for round {made_for} were counted"
            whose.add((entry.site, made_for))
        before = rounds.get(number - 1)
        yield from _made(evidence, number, content, None if before is None else before[1])


def _of_region(
    evidence: Evidence, number: int, entry: Contribution, made_for: int, base: Digest
) -> Iterator[str]:
    """A region's update is what its rounds from the first to the last of them have made."""
    what = f"round {number} counts of {entry.region} what"
    rounds, _ = chain(evidence.regions[entry.region])
    first, last = rounds.get(entry.after + 1), rounds.get(entry.until)
    if first is None or last is None:
        yield f"{what} it has not committed"
        return
    if last[1].parameters != entry.update or first[1].base != base:
        yield f"{what} its rounds have not made"
    if sum(one.samples for one in last[1].entries) != entry.samples:
        yield f"{what} weighs otherwise"
    if first[1].above not in (0, made_for):
        yield f"{what} started from round {first[1].above - 1}, not {made_for - 1}"
    if not 0 <= number - made_for <= evidence.staleness_max:
        yield f"{what} was made for round {made_for}"
    whole, _ = chain(evidence)
    for other, (_, content) in whole.items():
        for counted in content.entries:
            is_other = (other, counted) != (number, entry) and counted.region == entry.region
            if is_other and counted.after < entry.until and entry.after < counted.until:
                yield f"{what} round {other} counts, too"


def _made(
    evidence: Evidence, number: int, content: Contributions, before: Contributions | None
) -> Iterator[str]:
    """What the round made of what it counted."""
    weighed = [
        (e.update, weight_of(e.samples, number - (e.round or number)), e.started_from)
        for e in content.entries
    ]
    mean = mean_of(content.base, weighed, None if before is None else before.carried)
    if content.parameters != named(mean):
        yield f"the parameters of round {number} are not the mean of what it counts"
    if content.above:
        pass  # of the whole job: judged where the whole job counts it
    elif before is not None and before.parameters != content.base:
        yield f"round {number} starts from other parameters than round {number - 1} ended with"
    carries = evidence.has_outer and number < evidence.rounds
    if content.carried != (named(carried_of(mean)) if carries else None):
        yield f"round {number} leaves to the next what is not its own optimizer's"


def _sites_agree(evidence: Evidence) -> Iterator[str]:
    rounds, _ = chain(evidence)
    for site, rows in sorted(evidence.histories.items()):
        for number, row in sorted(rows.items()):
            if number not in rounds:
                yield f"site {site} has a round {number} that was never committed"
                continue
            name, content = rounds[number]
            counted = {(one["site"], one["update"]) for one in json.loads(row["counted"])}
            if (
                row["contributions"] != name
                or row["parameters"] != content.parameters
                or row["epoch"] != content.epoch
                or row["aggregator"] != content.aggregator
                or counted != {(e.site.hex(), e.update.hex()) for e in content.entries}
            ):
                yield f"site {site} has another round {number} than was committed"


def _beliefs(evidence: Evidence) -> Iterator[str]:
    """Nobody goes on from a value that no majority of the committee has on disk, or goes back."""
    chosen = {choice.value for choice in evidence.chosen}
    last: dict[int, JobValue] = {}
    for site, value in evidence.believed:
        before = last.get(site, value)
        if value.epoch < before.epoch or value.round < before.round:
            yield (
                f"site {site} went back from round {before.round} of epoch {before.epoch} to round "
                f"{value.round} of epoch {value.epoch}"
            )
        last[site] = value
        if value not in chosen:
            yield (
                f"site {site} went on from round {value.round} of epoch {value.epoch}, which no "
                "majority had"
            )


def _told(evidence: Evidence) -> Iterator[str]:
    """What a tombstone says is how the job has ended."""
    ends = {
        (c.value.state, c.value.round, c.value.exported, c.value.exported or c.value.parameters)
        for c in evidence.chosen
    }
    for site, value in evidence.told:
        end = (value.state, value.round, value.exported, value.exported or value.parameters)
        if end not in ends:
            yield f"site {site} was told that the job has {value.state} with round {value.round}"


def _cuts(evidence: Evidence) -> Iterator[str]:
    """What a proposer cut off from the majority sends is taken by its own side alone."""
    for cut in evidence.cuts:
        for choice in evidence.chosen:
            owner = SiteId(choice.ballot[1][:32])
            across = [at for site, at in choice.taken.items() if site not in cut.minority]
            if owner in cut.minority and any(cut.began_at < at < cut.ended_at for at in across):
                yield f"a minority committed round {choice.value.round}"


def _handed_over(evidence: Evidence) -> Iterator[str]:
    for generation, holders, size in evidence.handed_over:
        if holders <= size // 2 and not evidence.is_cancelled:
            yield (
                f"committee {generation} was put in place while {holders} of {size} committee disks "
                "hold what the register names"
            )


def _dropped(evidence: Evidence) -> Iterator[str]:
    begun = {(c.value.round + 1, c.value.parameters) for c in evidence.chosen if c.value.above}
    for drop in evidence.dropped:
        others = {base for round_, base in begun if round_ == drop.round} - {drop.base}
        if drop.read < drop.round and not others:  # else its region had begun the round anew
            yield (
                f"site {drop.site} dropped its update for round {drop.round} when it had read "
                f"{drop.read} committed rounds"
            )
