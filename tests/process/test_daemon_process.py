"""One real daemon: how it starts, what it refuses, a full disk, a damaged database, its end."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from daemon_cluster import (
    Daemon,
    found,
    make_founder,
    running,
    scratch,
    submit_job,
    token_for,
    wait_for,
)
from serving_site import MAGIKA

from agent.drivers.store import Store
from agent.foundation.writes import Put
from agent.identity.tokens import TokenRow
from agent.wire.schema import pack, unpack

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def founder() -> Iterator[Daemon]:
    with scratch() as folder:
        site = found(folder, "berlin")
        with running(site):
            yield site.start().wait_ready()


def refused(founder: Daemon, name: str, token: str) -> str:
    """What joining with ``token`` says; it must fail with code 1."""
    joiner = Daemon(founder.folder.parent, name)
    done = joiner.cli("join", token, ok=False)
    assert done.returncode == 1, done.stdout
    return done.stderr


def test_a_spent_token_is_refused(founder: Daemon) -> None:
    token = token_for(founder, "paris")
    Daemon(founder.folder.parent, "paris").cli("join", token)
    assert "was used" in refused(founder, "paris-again", token)


def test_an_expired_token_is_refused(founder: Daemon) -> None:
    token = token_for(founder, "late", "DE", "--ttl", "60s")  # the shortest life there is
    assert founder.stop()[0] == 0
    asyncio.run(age_tokens(founder.state_dir / "atoll.db"))
    founder.start().wait_ready()
    assert "expired" in refused(founder, "late", token)


async def age_tokens(path: Path) -> None:
    """Have every token expire an hour earlier: in the stopped site's database, not by waiting."""
    store = await Store.open(path)
    rows = await store.read(lambda database: [dict(row) for row in database["tokens"].rows])
    for row in rows:
        aged = unpack(TokenRow, row["row"])
        aged = replace(aged, expires_at=aged.expires_at - 3600)
        columns = {"id": row["id"], "row": pack(aged), "expires_at": aged.expires_at}
        await store.commit([Put("tokens", columns)])
    await store.close()


def test_a_mangled_token_is_refused_without_asking_anybody(founder: Daemon) -> None:
    token = token_for(founder, "mangled")
    middle = len(token) // 2
    broken = token[:middle] + ("A" if token[middle] != "A" else "B") + token[middle + 1 :]
    assert "token" in (said := refused(founder, "mangled", broken))
    assert "mistyped" in said or "damaged" in said or "not a join token" in said, said


def test_a_port_in_use_is_one_clear_error() -> None:
    with scratch() as folder:
        site = found(folder, "rome")
        for port, name in (
            (7411, "mesh_port"),
            (7412, "data_port"),
            (8000, "http_port"),
            (8001, "grpc_port"),
            (8002, "metrics_port"),
        ):
            with socket.socket() as held:
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                held.bind((site.host, port))
                held.listen()
                done = site.cli("run", ok=False)
            assert done.returncode == 1
            assert "Traceback" not in done.stderr
            assert f"cannot listen at {site.host}:{port}" in done.stderr
            assert "Address already in use" in done.stderr
            assert name in done.stderr


def test_a_second_agent_on_one_state_folder_is_refused(founder: Daemon) -> None:
    second = Daemon(founder.folder.parent, "second", state_dir=founder.state_dir)
    done = second.cli("run", ok=False)
    assert done.returncode == 1
    assert "in use" in done.stderr
    assert founder.get("/1/status")["state"] == "ready"


def test_a_mesh_host_that_nobody_can_connect_to_is_refused() -> None:
    with scratch() as folder:
        site = found(folder, "oslo")
        site.host = "0.0.0.0"
        site.configure()
        done = site.cli("run", ok=False)
    assert done.returncode == 1
    assert "no address that can be announced" in done.stderr


def test_sigterm_ends_everything_in_time(founder: Daemon) -> None:
    children = founder.children()
    assert {"agent.gateway", "agent.workers.model"} <= {c.cmdline()[2] for c in children}
    code, took_s = founder.stop()
    assert code == 0
    assert took_s < 5.0
    _, left = psutil.wait_procs(children, 1)
    assert left == []
    assert "Traceback" not in founder.log()
    founder.start().wait_ready()


def test_a_daemon_that_is_told_to_stop_while_it_starts_stops(founder: Daemon) -> None:
    founder.stop()
    for delay_s in (0.3, 0.6, 0.9, 1.2, 1.5):
        founder.start()
        assert founder.process is not None
        time.sleep(delay_s)
        children = founder.children()
        code, took_s = founder.stop()
        # Before it listens to signals SIGTERM ends it as it ends any process.
        assert code in (0, -signal.SIGTERM), founder.log()
        assert took_s < 5.0
        _, left = psutil.wait_procs(children, 2)
        assert left == []
    assert "Traceback" not in founder.log(), founder.log()
    founder.start().wait_ready()


def test_sites_meet_over_ipv6() -> None:
    meet("::1", "[::1]:7421")


def test_a_seed_may_be_a_host_name() -> None:
    meet("127.0.0.1", "localhost:7421")


