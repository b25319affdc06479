"""NVFlare on the work of ``training_work``: a server and eight clients as processes, mutual TLS, all on loopback.

It is provisioned as for real machines and runs without its shell loop that starts what has died, so that a
server that was killed is started again at once. It sends no telemetry: there is nothing to switch off.
"""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from training_peer import LOST, ROOT, Peer, Process, Run, environment, kill_tree, running
from training_work import SITES

PACKAGE = "nvflare==2.9.0"
APP = ROOT / "benchmarks" / "training_peers" / "nvflare"
PROVISION_S, SUBMIT_S = 60.0, 120.0


def set_up() -> Path:
    """The environment's folder of commands (a minute, 240 MB beside PyTorch)."""
    return environment("nvflare", [PACKAGE])


def nvflare(rounds: int, *, kill: str = "") -> dict[str, Any]:
    """Run it; ``kill``: SIGKILL of the ``server`` or a ``client`` in the second round. Keys: as of ``flower``."""
    commands = set_up()
    path = f"{ROOT / 'benchmarks'}:{APP}"
    with running("nvflare", commands, PYTHONPATH=path) as run:
        subprocess.run(
            ["nvflare", "provision", "-p", str(APP / "project.yml"), "-w", str(run.work)],
            env=run.environment, cwd=run.work, check=True, capture_output=True, timeout=PROVISION_S,
        )  # fmt: skip
        kits = run.work / "bench" / "prod_00"

        def start(who: str) -> Process:
            return run.start(who, "bash", str(kits / who / "startup" / "sub_start.sh"), "--once")

        server = start("localhost")
        clients = [start(f"site-{n}") for n in range(SITES)]
        _submit(run, kits / "admin@bench.test", rounds)

        def killed() -> Process:
            if kill == "client":
                kill_tree(clients[LOST])
                return server
            kill_tree(server)
            return start("localhost")

        return run.measured(rounds, server, clients, killed if kill else None)


def _submit(run: Run, kit: Path, rounds: int) -> None:
    words = ["python", str(APP / "submit.py"), str(kit), str(rounds)]
    deadline = time.monotonic() + SUBMIT_S
    while True:
        done = subprocess.run(
            words, env=run.environment, cwd=APP, capture_output=True, text=True, check=False,
            timeout=SUBMIT_S,
        )  # fmt: skip
        if done.returncode == 0:
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"NVFlare's job: {done.stdout[-500:]}{done.stderr[-500:]}")
        time.sleep(0.5)


PEER = Peer(PACKAGE, f"{SITES} clients", "client", nvflare, ("server", "client"))

if __name__ == "__main__":
    print(json.dumps(nvflare(2)))
