"""Flower on the work of ``training_work``: a SuperLink and eight SuperNodes as processes, all on loopback.

Its telemetry and its check for updates are switched off.
"""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from training_peer import LOST, ROOT, Peer, Process, Run, environment, kill_tree, running
from training_work import SITES

PACKAGE = "flwr==1.41.0"
APP = ROOT / "benchmarks" / "training_peers" / "flower"
PORT = 18_000
SUBMIT_S = 60.0


def set_up() -> Path:
    """The environment's folder of commands (a minute, 100 MB beside PyTorch)."""
    return environment("flower", [PACKAGE])


def flower(rounds: int, *, kill: str = "") -> dict[str, Any]:
    """Run it; ``kill``: SIGKILL of the ``server`` or a ``client`` in the second round.

    Keys: rounds (done), round_s (of each but the first), accuracy (after the last), server_mib and client_mib
    (RSS of the process trees), after_kill_s (to the next round; None: none came within 75 s).
    """
    commands = set_up()
    off = {
        "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }  # fmt: skip
    with running("flower", commands, **off) as run:
        home = run.work / "home"
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = "127.0.0.1:{PORT}"\ninsecure = true\n'
        )
        run.environment["FLWR_HOME"] = str(home)

        def start_server() -> Process:
            return run.start(
                "server", "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(PORT)
            )  # fmt: skip

        server = start_server()
        clients = [
            run.start(
                f"client-{n}", "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{PORT}",
                "--host", "127.0.0.1", "--port", str(PORT + 100 + n),
                "--node-config", f"partition-id={n} num-partitions={SITES}",
            )
            for n in range(SITES)
        ]  # fmt: skip
        _submit(run, rounds)

        def killed() -> Process:
            if kill == "client":
                kill_tree(clients[LOST])
                return server
            kill_tree(server)
            return start_server()

        return run.measured(rounds, server, clients, killed if kill else None)


def _submit(run: Run, rounds: int) -> None:
    words = ["flwr", "run", str(APP), "bench", "--run-config", f"num-server-rounds={rounds}"]
    deadline = time.monotonic() + SUBMIT_S
    while True:
        done = subprocess.run(
            words, env=run.environment, capture_output=True, text=True, check=False, timeout=SUBMIT_S
        )  # fmt: skip
        if done.returncode == 0:
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"flwr run: {done.stdout[-500:]}{done.stderr[-500:]}")
        time.sleep(0.5)


PEER = Peer(PACKAGE, f"{SITES} SuperNodes", "client", flower, ("server", "client"))

if __name__ == "__main__":
    print(json.dumps(flower(2)))
