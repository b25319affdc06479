"""Facts from the files of /proc and /sys below a root.

Every read is bounded and every failure means "not known": in containers and on small boards most of
these files are absent, and firmware writes what it likes into them.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from agent.hardware.facts import Fact

READ_BYTES_MAX = 1 << 20
"""/proc/cpuinfo of a 256-core server is 400 KB."""
ENTRIES_MAX = 1024
"""PCI functions or thermal zones that are looked at."""
TEMPERATURE_C_RANGE = (-60.0, 200.0)
"""A sensor that says anything else is not connected."""

_DMI = (
    "sys_vendor", "product_name", "product_version", "board_vendor", "board_name",
    "bios_vendor", "bios_version", "bios_date",
)  # fmt: skip
# Serial numbers and UUIDs are not read: nothing needs them, and facts may be shown to other sites.
_HEX_ID = re.compile(r"0x([0-9a-f]{4})")
NVIDIA = "10de"
"""NVIDIA's vendor number in PCI ids."""


def read_facts(root: Path) -> Iterator[Fact]:
    """Everything known from files below ``root`` (``/`` on a real machine)."""
    yield from _dmi(root)
    yield from _device_tree(root)
    yield from _cpu(root)
    yield from _memory(root)
    yield from _pci(root)
    yield from _cgroup(root)
    yield from _thermal(root)
    yield from _power(root)
    yield from _one("kernel.release", root, "proc/sys/kernel/osrelease")
    yield from _one("cpu.architecture", root, "proc/sys/kernel/arch")
    yield from _one("firmware.l4t", root, "etc/nv_tegra_release")


def has_nvidia(root: Path, pci_ids: tuple[str, ...], dt_compatible: tuple[str, ...]) -> str | None:
    """Why NVML is worth asking, or None if nothing hints at an NVIDIA device."""
    for path in ("dev/nvidiactl", "dev/dxg", "proc/driver/nvidia/version"):
        if (root / path).exists():
            return f"/{path} exists"
    for text in pci_ids:
        if text.startswith(f"{NVIDIA}:"):
            return f"PCI device {text}"
    for text in dt_compatible:
        if text.startswith("nvidia,"):
            return f"device tree {text}"
    return None


def temperatures(root: Path) -> dict[str, float]:
    """Degrees Celsius by thermal zone type; of several zones of one type the hottest."""
    found: dict[str, float] = {}
    for zone in children(root / "sys/class/thermal", "thermal_zone*"):
        kind, milli = text_of(zone / "type"), text_of(zone / "temp")
        if not kind or not milli or not re.fullmatch(r"-?\d{1,7}", milli):
            continue
        celsius = int(milli) / 1000
        if TEMPERATURE_C_RANGE[0] < celsius < TEMPERATURE_C_RANGE[1]:
            found[kind] = max(celsius, found.get(kind, celsius))
    return found


def _dmi(root: Path) -> Iterator[Fact]:
    for name in _DMI:
        yield from _one(f"dmi.{name}", root, f"sys/class/dmi/id/{name}")


def _device_tree(root: Path) -> Iterator[Fact]:
    for base in ("proc/device-tree", "sys/firmware/devicetree/base"):
        compatible = text_of(root / base / "compatible")
        if compatible is None:
            continue
        parts = tuple(part for part in compatible.split("\0") if part)
        yield Fact("dt.compatible", parts, f"/{base}/compatible")
        model = (text_of(root / base / "model") or "").rstrip("\0")
        if model:
            yield Fact("dt.model", model, f"/{base}/model")
        return


def _cpu(root: Path) -> Iterator[Fact]:
    source = "/proc/cpuinfo"
    text = text_of(root / "proc/cpuinfo")
    if text is None:
        return
    processors = 0
    seen: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        key = key.strip()
        if colon and key == "processor":
            processors += 1
        elif colon:
            seen.setdefault(key, value.strip())
    if processors:
        yield Fact("cpu.processors", processors, source)
    model = seen.get("model name") or seen.get("Model") or ""
    if model:
        yield Fact("cpu.model", model, source)
    flags = tuple((seen.get("flags") or seen.get("Features") or "").split())
    if flags:
        yield Fact("cpu.flags", flags, source)


def _memory(root: Path) -> Iterator[Fact]:
    text = text_of(root / "proc/meminfo") or ""
    found = re.search(r"^MemTotal:\s*(\d{1,15}) kB$", text, re.MULTILINE)
    if found:
        yield Fact("memory.bytes", int(found[1]) * 1024, "/proc/meminfo")


def _pci(root: Path) -> Iterator[Fact]:
    ids: list[str] = []
    for device in children(root / "sys/bus/pci/devices", "*"):
        vendor = _HEX_ID.fullmatch((text_of(device / "vendor") or "").lower())
        kind = _HEX_ID.fullmatch((text_of(device / "device") or "").lower())
        if vendor and kind:
            ids.append(f"{vendor[1]}:{kind[1]}")
    if ids:
        yield Fact("pci.ids", tuple(sorted(set(ids))), "/sys/bus/pci/devices")


def _cgroup(root: Path) -> Iterator[Fact]:
    """Limits of the own control group (version 2): a quota of 200 % is two usable cores."""
    own = re.search(r"^0::(/.*)$", text_of(root / "proc/self/cgroup") or "", re.MULTILINE)
    if own is None or ".." in own[1].split("/"):
        return
    group = root / "sys/fs/cgroup" / own[1].lstrip("/")
    quota = re.fullmatch(r"(\d{1,12}) (\d{1,12})", text_of(group / "cpu.max") or "")
    if quota and int(quota[2]) > 0:
        yield Fact("cgroup.cores", int(quota[1]) / int(quota[2]), "cgroup cpu.max")
    limit = text_of(group / "memory.max") or ""
    if re.fullmatch(r"\d{1,18}", limit):
        yield Fact("cgroup.memory_bytes", int(limit), "cgroup memory.max")


def _thermal(root: Path) -> Iterator[Fact]:
    zones = temperatures(root)
    if zones:
        yield Fact("thermal.zones", tuple(sorted(zones)), "/sys/class/thermal")


def _power(root: Path) -> Iterator[Fact]:
    for supply in children(root / "sys/class/power_supply", "*"):
        if text_of(supply / "type") == "Mains":
            online = text_of(supply / "online")
            if online in {"0", "1"}:
                state = "mains" if online == "1" else "battery"
                yield Fact("power.source", state, f"/sys/class/power_supply/{supply.name}")
                return


def _one(name: str, root: Path, path: str) -> Iterator[Fact]:
    lines = (text_of(root / path) or "").splitlines()
    if lines and lines[0].strip():
        yield Fact(name, lines[0].strip(), f"/{path}")


def children(folder: Path, pattern: str) -> list[Path]:
    """Entries of a folder in order; none if it cannot be listed."""
    try:
        return sorted(folder.glob(pattern))[:ENTRIES_MAX]
    except OSError:
        return []


def number(path: Path) -> int | None:
    """The whole number that a file says; None if it says none."""
    text = text_of(path) or ""
    return int(text) if re.fullmatch(r"-?\d{1,18}", text) else None


def text_of(path: Path) -> str | None:
    """The file's text, stripped, undecodable bytes replaced; None if it cannot be read."""
    try:
        if not path.is_file():  # a pipe or device in its place would block for ever
            return None
        with path.open("rb") as file:
            return file.read(READ_BYTES_MAX).decode("utf-8", "replace").strip()
    except (OSError, ValueError):
        return None
