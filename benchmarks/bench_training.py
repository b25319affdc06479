"""Training on MNIST at eight sites (GOALS "Training"): Atoll beside the same work without a framework.

Run: make bench-training      (or: python benchmarks/bench_training.py [--runs 3] [--peers nvflare] [--only-peers])
Beside it the same work by other frameworks, and what becomes of them when one of their processes is killed.
Writes benchmarks/results/training.json and renews the figures in docs/status.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "process")]

from daemon_cluster import Daemon, admit, found, running, scratch, submit_job, wait_for  # noqa: E402
from rows import Row, commit, line, row  # noqa: E402
from training_peer import AFTER_KILL_S, Peer  # noqa: E402
from training_work import BATCH, RATE, ROUNDS, SITES, load, plain, write_sites  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "training.json"
PEERS = ("flower", "nvflare", "p2pfl")
PEER_ROUNDS = 4
ROUND = "a round, 8 sites, TLS + sandbox + register"


def main() -> int:
    """Measure, write, and print one line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--peers", type=_peers, default=PEERS, help="flower,nvflare,p2pfl; empty: none"
    )
    parser.add_argument("--only-peers", action="store_true", help="keep all other rows as they are")
    asked = parser.parse_args()
    if asked.only_peers:
        rows = json.loads(RESULTS.read_text())
    else:
        here = commit()
        rows = [one | {"commit": here} for one in ours(asked.runs)]
        write(rows)
    ours_s = next(one["value"] for one in rows if one["name"] == ROUND)
    for name in asked.peers:
        rows = with_peer(rows, name, ours_s)
        write(rows)  # what is measured stays, whatever becomes of the next peer
    for one in rows:
        print(line(one))
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / "status.py")], check=True)
    return 0


def write(rows: Sequence[Row]) -> None:
    """Into the results file."""
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


