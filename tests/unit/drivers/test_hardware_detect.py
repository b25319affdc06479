import time
from pathlib import Path

from agent.drivers.hardware_detect import detect_hardware

RECORDED = Path(__file__).parents[2] / "recorded"


def test_this_machine_is_detected_in_less_than_a_second() -> None:
    started_at = time.perf_counter()
    found = detect_hardware()
    assert time.perf_counter() - started_at < 1.0 or "nvml" in {fact.source for fact in found.facts}
    assert found.providers[-1] == "CPUExecutionProvider"
    assert found.capacity >= 1.0
    assert found.cores >= 1


def test_a_recorded_machine_is_not_mixed_with_this_one() -> None:
    found = detect_hardware(root=RECORDED / "raspberry-pi-5-8g")
    assert found.profile == "raspberry-pi-5-8g"
    assert not {"psutil", "nvml"} & {fact.source for fact in found.facts}
    assert found.summary()["capacity"] == 1.5


def test_the_operators_profiles_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'schema = 1\nname = "mine"\ntitle = "Mine"\n[match]\ndt_compatible = ["raspberrypi,*"]\n'
        "memory_min_gib = 7.0\nmemory_max_gib = 8.5\ncpu_architecture = ['aarch64']\n"
    )
    found = detect_hardware(profiles_dir=tmp_path, root=RECORDED / "raspberry-pi-5-8g")
    assert found.profile == "mine"
