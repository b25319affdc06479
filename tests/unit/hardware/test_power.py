from itertools import pairwise
from pathlib import Path

import pytest

from agent.hardware.power import RISE_S, UNKNOWN_S, FreePower, PowerReader


def write(root: Path, **files: object) -> None:
    for name, content in files.items():
        path = root / "sys/class" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def test_a_machine_that_tells_nothing_has_no_draw(tmp_path: Path) -> None:
    assert PowerReader(tmp_path).draw_w(1.0) is None


def test_a_meter_of_the_whole_machine_counts_before_parts_of_it(tmp_path: Path) -> None:
    write(
        tmp_path, hwmon__hwmon0__power1_average=180_500_000, hwmon__hwmon1__power1_input=40_000_000
    )
    assert PowerReader(tmp_path).draw_w(1.0) == 180.5


def test_the_input_rail_of_a_jetson_is_volts_times_amperes(tmp_path: Path) -> None:
    rails = {"1": ("VDD_IN", 5040, 2400), "2": ("VDD_CPU_GPU_CV", 5040, 900)}
    for channel, (label, millivolts, milliamperes) in rails.items():
        write(
            tmp_path,
            **{
                f"hwmon__hwmon3__in{channel}_label": label,
                f"hwmon__hwmon3__in{channel}_input": millivolts,
                f"hwmon__hwmon3__curr{channel}_input": milliamperes,
            },
        )
    assert PowerReader(tmp_path).draw_w(1.0) == pytest.approx(12.096)


def test_energy_counters_give_the_mean_since_the_last_reading(tmp_path: Path) -> None:
    def counters(first: int, second: int) -> None:
        for package, used_uj in enumerate((first, second)):
            path = tmp_path / f"sys/class/powercap/intel-rapl:{package}"
            path.mkdir(parents=True, exist_ok=True)
            (path / "energy_uj").write_text(f"{used_uj}\n")
        part = tmp_path / "sys/class/powercap/intel-rapl:0:0"
        part.mkdir(exist_ok=True)
        (part / "energy_uj").write_text("999999999999\n")

    reader = PowerReader(tmp_path)
    counters(1_000_000, 5_000_000)
    assert reader.draw_w(10.0) is None
    counters(101_000_000, 55_000_000)
    assert reader.draw_w(15.0) == 30.0
    counters(201_000_000, 1)  # wrapped round: left out this time
    assert reader.draw_w(20.0) == 20.0


@pytest.mark.parametrize("text", ["", "watts", "-5", "9" * 30, "900000000000000"])
def test_a_meter_that_says_nonsense_is_not_believed(text: str, tmp_path: Path) -> None:
    write(tmp_path, hwmon__hwmon0__power1_input=text)
    assert PowerReader(tmp_path).draw_w(1.0) is None


def test_without_a_supply_or_a_reading_nothing_is_known() -> None:
    assert not FreePower(0.0).drawn(10.0, 0.0)
    free = FreePower(100.0)
    assert not free.drawn(None, 0.0)
    assert free.drawn(30.0, 1.0)
    assert free.free_w == 70.0
    assert not free.drawn(None, 1.0 + UNKNOWN_S)
    assert free.drawn(None, 2.0 + UNKNOWN_S)
    assert free.free_w is None


def test_what_is_free_falls_at_once_and_rises_to_the_least_of_a_minute() -> None:
    free = FreePower(100.0)
    free.drawn(50.0, 0.0)
    assert not free.drawn(54.0, 1.0), "a step too small to tell"
    assert free.drawn(80.0, 2.0)
    assert free.free_w == 20.0
    assert not free.drawn(10.0, 3.0)
    assert not free.drawn(40.0, 4.0)
    assert not free.drawn(20.0, 3.0 + RISE_S - 1)
    assert free.drawn(20.0, 3.0 + RISE_S)
    assert free.free_w == 60.0
    assert free.drawn(500.0, 4.0 + RISE_S)
    assert free.free_w == 0.0


def test_a_load_that_comes_and_goes_with_what_it_frees_is_let_in_ever_more_rarely() -> None:
    free, now, rises = FreePower(100.0), 0.0, []
    free.drawn(80.0, now)
    while now < 4 * 3600:
        now += 5.0
        is_on = free.free_w is not None and free.free_w >= 50.0
        before = free.free_w
        if free.drawn(90.0 if is_on else 30.0, now) and before is not None and free.free_w > before:  # type: ignore[operator]
            rises.append(now)
    gaps = [later - earlier for earlier, later in pairwise(rises)]
    assert len(rises) < 12
    assert gaps == sorted(gaps)
    assert gaps[-1] >= 3600.0