def test_a_joiner_needs_nothing_but_its_tokens_address() -> None:
    meet("127.0.0.1", "")


def meet(host: str, seed: str) -> None:
    """Two sites at one address; one knows the other by ``seed``, or by its token if that is empty."""
    with scratch() as folder:
        first, second = Daemon(folder, "first"), Daemon(folder, "second")
        for site, port in ((first, 7421), (second, 7431)):
            site.host = host
            seeds = f'seeds = ["{seed}"]' if site is second and seed else ""
            site.configure(
                f"[discovery]\nmdns = false\n{seeds}",
                f"mesh_port = {port}\ndata_port = {port + 1}\nhttp_port = {port + 600}\ngrpc_port = 0\nmetrics_port = 0",
            )
        make_founder(first)
        with running(first, second):
            first.start().wait_ready()
            shown = f"[{host}]" if ":" in host else host
            assert first.get("/1/status")["http"] == f"{shown}:8021"
            second.cli("join", token_for(first, "second"))
            if seed:
                second.forget_the_tokens_addresses()
            second.start().wait_ready()
            both = {"first", "second"}
            wait_for(lambda: first.alive() == second.alive() == both, 15, seed, [first, second])
            rows = second.get("/1/peers")["peers"]
            source = "seed" if seed else "token"
            row = next(row for row in rows if row["source"] == source)
            target = seed or f"{host}:7421"
            assert (row["target"], row["name"], row["outcome"]) == (target, "first", "connected")


def test_a_damaged_database_bars_the_site_from_voting_until_it_is_a_new_one() -> None:
    with scratch() as folder:
        site = found(folder, "lost")
        with running(site):
            site.start().wait_ready()
            site.stop()
            path = site.state_dir / "atoll.db"
            data = bytearray(path.read_bytes())
            data[4096 : 4096 * 3] = os.urandom(4096 * 2)
            path.write_bytes(data)
            for _ in range(2):  # told at once, and still after another start
                site.start().wait_ready()
                status = site.get("/1/status")
                assert any("does not vote" in reason for reason in status["reasons"]), status
                checks = {row["check"]: row for row in site.get("/1/doctor")["checks"]}
                assert not checks["voting"]["ok"]
                job = site.folder / "job.toml"
                job.write_text('name = "n"\nrecipe = "mnist-2nn"\ndataset = "d"\n')
                refused = site.cli("job", "submit", str(job), ok=False)
                assert "no site may hold this job's register" in refused.stderr
                site.stop()
            assert list(site.state_dir.glob("atoll.db.damaged-*"))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_is_told_and_nothing_acknowledged_is_lost() -> None:
    with scratch() as folder:
        disk = folder / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "atoll", disk], check=True)
        try:
            check_full_disk(found(folder, "full", state_dir=disk / "state"), disk / "ballast")
        finally:
            subprocess.run(["umount", "-l", disk], check=True)


def check_full_disk(site: Daemon, ballast: Path) -> None:
    push = ("model", "push", str(MAGIKA), "--name", "magika")
    with running(site):
        site.start().wait_ready()
        site.cli(*push, "--version", "1")
        acknowledged = submit_job(site, name="before", dataset="none")
        fill(ballast, leave=32 << 20)  # models must not eat the space that the database needs
        done = site.cli("model", "push", __file__, "--name", "b", "--version", "1", ok=False)
        assert done.returncode == 1
        assert "the disk is full" in done.stderr
        after_blobs = submit_job(site, name="small", dataset="none")
        fill(ballast, leave=0)
        with pytest.raises(AssertionError, match="not on disk yet"):
            submit_job(site, name="owed", dataset="none")
        wait_for(lambda: "disk refuses writes" in troubles(site), 5, "told", [site])
        assert site.get("/1/status")["state"] == "ready"
        assert answers(site)
        ballast.unlink()
        wait_for(lambda: not troubles(site), 10, "goes on", [site])
        site.kill()
        site.start().wait_ready()
        jobs = {row["id"] for row in site.get("/1/jobs")["jobs"]}
        assert {acknowledged, after_blobs} <= jobs
        assert any(job.startswith("owed-") for job in jobs), "it was said to be written by itself"
        wait_for(lambda: site.model("magika", "1")["state"] == "ready", 20, "ready", [site])
        assert "Traceback" not in site.log(), site.log()


def fill(ballast: Path, *, leave: int) -> None:
    with ballast.open("ab") as file:
        descriptor = file.fileno()
        found = os.statvfs(ballast.parent)
        for size in (
            max(0, found.f_bavail * found.f_frsize - leave),
            *([4096] * 64 if not leave else []),
        ):
            with contextlib.suppress(OSError):
                os.write(descriptor, bytes(size))


def troubles(site: Daemon) -> str:
    return "; ".join(site.get("/1/status")["store"])


def answers(site: Daemon) -> bool:
    tensor = {"name": "bytes", "shape": [1, 2048], "datatype": "INT32", "data": [0] * 2048}
    request = site.folder / "request.json"
    request.write_text(json.dumps({"inputs": [tensor]}))
    return "outputs" in site.json("infer", "magika", "--input", str(request))
