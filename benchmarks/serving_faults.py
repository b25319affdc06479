"""Faults against one serving site at full size: what breaks, how long it takes, what it holds.

Run: python benchmarks/serving_faults.py        (about five minutes; the tests do the same in small)
"""

import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "process")]

BROKEN, CROWD, CROWD_S, HUGE_BYTES, VANISHED = 1000, 2000, 20.0, 512 << 20, 200
LAG_P = 0.001
"""Moments that may be later than 50 ms: p99.9."""
LATENCY_S = 0.25
HUGE_S, HUGE_HELD_BYTES = 2.0, 128 << 20

Row = dict[str, Any]


def measure() -> list[Row]:
    """Every row, goals that were missed included."""
    from serving_models import CLS, DET, MAGIKA
    from serving_site import found, open_site

    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with open_site(found(folder / "identity"), folder / "blobs") as site:
            site.start_worker()
            site.serve("cls", CLS)
            models = {
                "cls": CLS.read_bytes(),
                "det": DET.read_bytes(),
                "magika": MAGIKA.read_bytes(),
            }
            rows += _broken(site, models, folder)
            rows += _crowd(site)
            rows += _huge(site)
            rows += _vanished(site)
    return rows


def _broken(site: Any, models: dict[str, bytes], folder: Path) -> list[Row]:
    from serving_faults import Bystander, late, metrics, offer_broken

    before = metrics(site)
    with Bystander(site, pause_s=0.05).asking() as bystander:
        told = offer_broken(site, models, BROKEN, 7, folder)
    after = metrics(site)
    for crash in told.crashes:
        print("crash:", crash)
    hurt = [one for one in bystander.refused if one[0] != 503]
    return [
        _row(f"of {BROKEN} broken models: served", told.loaded, "", None),
        _row("refused with a reason", told.refused - told.unexplained, "", None),
        _row("refused without a reason", told.unexplained, "", 0),
        _row("loaded and left a request without an answer", told.unanswered, "", 0),
        _row("ended their worker (a new one was started)", len(told.crashes), "", None),
        _row("slowest answer to an offer", told.slowest_s, "s", 65.0),
        _row("moments at which the gateway's loop was over 50 ms late", late(before, after), "",
             LAG_P),
        _row("other model, requests meanwhile", len(bystander.took_s), "", None),
        _row("other model, failed but for the time of a new worker", len(hurt), "", 0),
        _row("other model, p99", bystander.quantile_s(0.99), "s", None),
    ]  # fmt: skip


def _crowd(site: Any) -> list[Row]:
    from serving_faults import Bystander, forget_peak, late, metrics, peak_bytes, slow_crowd

    with Bystander(site).asking() as alone:
        time.sleep(3)
    pid = site.gateway.process.pid
    held, before = forget_peak(pid), metrics(site)
    with slow_crowd(site, CROWD) as seen, Bystander(site).asking() as bystander:
        time.sleep(CROWD_S)
    after = metrics(site)
    return [
        _row("one client alone, p99", alone.quantile_s(0.99), "s", None),
        _row(f"beside {CROWD} slow connections, p50", bystander.quantile_s(0.5), "s", None),
        _row("the same, p99", bystander.quantile_s(0.99), "s", LATENCY_S),
        _row("the same, slowest", max(bystander.took_s), "s", None),
        _row("the same, requests", len(bystander.took_s), "", None),
        _row("the same, refused", len(bystander.refused), "", 0),
        _row("slow connections that came", seen["came"], "", None),
        _row("memory that they cost the gateway", peak_bytes(pid) - held, "B", 256 << 20),
        _row("moments at which the gateway's loop was over 50 ms late", late(before, after), "",
             LAG_P),
    ]  # fmt: skip


def _huge(site: Any) -> list[Row]:
    from serving_faults import forget_peak, peak_bytes, send_huge

    rows, pid = [], site.gateway.process.pid
    for form in ("length", "chunked", "gzip"):
        held = forget_peak(pid)
        status, took_s, sent = send_huge(site, form, HUGE_BYTES)
        rows += [
            _row(f"512 MiB by {form}: status", status, "", None),
            _row(f"512 MiB by {form}: answered after", took_s, "s", HUGE_S),
            _row(f"512 MiB by {form}: taken off the client's hands", sent, "B", None),
            _row(f"512 MiB by {form}: held by the gateway", peak_bytes(pid) - held, "B",
                 HUGE_HELD_BYTES),
        ]  # fmt: skip
    return rows


def _vanished(site: Any) -> list[Row]:
    from serving_faults import open_files, settle, vanish

    time.sleep(13)  # the last of the slow crowd
    files = open_files(site.gateway.process.pid)
    vanish(site, VANISHED, random.Random(3))
    begun = time.monotonic()
    settle(site, files)
    name = f"{VANISHED} vanished clients: no request, run or descriptor left over after"
    return [_row(name, time.monotonic() - begun, "s", 10.0)]


def _row(name: str, value: float, unit: str, goal: float | None) -> Row:
    held = None if goal is None else value <= goal
    return {"name": name, "value": round(value, 6), "unit": unit, "goal": goal, "held": held}


if __name__ == "__main__":
    for row in measure():
        print(row, flush=True)
