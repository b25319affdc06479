"""Every knob of membership, derived from the kind of link and the expected number of sites.

The starting points are memberlist's LAN and WAN profiles; where a figure differs, its reason is
beside it. All durations are seconds.
"""

import math
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Settings:
    """How fast to probe, gossip, suspect and retry; build one with ``lan`` or ``wan``."""

    expected_sites: int
    """Lower bound of the cluster size used in logarithms, so that a starting site is not hasty."""

    probe_interval_s: float
    """One protocol period (SWIM section 3.1) at full health; a ping and an ack cost 180 B."""
    probe_timeout_s: float
    """How long a direct ping may take while no round trip was measured, and at most at health 0."""
    probe_timeout_min_s: float
    """Never less, however short the measured round trip: a busy process answers late."""
    indirect_timeout_s: float
    """How long indirect probes may take after the direct ping timed out."""

    suspicion_min_s: float
    """Time to refute once enough members accuse, before the growth by cluster size.

    Probe plus suspicion must outlast the longest stall that is forgiven (4 s on a LAN).
    """
    suspicion_growth_s: float
    """Added for each factor of ten in cluster size: a refutation needs longer to spread."""

    isolation_s: float
    """Silence of everybody after which this site calls itself isolated."""
    silence_s: float
    """Silence of everybody after which it asks several members at once."""
    sync_interval_s: float
    """Mean time between state syncs with a random member, up to 64 sites."""

    gossip_interval_s: float = 0.2
    gossip_fanout: int = 5
    """News is passed on at once when quiet, so one wave misses a member with chance e^-5."""
    rumor_loss: float = 0.1
    rumor_misses: float = 0.005
    """A rumor is sent so often that at this loss of packets the chance that anybody misses it stays
    below ``rumor_misses`` (Demers et al. 1987, section 1.4: of n sites that each push a rumor m times
    all but ``n * e^-m`` hear of it)."""
    accusation_rumors_max: int = 4096
    """Bound of the accusations that wait to be told: three against each of a third of a cluster of
    ``MEMBERS_MAX``. Whoever misses some looks for itself."""
    record_rumors_max: int = 64
    """Bound of the records that wait. When more members than this have news at once (a large cluster
    starts, a cut heals), telling each thing to each member one by one costs far more than a state
    sync, which is then brought forward."""
    seen_max: int = 1024
    """Statements remembered so that duplicates cost neither decoding nor a signature check."""
    burst: int = 64
    """Members told directly when news must not wait for gossip (leaving, waking after a stall)."""

    indirect_probes: int = 3
    """k of SWIM section 3.1."""
    probes_max: int = 64
    """Open probes and, apart, open relays; more would be a flood, not failure detection."""
    accusers_needed: int = 3
    """Distinct accusers that make a member dead, if that many others are alive."""
    confirmers: int = 6
    """Members expected to check a first accusation at once; bounds the storm on a suspect."""
    confirm_after_s: float = 2.0
    """A suspicion with too few accusers after this time is looked at directly: either we missed
    the refutation, or the others missed the silence."""
    refused_suspicion_s: float = 1.0
    """Suspicion when two accusers saw the port refused: the host answers, the process is gone."""
    refused_retry_s: float = 0.15
    """A refusal counts when it repeats after this time; a restart may be under way."""
    book_grace_s: float = 10.0
    """After a start, silence of members that are known from the peer book only accuses nobody for this
    long: when power comes back everybody starts at once, some later than others."""
    health_max: int = 8
    """S of Lifeguard section 4.1: probes slow down to at most ``1 + S`` times their interval."""

    lag_tolerance_s: float = 0.5
    """A wake-up this late means that this process stood still: its evidence is void."""
    recovery_interval_s: float = 5.0
    """One lost member is tried this often ..."""
    recovery_fast_s: float = 0.2
    """... and this often for ``recovery_fast_for_s`` after one came back: partitions heal at once."""
    recovery_fast_for_s: float = 3.0
    retry_cap_max_s: float = 60.0
    """Longest back-off of a dead member in a large cluster; it is retried for ever."""
    retry_cap_min_s: float = 10.0
    """The same in a small one, where fewer sites share the trying."""
    retry_left_cap_s: float = 600.0
    """Longest back-off of a member that said goodbye; it announces its own return."""

    sync_spacing_s: float = 5.0
    """Least time between two syncs with one member for reasons other than the periodic one."""
    sync_timeout_s: float = 30.0
    """A sync whose end nobody reports stops counting as under way."""
    syncs_max: int = 4
    catalog_jitter_s: float = 0.005
    """Spread of catalog syncs for each site of the cluster, so that one source is not stampeded."""
    catalog_spacing_s: float = 1.0
    catalog_backoff_max_s: float = 60.0

    record_interval_s: float = 0.2
    """Least time between two records of this site."""
    load_interval_s: float = 2.0
    """Least time between two records whose only news is load or service time."""
    load_step: float = 0.1
    service_step: float = 0.25
    """Relative change of a service time that is worth telling."""

    @classmethod
    def lan(cls, expected_sites: int = 20) -> Self:
        """For links of a few milliseconds."""
        return cls(
            expected_sites=expected_sites,
            # 0.75 s, not 1 s: every second probe goes to the ring successor (see probes.py).
            probe_interval_s=0.75,
            probe_timeout_s=0.5,
            probe_timeout_min_s=0.2,
            indirect_timeout_s=0.5,
            suspicion_min_s=3.1,
            suspicion_growth_s=0.3,
            isolation_s=4.0,
            silence_s=2.0,
            sync_interval_s=15.0,
        )

    @classmethod
    def wan(cls, expected_sites: int = 20) -> Self:
        """For links between regions: round trips up to a second, loss, slow refutations."""
        return cls(
            expected_sites=expected_sites,
            probe_interval_s=1.0,
            probe_timeout_s=1.5,
            probe_timeout_min_s=0.3,
            indirect_timeout_s=1.5,
            suspicion_min_s=10.0,
            suspicion_growth_s=2.0,
            isolation_s=4.5,
            # Longer than a protocol period and a round trip, or every period would count as silent.
            silence_s=2.0,
            sync_interval_s=30.0,
            gossip_interval_s=0.5,
            confirm_after_s=6.0,
            refused_suspicion_s=2.0,
            refused_retry_s=0.5,
        )

    def suspicion_floor_s(self, sites: int) -> float:
        """Time to refute in a cluster of ``sites``."""
        return self.suspicion_min_s + self.suspicion_growth_s * math.log10(
            max(sites, self.expected_sites, 1)
        )

    def transmissions(self, sites: int) -> int:
        """How often one site sends one rumor in a cluster of ``sites``."""
        return math.ceil(math.log(max(sites, 1) / self.rumor_misses) / (1 - self.rumor_loss))

    def retry_cap_s(self, sites: int) -> float:
        """Longest back-off of a dead member in a cluster of ``sites``."""
        return min(self.retry_cap_max_s, max(self.retry_cap_min_s, 2.0 * sites))

    def sync_period_s(self, sites: int) -> float:
        """Mean time between periodic syncs: above 64 sites their cost must not grow with the square."""
        stretch = 1 + max(0, math.ceil(math.log2(max(sites, 1) / 64)))
        return self.sync_interval_s * stretch
