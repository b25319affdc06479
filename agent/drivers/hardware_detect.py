"""Reads this machine and tells what it is."""

from pathlib import Path

from agent.drivers.hardware_nvml import read_nvml
from agent.drivers.hardware_psutil import read_psutil
from agent.hardware.detect import Hardware, judge_hardware
from agent.hardware.facts import Fact, Facts
from agent.hardware.profile import load_profiles, shipped_dir
from agent.hardware.sysfs import has_nvidia, read_facts


def detect_hardware(
    profile: str = "auto", profiles_dir: Path | None = None, *, root: Path = Path("/")
) -> Hardware:
    """Read the machine and match it against the shipped and the operator's profiles.

    Blocks: some 20 ms, and up to ``hardware_nvml.TIMEOUT_S`` where there is an NVIDIA device; call it
    before the loop runs or in a thread.

    Args:
        profile: ``hardware.profile`` of the settings.
        profiles_dir: ``hardware.profiles_dir`` of the settings.
        root: of the file system; a recorded tree in tests, where psutil and NVML are not asked.

    Raises:
        ConfigError: a profile is wrong, missing, or two match equally well.
    """
    profiles = load_profiles([shipped_dir(), *([profiles_dir] if profiles_dir else [])])
    read: list[Fact] = list(read_facts(root))
    findings: list[str] = []
    if root == Path("/"):
        read += read_psutil()
        facts = Facts.of(read)
        hint = has_nvidia(root, facts.texts("pci.ids"), facts.texts("dt.compatible"))
        if hint is not None:
            answer = read_nvml()
            read += answer.facts()
            if answer.problem:
                findings.append(f"an NVIDIA device is there ({hint}), but {answer.problem}")
    return judge_hardware(Facts.of(read), profiles, profile, findings)
