import os
from pathlib import Path

from agent.hardware.facts import Facts
from agent.hardware.sysfs import has_nvidia, read_facts, temperatures

RECORDED = Path(__file__).parents[2] / "recorded"


def test_a_jetson_tells_board_cores_memory_and_zones() -> None:
    facts = Facts.of(read_facts(RECORDED / "jetson-orin-nx-16g"))
    assert facts.texts("dt.compatible")[1] == "nvidia,p3767-0000"
    assert facts.text("dt.model") == "NVIDIA Jetson Orin NX Engineering Reference Developer Kit"
    assert facts.number("cpu.processors") == 8
    assert facts.number("memory.bytes") == 15_950_844 * 1024
    assert "asimd" in facts.texts("cpu.flags")
    assert (facts.text("firmware.l4t") or "").startswith("# R36")
    assert facts.entries["cpu.flags"].source == "/proc/cpuinfo"


def test_a_zone_without_a_reading_is_left_out() -> None:
    assert temperatures(RECORDED / "jetson-orin-nx-16g") == {
        "cpu-thermal": 48.562,
        "gpu-thermal": 46.125,
        "soc0-thermal": 47.843,
        "tj-thermal": 48.562,
    }


def test_a_server_tells_firmware_and_pci_and_no_serial_number() -> None:
    facts = Facts.of(read_facts(RECORDED / "x86-server-l4"))
    assert facts.text("dmi.bios_version") == "2.1"
    assert "10de:27b8" in facts.texts("pci.ids")
    assert facts.text("power.source") == "mains"
    assert not any("serial" in fact.name or "uuid" in fact.name for fact in facts)


def test_a_control_group_tells_its_limits(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup/system.slice/atoll.service"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("150000 100000\n")
    (group / "memory.max").write_text("1073741824\n")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("1:cpu:/x\n0::/system.slice/atoll.service\n")
    facts = Facts.of(read_facts(tmp_path))
    assert facts.number("cgroup.cores") == 1.5
    assert facts.number("cgroup.memory_bytes") == 1 << 30
    (group / "cpu.max").write_text("max 100000\n")
    assert Facts.of(read_facts(tmp_path)).number("cgroup.cores") is None


def test_a_pipe_in_place_of_a_file_does_not_block(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    os.mkfifo(tmp_path / "proc/cpuinfo")
    assert list(read_facts(tmp_path)) == []


def test_nvidia_is_hinted_at_by_device_pci_or_device_tree(tmp_path: Path) -> None:
    assert has_nvidia(tmp_path, (), ()) is None
    assert has_nvidia(tmp_path, ("8086:1563",), ("raspberrypi,5-model-b",)) is None
    assert has_nvidia(tmp_path, ("10de:27b8",), ()) == "PCI device 10de:27b8"
    assert has_nvidia(tmp_path, (), ("nvidia,tegra234",)) == "device tree nvidia,tegra234"
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    assert has_nvidia(tmp_path, (), ()) == "/dev/nvidiactl exists"
