"""Coming and going of real sites: restarts, goodbyes, draining, and processes that stand still."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from daemon_cluster import Daemon, admit, found, running, scratch, wait_for

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

NAMES = {"anna", "berta", "carla", "doris"}
STRACE = shutil.which("strace")
MUST_RUN = os.environ.get("ATOLL_REQUIRE_ALL") == "1"


@pytest.fixture(scope="module")
def started() -> Iterator[list[Daemon]]:
    with scratch() as folder:
        anna = found(folder, "anna")
        with running(anna):
            anna.start().wait_ready()
            others = [admit(anna, name) for name in ("berta", "carla", "doris")]
            with running(*others):
                for site in others:
                    site.start()
                yield [anna, *others]


@pytest.fixture
def sites(started: list[Daemon]) -> list[Daemon]:
    all_are_up(started)
    return started


def all_are_up(sites: list[Daemon]) -> None:
    for site in sites:
        site.wait_ready()
    wait_for(lambda: all(s.alive() == NAMES for s in sites), 30, "all see all", sites)


def row(site: Daemon, about: str) -> dict[str, Any]:
    return next(row for row in site.get("/1/members")["members"] if row["name"] == about)


def news(sites: list[Daemon], before: list[int]) -> list[str]:
    """Lines of the logs since ``before`` that tell of members."""
    return [
        f"{site.name}: {line}"
        for site, seen in zip(sites, before, strict=True)
        for line in site.log()[seen:].splitlines()
        if " is dead" in line or " is suspect" in line
    ]


def lengths(sites: list[Daemon]) -> list[int]:
    return [len(site.log()) for site in sites]


def test_a_cluster_that_is_stopped_and_started_at_once_holds_nobody_dead(
    sites: list[Daemon],
) -> None:
    before = lengths(sites)
    for site in sites:
        assert site.process is not None
        site.process.send_signal(signal.SIGTERM)
    for site in sites:
        assert site.process is not None
        assert site.process.wait(10) == 0
        site.process = None
    for site in sites:
        site.start()
    all_are_up(sites)
    assert news(sites, before) == []


def test_a_cluster_whose_power_comes_back_later_at_one_site_holds_nobody_dead(
    sites: list[Daemon],
) -> None:
    before = lengths(sites)
    for site in sites:
        site.kill()
    for site in sites[1:]:
        site.start()
    for site in sites[1:]:
        site.wait_ready()
    time.sleep(2.0)
    sites[0].start()
    all_are_up(sites)
    assert news(sites, before) == []


def test_a_site_that_is_told_to_end_says_goodbye(sites: list[Daemon]) -> None:
    before = lengths(sites)
    others = sites[:-1]
    assert sites[-1].stop()[0] == 0
    # It has ended, so its last words are out; nothing else is waited for but their arrival.
    wait_for(lambda: {row(s, "doris")["status"] for s in others} == {"left"}, 2, "left", others)
    sites[-1].start()
    all_are_up(sites)
    assert news(sites, before) == []


def test_a_site_that_leaves_is_gone_for_all(sites: list[Daemon]) -> None:
    doris, others = sites[-1], sites[:-1]
    doris.cli("leave")
    wait_for(lambda: {row(s, "doris")["status"] for s in others} == {"left"}, 2, "left", others)
    assert doris.process is not None
    assert doris.process.wait(10) == 0
    doris.process = None
    doris.start()
    all_are_up(sites)


def test_draining_is_seen_by_all(sites: list[Daemon]) -> None:
    berta, others = sites[1], [site for site in sites if site.name != "berta"]
    for verb, status in (("drain", "draining"), ("undrain", "alive")):
        berta.cli(verb)
        wait_for(
            lambda status=status: {row(s, "berta")["status"] for s in others} == {status},  # type: ignore[misc]
            2, status, others,
        )  # fmt: skip


def test_a_site_that_is_stopped_four_of_five_seconds_accuses_nobody_and_does_not_die(
    sites: list[Daemon],
) -> None:
    before, frozen = lengths(sites), sites[2]
    assert frozen.process is not None
    for _ in range(2):
        os.kill(frozen.process.pid, signal.SIGSTOP)
        time.sleep(4.0)
        os.kill(frozen.process.pid, signal.SIGCONT)
        time.sleep(1.0)
    told = news(sites, before)
    assert not [line for line in told if " is dead" in line], told
    assert not [line for line in told if line.startswith("carla")], told
    all_are_up(sites)


@pytest.mark.root
@pytest.mark.skipif(
    (STRACE is None or os.geteuid() != 0) and not MUST_RUN, reason="needs root and strace"
)
def test_a_call_that_blocks_the_loop_accuses_nobody(sites: list[Daemon]) -> None:
    """A system call of the loop's own thread takes four seconds: strace delays it."""
    assert STRACE is not None, "packaging/setup.sh installs it"
    before, blocked = lengths(sites), sites[1]
    assert blocked.process is not None
    tracer = subprocess.Popen(
        [STRACE, "-p", str(blocked.process.pid), "-o", "/dev/null", "-e", "trace=sendto",
         "-e", "inject=sendto:delay_enter=4000000:when=2+12"],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        time.sleep(9.0)
    finally:
        tracer.terminate()
        tracer.wait(10)
    told = news(sites, before)
    assert "suspect" in "".join(told), "it was blocked indeed: the others noticed"
    assert not [line for line in told if " is dead" in line], told
    assert not [line for line in told if line.startswith("berta")], told
    all_are_up(sites)


def test_no_log_holds_a_defect(started: list[Daemon]) -> None:
    for site in started:
        assert "Traceback" not in site.log(), site.log()
        assert "defect" not in site.log(), site.log()
