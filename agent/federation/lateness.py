"""Updates that came too late for their round, and count in a later one.

Where the job allows it (``staleness_max``), such an update counts by what it changed on the parameters it
started from, on top of those of the round that counts it, and for less: its samples divided by the
square root of one more than the rounds it is late.

Rule: an update is counted once. Whoever counts a late one has read every round that may have counted it.

Source: Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous Aggregation", section 5.
"""

from collections.abc import Callable, Mapping
from math import isqrt

from agent.federation.value import Contribution, Contributions
from agent.foundation.ids import Digest, SiteId


def weight_of(samples: int, late_by: int) -> int:
    """What an update counts in the mean, in samples; at least 1.

    In whole numbers, so that every aggregator has the same: ``floor(samples / sqrt(1 + late_by))``.

    Args:
        samples: how many it was trained on, > 0.
        late_by: rounds between the one it was made for and the one that counts it, >= 0.
    """
    return max(1, isqrt(samples * samples // (1 + late_by)))


def made_for(entry: Contribution, counted_in: int) -> int:
    """The round that a counted update was made for."""
    return entry.round or counted_in


def is_counted(
    site: SiteId, round_: int, rounds: Mapping[int, Contributions], until: int
) -> bool | None:
    """Whether the update of ``site`` made for ``round_`` is counted in a round up to ``until``.

    None: some of those rounds are not known here.
    """
    is_all_known = True
    for number in range(round_, until + 1):
        content = rounds.get(number)
        if content is None:
            is_all_known = False
        elif any(
            entry.site == site and made_for(entry, number) == round_ for entry in content.entries
        ):
            return True
    return False if is_all_known else None


def late_by(
    site: SiteId,
    round_: int,
    base: Digest,
    open_round: int,
    staleness_max: int,
    known: Callable[[int], Contributions | None],
) -> int | None:
    """How many rounds late an update is that the open round may count; None: it may not.

    Args:
        site: whose.
        round_: the one it was made for.
        base: the parameters it started from.
        open_round: the one that is being collected.
        staleness_max: of the job.
        known: what a committed round counted, as far as that is known here.
    """
    late = open_round - round_
    if not 0 < late <= staleness_max:
        return None
    rounds = {
        number: content
        for number in range(round_, open_round)
        if (content := known(number)) is not None
    }
    if is_counted(site, round_, rounds, open_round - 1) is not False:
        return None
    return late if rounds[round_].base == base else None
