import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.drivers.systemd import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(5)
        yield listening


@pytest.fixture
def notifier(manager: socket.socket) -> Iterator[Notifier]:
    made = Notifier({"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "20000000"})
    yield made
    made.close()


def test_the_manager_hears_the_life_of_the_site(manager: socket.socket, notifier: Notifier) -> None:
    assert notifier.ready("3 members")
    assert manager.recv(999) == b"READY=1\nSTATUS=3 members"
    assert notifier.watchdog()
    assert manager.recv(999) == b"WATCHDOG=1"
    assert notifier.reloading()
    assert manager.recv(999).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    assert notifier.extend_timeout(2.5)
    assert manager.recv(999) == b"EXTEND_TIMEOUT_USEC=2500000"
    assert notifier.stopping()
    assert manager.recv(999) == b"STOPPING=1"


def test_a_status_stays_one_short_line(manager: socket.socket, notifier: Notifier) -> None:
    notifier.status("isolated\nREADY=1 " + "x" * 999)
    received = manager.recv(9999)
    assert received.startswith(b"STATUS=isolated READY=1 xxx")
    assert b"\n" not in received
    assert len(received) == len("STATUS=") + 200


def test_the_watchdog_is_fed_at_half_of_its_limit(notifier: Notifier) -> None:
    assert notifier.watchdog_every_s == 10.0


def test_a_watchdog_for_another_process_and_nonsense_are_not_ours(manager: socket.socket) -> None:
    address = manager.getsockname()
    for more in (
        {"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(os.getpid() + 1)},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "0"},
        {},
    ):
        made = Notifier({"NOTIFY_SOCKET": address} | more)
        assert made.watchdog_every_s is None
        made.close()


def test_an_abstract_socket_is_reached() -> None:
    name = f"atoll-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        listening.settimeout(5)
        made = Notifier({"NOTIFY_SOCKET": f"@{name}"})
        assert made.ready()
        assert listening.recv(99) == b"READY=1"
        made.close()


def test_without_a_manager_nothing_happens() -> None:
    for environment in ({}, {"NOTIFY_SOCKET": "vsock:2:1"}):
        made = Notifier(environment)
        assert not made.is_active
        assert not made.ready("here")
        assert made.watchdog_every_s is None
        made.close()


def test_a_manager_that_is_gone_or_full_stops_nothing(
    manager: socket.socket, notifier: Notifier
) -> None:
    while notifier.watchdog():  # until the queue of the socket is full
        pass
    assert not notifier.ready()
    Path(manager.getsockname()).unlink()
    assert not notifier.ready()
    notifier.close()
    assert not notifier.ready()
