from pathlib import Path

import pytest

from agent.foundation.errors import ConfigError
from agent.hardware.detect import Hardware, judge_hardware, usable_cores
from agent.hardware.facts import Fact, Facts
from agent.hardware.profile import load_profiles, shipped_dir
from agent.hardware.sysfs import read_facts

RECORDED = Path(__file__).parents[2] / "recorded"
PROFILES = load_profiles([shipped_dir()])


def hardware(tree: str, *more: Fact, wanted: str = "auto") -> Hardware:
    facts = Facts.of([*read_facts(RECORDED / tree), *more])
    return judge_hardware(facts, PROFILES, wanted)


def test_each_recorded_machine_is_recognised() -> None:
    assert {
        tree.name: hardware(tree.name).profile
        for tree in RECORDED.iterdir()
        if (tree / "proc").is_dir()
    } == {
        "jetson-orin-nx-16g": "jetson-orin-nx-16g",
        "raspberry-pi-5-8g": "raspberry-pi-5-8g",
        "x86-server-l4": "x86-server-nvidia-l4",
        "virtual-machine": "x86-server-cpu",
        "old-pc": "generic",
    }


def test_the_reason_names_what_was_seen() -> None:
    found = hardware("jetson-orin-nx-16g")
    assert "dt_compatible 'nvidia,p3768-0000+p3767-0000'" in found.why
    assert "memory_min_gib 14 (it is 15.2)" in found.why
    assert any(other.startswith("raspberry-pi-5-8g: dt_compatible") for other in found.others)


def test_a_server_whose_gpu_driver_does_not_answer_is_told() -> None:
    found = hardware("x86-server-l4")
    assert found.providers[0] == "CUDAExecutionProvider"
    assert any("gpu_driver is unknown" in told for told in found.findings)
    newer = hardware("x86-server-l4", Fact("gpu.driver", "550.54.15", "nvml"))
    assert newer.findings == ()
    older = hardware("x86-server-l4", Fact("gpu.driver", "470.82.01", "nvml"))
    assert "gpu_driver is older: found 470.82.01" in older.findings[0]


def test_an_unknown_machine_with_a_gpu_gets_cuda() -> None:
    found = hardware("virtual-machine", Fact("gpu.count", 1, "nvml"))
    assert found.profile == "generic-nvidia"
    assert found.providers == ("CUDAExecutionProvider", "CPUExecutionProvider")


def test_a_machine_that_tells_nothing_is_generic_and_still_works(tmp_path: Path) -> None:
    found = judge_hardware(Facts.of(read_facts(tmp_path)), ())
    assert (found.profile, found.is_profiled) == ("generic", False)
    assert found.providers == ("CPUExecutionProvider",)
    assert found.capacity == 1.0
    assert (found.inference_threads, found.training_threads) == (1, 1)


def test_a_named_profile_is_taken_and_a_wrong_name_is_refused() -> None:
    assert hardware("old-pc", wanted="raspberry-pi-5-8g").inference_threads == 3
    with pytest.raises(ConfigError, match="no hardware profile 'raspberry'"):
        hardware("old-pc", wanted="raspberry")


def test_a_quota_of_the_control_group_cuts_the_cores() -> None:
    def cores(*facts: Fact) -> int:
        return usable_cores(Facts.of(facts))

    assert cores() == 1
    assert cores(Fact("cpu.processors", 8, "")) == 8
    assert cores(Fact("cpu.processors", 8, ""), Fact("cpu.usable", 4, "")) == 4
    assert cores(Fact("cpu.usable", 4, ""), Fact("cgroup.cores", 2.5, "")) == 2
    assert cores(Fact("cpu.usable", 4, ""), Fact("cgroup.cores", 0.5, "")) == 1
