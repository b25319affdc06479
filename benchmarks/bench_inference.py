"""Inference beside the servers that people use, and what a single site is held to.

Run: make bench-inference       (or: python benchmarks/bench_inference.py [--only PART ...])
Sets up by itself what it needs: BentoML, MLServer, LitServe and PyTriton in environments of their own, three
ONNX models out of packages, wrk (as root, from Debian). Writes benchmarks/results/inference.json and renews
docs/status.md. ``--only`` replaces the rows of some parts; each row carries the commit it was measured at.

Everything runs on this machine over loopback: 1 thread a run, no spinning, two runs at once, no batches but
in the part that shows their gain. Atoll is the whole daemon with identity, gateway, sandboxed worker,
admission, audit and metrics; see ``serving_servers``.
"""

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rows import Row, commit, line

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "inference.json"
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "process")]


def main() -> int:
    """Measure, write, and print one line for each figure; 1 if a part failed."""
    import serving_beside
    import serving_scenes
    from serving_setup import PEERS, set_up

    parts = {"beside": partial(serving_beside.measure, list(PEERS)), **serving_scenes.SCENES}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--only", choices=parts, nargs="+", help="these parts; the others' rows stay"
    )
    parser.add_argument(
        "--peers", choices=PEERS, nargs="*", default=list(PEERS), help="packaged servers"
    )
    parser.add_argument("--drift-requests", type=int, default=serving_scenes.DRIFT_REQUESTS)
    asked = parser.parse_args()
    parts["beside"] = partial(serving_beside.measure, asked.peers)
    parts["drift"] = partial(serving_scenes.drift, asked.drift_requests)
    wanted = asked.only or list(parts)
    set_up(asked.peers if "beside" in wanted else [])
    found: dict[str, list[Row]] = {}
    for name in wanted:
        print(f"== {name}", flush=True)
        began = time.monotonic()
        try:
            found[name] = parts[name]()
        except Exception:  # noqa: BLE001 - the other parts are still worth having
            traceback.print_exc()
            continue
        for one in found[name]:
            print(line(one))
        print(f"   took {time.monotonic() - began:.0f} s", flush=True)
    merge(found, list(parts))
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / "status.py")], check=True)
    return 0 if len(found) == len(wanted) else 1


def merge(parts: dict[str, list[Row]], order: Sequence[str]) -> None:
    """Put the rows of these parts into the results file, in place of what it had of them."""
    here = commit()
    former: list[Row] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    kept = {part: [one for one in former if one["part"] == part] for part in order}
    for part, rows in parts.items():
        kept[part] = [one | {"part": part, "commit": here} for one in rows]
    RESULTS.write_text(json.dumps([one for part in order for one in kept[part]], indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
