"""What a site must never do, whatever ends it: use a boot epoch twice. And clocks, disks and rows gone bad.

The nonce of a gossip packet is boot epoch | counter, both in clear in its header, so whoever receives the
packets can tell. Here the receiver is a plain socket at the address of a member that does not run.
"""

import contextlib
import os
import random
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from daemon_cluster import Daemon, admit, found, running, scratch, wait_for

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

ROOT = os.geteuid() == 0
MUST_RUN = os.environ.get("ATOLL_REQUIRE_ALL") == "1"
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
STARTS = 6
"""Deaths in a test; the benchmark does fifty."""
YEAR_S = 365 * 86_400


class Receiver:
    """The headers of the packets that a site sends to a member that does not run."""

    def __init__(self, host: str) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((host, 7411))
        self.socket.setblocking(False)
        self.nonces: list[tuple[int, int]] = []

    def receive(self, timeout_s: float) -> bool:
        """Whether a packet came; all that have are taken."""
        ready, _, _ = select.select([self.socket], [], [], timeout_s)
        with contextlib.suppress(BlockingIOError):
            while ready:
                packet = self.socket.recv(2048)
                epoch, counter = int.from_bytes(packet[9:13]), int.from_bytes(packet[13:21])
                self.nonces.append((epoch, counter))
        return bool(ready)


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Daemon, Daemon]]:
    """Two sites that know each other; neither runs."""
    with scratch() as folder:
        anna = found(folder, "anna")
        with running(anna):
            anna.start().wait_ready()
            berta = admit(anna, "berta")
            with running(berta):
                berta.start().wait_ready()
                both = {"anna", "berta"}
                wait_for(lambda: anna.alive() == berta.alive() == both, 30, "met", [anna, berta])
                berta.kill()
                anna.kill()
                yield anna, berta


@pytest.fixture
def receiver(pair: tuple[Daemon, Daemon]) -> Iterator[Receiver]:
    made = Receiver(pair[1].host)
    yield made
    made.socket.close()


def one_boot(site: Daemon, receiver: Receiver, chance: random.Random) -> set[int]:
    """Start, kill at a moment of chance (mostly with the first packets); the epochs that were used."""
    before = len(receiver.nonces)
    site.start()
    if chance.random() < 0.2:
        time.sleep(chance.uniform(0.0, 1.5))
    else:
        deadline = time.monotonic() + 30
        while not receiver.receive(0.5):
            assert time.monotonic() < deadline, site.log()
        time.sleep(chance.choice((0.0, 0.0, 0.05, 0.5)))
    site.kill()
    receiver.receive(0.1)
    return {epoch for epoch, _ in receiver.nonces[before:]}


def test_a_site_that_is_killed_as_it_starts_never_uses_an_epoch_twice(
    pair: tuple[Daemon, Daemon], receiver: Receiver
) -> None:
    chance, used = random.Random(3), set[int]()
    for _ in range(STARTS):
        epochs = one_boot(pair[0], receiver, chance)
        assert len(epochs) <= 1, "one boot, one epoch"
        assert not epochs & used
        assert all(new > old for new in epochs for old in used)
        used |= epochs
    assert len(used) >= STARTS // 2
    assert len(set(receiver.nonces)) == len(receiver.nonces), "no nonce twice"