def _peers(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    if unknown := set(names) - set(PEERS):
        raise argparse.ArgumentTypeError(f"no peer: {', '.join(sorted(unknown))}")
    return names


def ours(runs: int) -> list[Row]:
    """Atoll, beside the same work without a framework."""
    plains = [plain() for _ in range(runs)]
    plain_s = statistics.median(value for took, _ in plains for value in took[1:])
    found_: list[dict[str, Any]] = []
    with eight_sites() as sites:
        found_ += [measured(sites, number) for number in range(runs)]

    def of(key: str) -> list[float]:
        return [float(one[key]) for one in found_]

    beside = "no framework, 2 processes"
    return [
        row(ROUND, of("round_s"), "s", 2.1, peer=beside, peer_value=plain_s),
        row("a round over no framework", [value - plain_s for value in of("round_s")], "s", 0.5),
        row("accuracy on MNIST's 10,000 test images after 10 rounds", of("accuracy"), "", 0.950,
            is_least=True, peer=beside, peer_value=statistics.median(right for _, right in plains)),
        row("digests of the last parameters at all sites", of("digests"), "", 1.0),
        row("submitted to the first round committed, cold", of("first_s")[:1], "s", 15.0),
        row("submitted to the first round committed, again", of("first_s")[1:] or None, "s", 5.0),
        row("memory of control while training (PSS), greatest of 8", of("control_mib"), "MiB", 60.0),
        row("memory of a site while training (PSS), greatest of 8", of("site_mib"), "MiB", 550.0),
    ]  # fmt: skip


def with_peer(rows: list[Row], name: str, ours_s: float) -> list[Row]:
    """The rows with those of a peer anew, in the place of its former ones."""
    peer = import_module(f"training_{name}").PEER
    here = commit()
    made = [one | {"commit": here} for one in peer_rows(peer, ours_s)]
    return [one for one in rows if not peer.has(one["name"])] + made


def peer_rows(peer: Peer, ours_s: float) -> list[Row]:
    """The same work by another framework, and what becomes of it when one of its processes is killed."""
    whole = peer.run(PEER_ROUNDS)
    told, client = peer.told, peer.client

    def one(value: float | None) -> list[float] | None:
        return None if value is None else [value]

    rows = [
        row(f"{told}: a round", whole["round_s"], "s", None, peer="Atoll", peer_value=ours_s),
        row(f"{told}: accuracy after {whole['rounds']} rounds", one(whole["accuracy"]), ""),
        row(f"{told}: memory of a {client} (RSS), greatest of 8", [whole["client_mib"]], "MiB"),
    ]  # fmt: skip
    if whole["server_mib"] is not None:
        name = f"{told}: memory of the server (RSS)"
        rows.insert(2, row(name, [whole["server_mib"]], "MiB"))
    for who in peer.kills:
        after = peer.run(PEER_ROUNDS, kill=who)["after_kill_s"]
        name = f"{told}: SIGKILL of {who} in mid-run to the next round"
        if after is None:
            why = f": {peer.reason}" if peer.reason else ""
            name += f" (none within {AFTER_KILL_S:.0f} s{why})"
        rows.append(row(name, one(after), "s"))
    return rows


class eight_sites:  # noqa: N801 - used as a function
    """Eight real daemons with their parts of MNIST, which all know all."""

    def __enter__(self) -> list[Daemon]:
        """Start them."""
        import contextlib

        self._stack = contextlib.ExitStack()
        folder = self._stack.enter_context(scratch())
        binds = [f'[datasets.mnist]\npath = "{place}"' for place in write_sites(folder)]
        first = found(folder, "site-0", extra=binds[0])
        self._stack.enter_context(running(first))
        first.start().wait_ready()
        others = [admit(first, f"site-{n}", extra=binds[n]) for n in range(1, SITES)]
        self._stack.enter_context(running(*others))
        for site in others:
            site.start()
        sites = [first, *others]
        wait_for(lambda: all(len(s.alive()) == SITES for s in sites), 90, "all see all", sites)
        return sites

    def __exit__(self, *_: object) -> None:
        """End them."""
        self._stack.close()


def measured(sites: Sequence[Daemon], number: int) -> dict[str, Any]:
    """One job from submission to its model."""
    began = time.time()  # noqa: TID251 - beside the sites' own "committed_at"
    job = submit_job(
        sites[0], name=f"mnist-{number}", dataset="mnist", rounds=ROUNDS, batch=BATCH,
        learning_rate=RATE, sites_min=SITES, seed=number, publish=f"mnist-{number}",
    )  # fmt: skip
    control = site_mib = 0.0
    while True:
        view = sites[0].get(f"/1/jobs/{job}")
        if view["phase"] != "running" and view["round"] >= ROUNDS:
            break
        assert view["state"] != "failed", view["reason"]
        if view["round"] in (3, 7):
            used = [_memory_mib(site) for site in sites]
            control = max(control, *(one[0] for one in used))
            site_mib = max(site_mib, *(one[1] for one in used))
        time.sleep(0.1)
    wait_for(
        lambda: all(s.get(f"/1/jobs/{job}")["state"] == "finished" for s in sites),
        120,
        "finished",
        sites,
    )
    views = [site.get(f"/1/jobs/{job}") for site in sites]
    at = [one["committed_at"] for one in views[0]["rounds_done"]]
    exported = views[0]["value"]["exported"]
    holder = next(s for s in sites if (s.state_dir / "blobs" / "data" / exported).exists())
    return {
        "round_s": statistics.median(b - a for a, b in pairwise(at)),
        "first_s": at[0] - began, "control_mib": control, "site_mib": site_mib,
        "digests": len({one["value"]["parameters"] for one in views}),
        "accuracy": _accuracy(holder.state_dir / "blobs" / "data" / exported),
    }  # fmt: skip


def _memory_mib(site: Daemon) -> tuple[float, float]:
    """Of the control process, and of all of the site's."""
    assert site.process is not None
    every = [psutil.Process(site.process.pid), *site.children()]
    sizes = []
    for one in every:
        try:
            sizes.append(one.memory_full_info().pss / 2**20)
        except psutil.Error:
            sizes.append(0.0)
    return sizes[0], sum(sizes)


def _accuracy(model: Path) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.read_bytes(), providers=["CPUExecutionProvider"])
    images, labels = load("t10k")
    (logits,) = session.run(["logits"], {"image": images.astype(np.float32) / 255.0})
    return float((logits.argmax(1) == labels).mean())


if __name__ == "__main__":
    raise SystemExit(main())
