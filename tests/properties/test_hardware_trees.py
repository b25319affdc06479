"""Whatever firmware and kernels write below /proc and /sys, the site knows how to run."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.hardware.detect import judge_hardware
from agent.hardware.facts import Facts
from agent.hardware.profile import load_profiles, shipped_dir
from agent.hardware.sysfs import read_facts, temperatures

RECORDED = Path(__file__).parents[1] / "recorded"
PROFILES = load_profiles([shipped_dir()])
PATHS = sorted({
    str(path.relative_to(tree))
    for tree in RECORDED.iterdir()
    if tree.is_dir()
    for path in tree.rglob("*")
    if path.is_file()
} | {"proc/self/cgroup", "sys/fs/cgroup/cpu.max", "sys/class/power_supply/BAT0/type"})  # fmt: skip


def _recorded(path: str) -> bytes:
    for tree in sorted(RECORDED.iterdir()):
        if (tree / path).is_file():
            return (tree / path).read_bytes()
    return b""


CONTENT = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            b"0::/../..\n",
            b"0::/\n",
            b"1 0\n",
            b"0x10de\n",
            b"999999999999\n",
            b"\0\0",
            b"MemTotal: 0 kB\n",
        ]
    ),
    st.sampled_from(PATHS).map(_recorded),
)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.sampled_from(PATHS), st.one_of(CONTENT, st.none()), max_size=12))
def test_any_tree_is_some_hardware(files: dict[str, bytes | None]) -> None:
    root = Path(tempfile.mkdtemp(prefix="atoll-tree-"))
    try:
        for path, content in files.items():
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                target.mkdir()  # a folder where a file is expected
            else:
                target.write_bytes(content)
        found = judge_hardware(Facts.of(read_facts(root)), PROFILES)
        temperatures(root)
    finally:
        shutil.rmtree(root)
    assert found.capacity > 0
    assert found.cores >= 1
    assert found.providers[-1] == "CPUExecutionProvider"
