"""What every peer of ``training_work`` needs: an environment, processes that are watched, and one that is killed.

An environment is made beside this checkout's, whose PyTorch it uses. A run's processes carry its mark in
their environment, so that at its end also those are ended whose parent is gone.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from training_log import now
from training_work import SITES

ROOT = Path(__file__).resolve().parents[1]
FOLDER = (ROOT / ".cache").resolve() / "training"
LIMIT_S = 420.0
AFTER_KILL_S = 75.0
LOOK_S = 1.0
"""Between looks at the memory: a look takes the work's own cores for a moment."""
LOST = SITES - 1
"""The site that is killed where one is; site 0 may have to measure."""
MARK = "TRAINING_RUN"

Process = subprocess.Popen[bytes]


@dataclass(frozen=True)
class Peer:
    """One framework, and how its figures are told."""

    package: str
    sites: str
    client: str
    """What it calls a site."""
    run: Callable[..., dict[str, Any]]
    kills: tuple[str, ...]
    """Whom ``run`` can kill."""
    reason: str = ""
    """Why no round comes after a kill, where that is known."""

    @property
    def told(self) -> str:
        """How its rows begin."""
        return f"{self.package}, {self.sites}"

    def has(self, name: str) -> bool:
        """Whether a row is of this peer, of whatever version."""
        return name.startswith(f"{self.package.partition('==')[0]}==")


def environment(name: str, packages: Sequence[str], without_needs: Sequence[str] = ()) -> Path:
    """The folder of commands of an environment; ``without_needs`` is installed as it is, without what it asks for."""
    place = FOLDER / name
    beside = f"{next((ROOT / '.venv').resolve().glob('lib/python*/site-packages'))}\n"
    ready = [*place.glob("lib/python*/site-packages/beside.pth")]
    if not ready:
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        pip = [str(place / "bin" / "pip"), "install", "-q"]
        subprocess.run([*pip, *packages], check=True)
        if without_needs:
            subprocess.run([*pip, "--no-deps", *without_needs], check=True)
        ready = [next(place.glob("lib/python*/site-packages")) / "beside.pth"]
    ready[0].write_text(beside)  # PyTorch and numpy; its own come first
    return place / "bin"


class Run:
    """The processes of one run, its folder, and its log: a line of JSON for each round that has ended."""

    def __init__(self, name: str, commands: Path, *, says: int = 1, **variables: str) -> None:
        """``says``: a round has ended when so many lines say so."""
        self.work = FOLDER / f"run-{name}"
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        self.log = self.work / "rounds"
        self.says = says
        self._mark = str(uuid.uuid4())
        self._started: list[Process] = []
        self.environment = {
            **os.environ, "HOME": str(self.work), "TRAINING_LOG": str(self.log), MARK: self._mark,
            "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "benchmarks"),
            "PATH": f"{commands}:{os.environ['PATH']}", **variables,
        }  # fmt: skip

    def start(self, name: str, *words: str) -> Process:
        """A process in a session of its own; what it prints goes to NAME.out."""
        with (self.work / f"{name}.out").open("ab") as out:
            made = subprocess.Popen(
                words, env=self.environment, stdout=out, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, cwd=self.work, start_new_session=True,
            )  # fmt: skip
        self._started.append(made)
        return made

    def lines(self) -> list[dict[str, Any]]:
        """The log so far; a line that is being written is not there yet."""
        text = self.log.read_text() if self.log.exists() else ""
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def ended(self) -> list[dict[str, Any]]:
        """When each round ended, and its accuracy, in their order."""
        of: dict[int, list[dict[str, Any]]] = {}
        for line in self.lines():
            if line.get("round", 0) >= 1:
                of.setdefault(line["round"], []).append(line)
        return [
            {
                "at": max(line["at"] for line in said),
                "accuracy": next((line["accuracy"] for line in said if "accuracy" in line), None),
            }
            for _, said in sorted(of.items())
            if len(said) >= self.says
        ]

    def measured(
        self,
        rounds: int,
        server: Process | None,
        clients: Sequence[Process],
        kill: Callable[[], Process | None] | None = None,
    ) -> dict[str, Any]:
        """Watch until the last round, or until it is known what comes of a kill.

        ``kill`` is called once, while site LOST trains in the second round; it answers with the server from then on.
        """
        killed_at = after_kill_s = None
        server_mib = client_mib = look_at = 0.0
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            ended = self.ended()
            if killed_at is None:
                if len(ended) >= rounds:
                    break
                if time.monotonic() > look_at:
                    self._check(server, *clients)
                    server_mib = max(server_mib, tree_mib(server))
                    client_mib = max(client_mib, *(tree_mib(one) for one in clients))
                    look_at = time.monotonic() + LOOK_S
                if kill and self._trains_again():
                    server = kill()
                    killed_at = now()
            elif ended and (last := max(one["at"] for one in ended)) > killed_at:
                after_kill_s = last - killed_at
                break
            elif now() > killed_at + AFTER_KILL_S:
                break
            time.sleep(0.1)
        if kill and killed_at is None:
            raise SystemExit(f"site {LOST} did not get to its second round; see {self.work}")
        ended = self.ended()
        return {
            "rounds": len(ended), "round_s": [b["at"] - a["at"] for a, b in pairwise(ended)],
            "accuracy": ended[-1]["accuracy"] if ended else None, "after_kill_s": after_kill_s,
            "server_mib": server_mib if server else None, "client_mib": client_mib,
        }  # fmt: skip

    def _trains_again(self) -> bool:
        return any(line.get("site") == LOST and line.get("trains") == 2 for line in self.lines())

    def _check(self, *processes: Process | None) -> None:
        for one in processes:
            if one is not None and one.poll() is not None:
                raise SystemExit(f"{one.args!r}: ended with {one.returncode}; see {self.work}")

    def end(self) -> None:
        """End all that was started, and all that they started."""
        for one in self._started:
            kill_tree(one)
        for left in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if left.environ().get(MARK) == self._mark:
                    left.kill()


@contextlib.contextmanager
def running(name: str, commands: Path, *, says: int = 1, **variables: str) -> Iterator[Run]:
    """A run that is ended whatever happens, a SIGTERM to this process included."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    run = Run(name, commands, says=says, **variables)
    try:
        yield run
    finally:
        run.end()
        signal.signal(signal.SIGTERM, before)


def until(is_true: Callable[[], bool], limit_s: float, what: str) -> None:
    """Wait for it, and give up aloud."""
    deadline = time.monotonic() + limit_s
    while not is_true():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {limit_s:.0f} s")
        time.sleep(0.2)


def family(process: Process) -> list[psutil.Process]:
    """It and what it started, itself last."""
    try:
        head = psutil.Process(process.pid)
        return [*head.children(recursive=True), head]
    except psutil.Error:
        return []


def tree_mib(process: Process | None) -> float:
    """RSS of it and of what it started."""
    total = 0.0
    for one in family(process) if process else ():
        with contextlib.suppress(psutil.Error):
            total += one.memory_info().rss / 2**20
    return total


def kill_tree(process: Process) -> None:
    """SIGKILL of it and of what it started."""
    for one in family(process):
        with contextlib.suppress(psutil.Error):
            one.kill()
    process.wait()
