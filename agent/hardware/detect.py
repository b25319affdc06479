"""From facts and profiles to how this site runs."""

from collections.abc import Sequence
from dataclasses import dataclass

from agent.hardware.drift import Drift, drift
from agent.hardware.facts import Fact, Facts
from agent.hardware.match import recognise
from agent.hardware.profile import GENERIC, Profile, ThermalPart

NVIDIA_PROVIDERS = frozenset({"TensorrtExecutionProvider", "CUDAExecutionProvider"})
"""Execution providers that run on what ``gpu.count`` counts."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What this machine is and how the agent treats it."""

    profile: str
    """``generic`` if no profile describes the machine."""
    title: str
    why: str
    """What the profile was recognised by."""
    others: tuple[str, ...]
    """The other profiles, each with the condition that failed."""
    facts: tuple[Fact, ...]
    cores: int
    """Cores that this process may use."""
    providers: tuple[str, ...]
    """Execution providers in order of preference; a session tells which it really got."""
    capacity: float
    """Relative strength, in cores of a server CPU, > 0: the weight of this site's record."""
    inference_threads: int
    """Model runs at once."""
    accelerators: int
    """GPUs that a wanted execution provider uses; 0: models run on the CPU."""
    intra_op_threads: int
    """Threads of one run."""
    is_training_allowed: bool
    training_threads: int
    thermal: ThermalPart | None
    drift: tuple[Drift, ...]
    findings: tuple[str, ...]
    """What an operator should look at, each a sentence."""

    @property
    def is_profiled(self) -> bool:
        """Whether a profile describes this machine."""
        return self.profile != GENERIC

    def summary(self) -> dict[str, object]:
        """For ``atoll status``."""
        return {
            "profile": self.profile,
            "title": self.title,
            "why": self.why,
            "providers": list(self.providers),
            "cores": self.cores,
            "capacity": self.capacity,
            "findings": list(self.findings),
        }


def judge_hardware(
    facts: Facts,
    profiles: Sequence[Profile],
    wanted: str = "auto",
    findings: Sequence[str] = (),
) -> Hardware:
    """Recognise the machine and derive how it runs.

    Raises:
        ConfigError: the wanted profile does not exist, or two profiles match equally well.
    """
    recognised = recognise(facts, profiles, wanted)
    profile = recognised.profile
    cores = usable_cores(facts)
    drifted = drift(profile, facts)
    told = [
        f"{entry.name} is {entry.state}: found {entry.found or 'nothing'}, expected {entry.expected}"
        for entry in drifted
        if entry.state != "ok"
    ]
    return Hardware(
        profile=profile.name,
        title=profile.title,
        why=recognised.why,
        others=recognised.others,
        facts=tuple(facts),
        cores=cores,
        providers=profile.inference.providers,
        capacity=profile.capacity or float(cores),
        inference_threads=profile.inference.threads or max(1, cores - 1),
        accelerators=_accelerators(facts, profile.inference.providers),
        intra_op_threads=profile.inference.intra_op_threads or 1,
        is_training_allowed=profile.training.allowed,
        training_threads=profile.training.threads or max(1, cores // 2),
        thermal=profile.thermal,
        drift=drifted,
        findings=(*findings, *told),
    )


def _accelerators(facts: Facts, providers: Sequence[str]) -> int:
    if NVIDIA_PROVIDERS.isdisjoint(providers):
        return 0
    return max(1, int(facts.number("gpu.count") or 0))  # an integrated one may not be counted


def usable_cores(facts: Facts) -> int:
    """Cores that this process may use: affinity, cut by the control group's quota; at least 1."""
    cores = facts.number("cpu.usable") or facts.number("cpu.processors") or 1.0
    quota = facts.number("cgroup.cores")
    return max(1, int(min(cores, quota) if quota is not None else cores))
