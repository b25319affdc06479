"""The kernel's count of processes it killed for want of memory."""

from pathlib import Path

from agent.drivers.oom import kills


def test_the_kernels_count_is_read(tmp_path: Path) -> None:
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("nr_free_pages 7\noom_kill 3\noom_kill_x 9\n")
    assert kills(vmstat) == 3


def test_where_it_is_not_told_nobody_was_killed(tmp_path: Path) -> None:
    assert kills(tmp_path / "none") == 0
    (tmp_path / "vmstat").write_text("oom_kill many\n")
    assert kills(tmp_path / "vmstat") == 0


def test_this_machine_tells_it() -> None:
    assert kills() >= 0
