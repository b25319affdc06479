"""Flower on the work of ``training_work``: a SuperLink and eight SuperNodes as processes, all on loopback.

Its telemetry and its check for updates are switched off. It is installed into an environment of its own beside this
checkout's, whose PyTorch it uses.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from training_work import SITES

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".cache" / "training"
FLOWER = "flwr==1.41.0"
APP = ROOT / "benchmarks" / "training_peers" / "flower"
PORT = 18_000
LIMIT_S = 420.0
AFTER_KILL_S = 75.0


def set_up() -> Path:
    """The environment's folder of commands (a minute, 100 MB beside PyTorch)."""
    place = FOLDER / "flower"
    if not (place / "bin" / "flwr").exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        packages = next(place.glob("lib/python*/site-packages"))
        ours = next((ROOT / ".venv").glob("lib/python*/site-packages"))
        subprocess.run([place / "bin" / "pip", "install", "-q", FLOWER], check=True)
        (packages / "beside.pth").write_text(f"{ours}\n")  # PyTorch and numpy; its own come first
    return place / "bin"


def flower(rounds: int, *, kill: str = "") -> dict[str, Any]:
    """Run it; ``kill``: SIGKILL of the ``server`` or a ``client`` after the first round.

    Keys: rounds (done), round_s (of each but the first), accuracy (after the last), server_mib and client_mib
    (RSS of the process trees), after_kill_s (to the next round; None: none came within 75 s).
    """
    commands = set_up()
    work = FOLDER / "run"
    shutil.rmtree(work, ignore_errors=True)
    (work / "home").mkdir(parents=True)
    (work / "home" / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = "127.0.0.1:{PORT}"\ninsecure = true\n'
    )
    log = work / "rounds"
    environment = {
        **os.environ, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "FLWR_HOME": str(work / "home"),
        "HOME": str(work), "TRAINING_LOG": str(log), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "benchmarks"), "PATH": f"{commands}:{os.environ['PATH']}",
    }  # fmt: skip
    with _ended() as processes:

        def start(name: str, *words: str) -> subprocess.Popen[bytes]:
            with (work / f"{name}.out").open("ab") as out:
                made = subprocess.Popen(
                    [str(commands / words[0]), *words[1:]], env=environment, stdout=out,
                    stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
            processes.append(made)
            return made

        server_words = (
            "flower-superlink",
            "--insecure",
            "--host",
            "127.0.0.1",
            "--port",
            str(PORT),
        )
        server = start("server", *server_words)
        clients = [
            start(
                f"client-{n}", "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{PORT}",
                "--host", "127.0.0.1", "--port", str(PORT + 100 + n),
                "--node-config", f"partition-id={n} num-partitions={SITES}",
            )
            for n in range(SITES)
        ]  # fmt: skip
        _submit(commands, environment, rounds)
        killed_at: float | None = None
        after_kill_s: float | None = None
        sizes = {"server": 0.0, "client": 0.0}
        deadline = time.monotonic() + LIMIT_S
        known = 0
        while time.monotonic() < deadline and _read(log)[-1:] != [rounds]:
            sizes["server"] = max(sizes["server"], _tree_mib(server))
            sizes["client"] = max(sizes["client"], *(_tree_mib(one) for one in clients))
            if kill and killed_at is None and _read(log)[-1:] and _read(log)[-1] >= 1:
                time.sleep(2.0)  # the next round is under way
                _kill(server if kill == "server" else clients[0])
                if kill == "server":
                    server = start("server", *server_words)
                killed_at, known = time.monotonic(), len(_read(log))
            if killed_at is not None and after_kill_s is None and len(_read(log)) > known:
                after_kill_s = time.monotonic() - killed_at
                break
            if killed_at is not None and time.monotonic() > killed_at + AFTER_KILL_S:
                break
            time.sleep(0.2)
    lines = [json.loads(text) for text in log.read_text().splitlines()] if log.exists() else []
    ends = [one["at"] for one in lines if one["round"] >= 1]
    return {
        "rounds": len(ends), "round_s": [b - a for a, b in pairwise(ends)],
        "accuracy": lines[-1]["accuracy"] if lines else None, "after_kill_s": after_kill_s,
        "server_mib": sizes["server"], "client_mib": sizes["client"],
    }  # fmt: skip


def _submit(commands: Path, environment: dict[str, str], rounds: int) -> None:
    words = [
        str(commands / "flwr"), "run", str(APP), "bench", "--run-config",
        f"num-server-rounds={rounds}",
    ]  # fmt: skip
    deadline = time.monotonic() + 60
    while True:
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"flwr run: {done.stdout[-500:]}{done.stderr[-500:]}")
        time.sleep(0.5)


def _read(log: Path) -> list[int]:
    """Rounds that have ended."""
    if not log.exists():
        return []
    return [json.loads(text)["round"] for text in log.read_text().splitlines()]


def _family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        head = psutil.Process(process.pid)
        return [*head.children(recursive=True), head]
    except psutil.Error:
        return []


def _tree_mib(process: subprocess.Popen[bytes]) -> float:
    total = 0.0
    for one in _family(process):
        with contextlib.suppress(psutil.Error):
            total += one.memory_info().rss / 2**20
    return total


def _kill(process: subprocess.Popen[bytes]) -> None:
    for one in _family(process):
        with contextlib.suppress(psutil.Error):
            one.send_signal(signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def _ended() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Ends whatever was started."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        yield started
    finally:
        for one in started:
            _kill(one)


if __name__ == "__main__":
    print(json.dumps(flower(2)))