def told(site: Daemon) -> str:
    """What ``atoll run`` says when it refuses to start: one clear error, no defect."""
    done = site.cli("run", ok=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr


@contextlib.contextmanager
def mounted(kind: str, source: str, target: Path, *options: str) -> Iterator[None]:
    target.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", kind, *options, source, str(target)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(target)], check=True)


needs_root = pytest.mark.skipif(not ROOT and not MUST_RUN, reason="mounting needs root")


@pytest.mark.root
@needs_root
def test_no_epoch_comes_back_after_a_power_cut(
    pair: tuple[Daemon, Daemon], receiver: Receiver
) -> None:
    """Everything that was not synced is lost: ext4 is shut down without flushing its log."""
    anna = pair[0]
    with scratch() as folder:
        image, disk = folder / "image", folder / "disk"
        with image.open("wb") as file:
            file.truncate(96 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
        site = Daemon(folder, "anna", host=anna.host, state_dir=disk / "state")
        used = set[int]()
        for number in range(3):
            # What reached the "disk", under a name of its own: somebody else's copy of the mount (every
            # namespace made meanwhile has one) would keep the dead file system alive.
            left = folder / f"image-{number}"
            shutil.copy(image, left)
            image = left
            with mounted("ext4", str(left), disk, "-o", "loop"):
                if number == 0:
                    shutil.copytree(anna.state_dir, site.state_dir)
                    os.sync()
                with running(site):
                    site.start()
                    before, deadline = len(receiver.nonces), time.monotonic() + 30
                    while not receiver.receive(0.5):
                        assert time.monotonic() < deadline, site.log()
                    cut_power(disk)
                    children = site.children()
                    site.kill()
                    psutil.wait_procs(children, 15)
            receiver.receive(0.0)  # sent until the kill: else the next start would seem to send it
            epochs = {epoch for epoch, _ in receiver.nonces[before:]}
            assert len(epochs) == 1
            assert not epochs & used, "an epoch that was on the wire was not on the disk"
            used |= epochs


def cut_power(disk: Path) -> None:
    import fcntl  # noqa: PLC0415 - Linux only, as the ioctl

    shutdown, without_flushing_the_log = 0x8004587D, (2).to_bytes(4, "little")
    descriptor = os.open(disk, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, shutdown, without_flushing_the_log)
    finally:
        os.close(descriptor)


@pytest.mark.root
@needs_root
def test_a_site_that_cannot_write_its_epoch_sends_nothing_and_says_why(
    pair: tuple[Daemon, Daemon], receiver: Receiver
) -> None:
    anna = pair[0]
    with scratch() as folder:
        disk = folder / "disk"
        site = Daemon(folder, "anna", host=anna.host, state_dir=disk / "state")
        with mounted("tmpfs", "atoll", disk, "-o", "size=8m"):
            shutil.copytree(anna.state_dir, site.state_dir)
            with contextlib.suppress(OSError), (disk / "ballast").open("wb") as ballast:
                while ballast.write(bytes(4096)):
                    ballast.flush()
            assert "full" in (said := told(site)) or "space" in said, said
            (disk / "ballast").unlink()
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            said = told(site)
            assert "read-only" in said.lower() or "readonly" in said.lower(), said
    assert receiver.nonces == []


def test_a_peer_row_gone_bad_is_left_out_and_its_site_found_anew(
    pair: tuple[Daemon, Daemon],
) -> None:
    """Each row proves itself: the file is put aside, sound rows stay, and the site says so."""
    anna, berta = pair
    database = sqlite3.connect(anna.state_dir / "atoll.db")
    with contextlib.closing(database), database:
        changed = database.execute("UPDATE peers SET record = ?", [os.urandom(120)]).rowcount
    assert changed >= 1
    with running(anna, berta):
        seen = len(anna.log())
        anna.start().wait_ready()
        assert "damaged" in anna.log()[seen:]
        berta.start().wait_ready()
        both = {"anna", "berta"}
        wait_for(lambda: anna.alive() == berta.alive() == both, 20, "met", [anna, berta])
        assert "Traceback" not in anna.log()[seen:], anna.log()
        anna.kill()
        berta.kill()


@pytest.mark.skipif(FAKETIME is None and not MUST_RUN, reason="needs libfaketime")
def test_a_wall_clock_that_jumps_a_year_moves_no_member(
    pair: tuple[Daemon, Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert FAKETIME is not None, "packaging/setup.sh installs libfaketime"
    anna, berta = pair
    clock = anna.folder / "clock"
    clock.write_text("+0")
    both = {"anna", "berta"}
    with running(anna, berta):
        with monkeypatch.context() as patch:
            patch.setenv("LD_PRELOAD", str(FAKETIME))
            patch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            patch.setenv("FAKETIME_TIMESTAMP_FILE", str(clock))
            patch.setenv("FAKETIME_NO_CACHE", "1")
            anna.start()
        berta.start()
        for site in (anna, berta):
            site.wait_ready()
        wait_for(lambda: anna.alive() == berta.alive() == both, 20, "met", [anna, berta])
        before = [len(site.log()) for site in (anna, berta)]
        for jump_s in (-YEAR_S, YEAR_S):
            clock.write_text(f"{jump_s:+d}")
            until = time.monotonic() + 4
            while time.monotonic() < until:
                assert anna.alive() == berta.alive() == both
                time.sleep(0.1)
            assert anna.get("/1/status")["state"] == "ready"
        clock.write_text("+0")
        for site, seen in zip((anna, berta), before, strict=True):
            log = site.log()[seen:]
            assert " is suspect" not in log, log
            assert " is dead" not in log, log
            assert "Traceback" not in log, log
        assert anna.process is not None
        anna.process.send_signal(signal.SIGTERM)
        assert anna.process.wait(10) == 0
        anna.process = None
