"""Whether the kernel has killed anybody for want of memory: then a SIGKILL was nobody's wish.

Source: ``oom_kill`` of ``/proc/vmstat`` (Linux 4.13).
"""

from pathlib import Path

VMSTAT = Path("/proc/vmstat")
_NAME = "oom_kill "


def kills(vmstat: Path = VMSTAT) -> int:
    """Processes killed for want of memory since the machine started; 0 where that is not told."""
    try:
        lines = vmstat.read_text().splitlines()
    except OSError:
        return 0
    found = next((line for line in lines if line.startswith(_NAME)), "")
    text = found.removeprefix(_NAME)
    return int(text) if text.isdigit() else 0
