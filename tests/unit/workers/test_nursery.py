"""What the nursery refuses; the forks themselves are real in tests/process."""

import importlib
import os
import signal
from collections.abc import Iterator

import pytest

from agent.drivers.channel import BlockingChannel, pair
from agent.foundation.errors import UsageError
from agent.training.contract import Fork, Reap, Reaped
from agent.workers import nursery as module
from agent.workers.nursery import Nursery


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    ours, theirs = pair()
    channel = BlockingChannel(theirs)
    yield Nursery(channel)
    channel.close()
    ours.close()


def test_only_its_own_children_are_waited_for(nursery: Nursery) -> None:
    for pid in (1, os.getpid()):
        with pytest.raises(UsageError, match="no child"):
            nursery.answer(Reap(pid), [])


def test_a_child_is_asked_after_without_waiting_and_let_go_of_once(nursery: Nursery) -> None:
    pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
    nursery._children.add(pid)
    assert nursery.answer(Reap(pid), []) == Reaped(None)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert nursery.answer(Reap(pid), []) == Reaped(-signal.SIGKILL)
    with pytest.raises(UsageError, match="reaped before"):
        nursery.answer(Reap(pid), [])


def test_children_are_bounded(nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHILDREN_MAX", 0)
    with pytest.raises(UsageError, match="0 workers run already"):
        nursery.answer(Fork("aggregation", "/nowhere"), [0, 1])


def test_a_library_that_is_not_installed_is_named(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(name: str) -> None:
        raise ImportError(f"No module named 'torch' ({name})")

    monkeypatch.setattr(importlib, "import_module", fails)
    with pytest.raises(UsageError, match=r"a trainer cannot start.*torch.*pip install"):
        nursery.answer(Fork("trainer", "/nowhere"), [0, 1])
