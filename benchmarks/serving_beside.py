"""Atoll beside the floor and the packaged servers, in one run; raw ONNX Runtime calibrates.

What is compared most closely, Atoll and the floor, runs side by side: both up, one slice of load each in
turn. Starts and memory are taken from each server alone.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rows import Row, row
from serving_peers import work
from serving_servers import ATOLL, FLOOR, WRAPPERS, Server, Site, floor, peers, running, scratch
from serving_setup import MODELS

CONCURRENCY = (1, 8)
SLICES, SLICE_S = 5, 1.0
RAW_S = 0.4
ADDED_MS = {"vad": 0.8, "cls": 1.2, "det": 1.8}
SHARE = {"vad": 0.25, "cls": 0.65, "det": 0.88}
CPU_MS = {"vad": 0.7, "cls": 2.3, "det": None}
Point = tuple[str, int]


@dataclass(slots=True)
class Found:
    """Of one server."""

    start_s: float = 0.0
    idle_mib: float = 0.0
    loaded_mib: float = 0.0
    slices: dict[Point, list[dict[str, float]]] = field(default_factory=dict)

    def all(self, model: str, concurrency: int, key: str) -> list[float]:
        """One figure of every slice."""
        return [one[key] for one in self.slices[model, concurrency]]

    def median(self, model: str, concurrency: int, key: str) -> float:
        """The middle one."""
        return statistics.median(self.all(model, concurrency, key))


def raw() -> dict[str, dict[str, float]]:
    """What ONNX Runtime alone does here and now."""
    done = subprocess.run(
        [sys.executable, str(WRAPPERS / "raw.py"), str(RAW_S)], capture_output=True, check=True, cwd=WRAPPERS,
        env={"SERVING_MODELS": str(MODELS), "PATH": ""},
    )  # fmt: skip
    found: dict[str, dict[str, float]] = json.loads(done.stdout)
    return found


def measure(names: list[str]) -> list[Row]:
    """All rows of the table beside ``names`` of ``serving_setup.PEERS``."""
    with scratch() as folder:
        ours, least = Site(folder / "site", "batch_rows_max = 1"), floor()
        found = {server.name: _alone(server) for server in (least, ours)}
        calibrations = [raw()]
        with running(least, ours):
            for number in range(SLICES):
                _load((least, ours) if number % 2 else (ours, least), found)
                calibrations.append(raw())
        for server in peers(names, folder):
            try:
                found[server.name] = _alone(server, is_compared=False)
            except RuntimeError as error:
                print(f"{server.name} is left out: {error}", flush=True)
        calibrations.append(raw())
    limit = {
        model: {key: statistics.median(one[model][key] for one in calibrations) for key in ("p50_us", "rps2", "cpu_ms")}
        for model in work.MODELS
    }  # fmt: skip
    return _rows(found, limit)


def _alone(server: Server, *, is_compared: bool = True) -> Found:
    """Its start and memory; every point as well, unless it ``is_compared`` side by side later."""
    found = Found()
    try:
        found.start_s = server.start_to_answers()
        time.sleep(1.0)
        found.idle_mib = server.pss_mib()
        if not is_compared:
            _load((server,), {server.name: found})
        else:
            for model in work.MODELS:
                server.load(model, 8, 2 * SLICE_S)
        found.loaded_mib = server.pss_mib()
    finally:
        server.stop()
    print(
        f"{server.name}: {found.start_s:.2f} s, {found.idle_mib:.0f} -> {found.loaded_mib:.0f} MiB",
        flush=True,
    )
    return found


def _load(servers: Sequence[Server], found: dict[str, Found]) -> None:
    """One slice of each point, one server right after the other."""
    for model in work.MODELS:
        for concurrency in CONCURRENCY:
            for server in servers:
                seen = server.load(model, concurrency, SLICE_S)
                if seen["refused"] or seen["broken"]:
                    raise RuntimeError(f"{server.name} fails requests of {model}: {seen}")
                found[server.name].slices.setdefault((model, concurrency), []).append(seen)


def _rows(found: dict[str, Found], limit: dict[str, dict[str, float]]) -> list[Row]:
    ours, least = found[ATOLL], found[FLOOR]
    packaged = {name: one for name, one in found.items() if name not in {ATOLL, FLOOR}}
    rows: list[Row] = []

    def added(one: Found, model: str) -> list[float]:
        return [(us - limit[model]["p50_us"]) / 1000 for us in one.all(model, 1, "p50_us")]

    def share(one: Found, model: str) -> list[float]:
        return [rps / limit[model]["rps2"] for rps in one.all(model, 8, "rps")]

    middle = statistics.median
    for model in work.MODELS:
        name = f"{model}, added to raw ONNX Runtime at concurrency 1, p50"
        at_floor, here = middle(added(least, model)), added(ours, model)
        rows.append(row(name, here, "ms", ADDED_MS[model], peer=FLOOR, peer_value=at_floor))
        rows.append(
            row(f"{model}, the same, times the floor's", [middle(here) / at_floor], "x", 1.35)
        )
        name = f"{model}, requests a second at concurrency 8, of raw with two threads"
        at_floor, here = middle(share(least, model)), share(ours, model)
        rows.append(
            row(name, here, "", SHARE[model], is_least=True, peer=FLOOR, peer_value=at_floor)
        )
        rows.append(
            row(
                f"{model}, the same, times the floor's",
                [middle(here) / at_floor],
                "x",
                0.85,
                is_least=True,
            )
        )
        for peer, one in packaged.items():
            theirs = one.median(model, 8, "rps")
            goal = 2 * theirs if model != "det" else None
            rows.append(
                row(
                    f"{model}, requests a second at concurrency 8, beside {peer}",
                    ours.all(model, 8, "rps"),
                    "/s",
                    goal,
                    is_least=goal is not None,
                    peer=peer,
                    peer_value=theirs,
                )
            )
            rows.append(
                row(
                    f"{model}, added at concurrency 1, beside {peer}",
                    added(ours, model),
                    "ms",
                    peer=peer,
                    peer_value=middle(added(one, model)),
                )
            )
        rows.append(
            row(
                f"{model}, CPU of a request at concurrency 8",
                ours.all(model, 8, "cpu_ms"),
                "ms",
                CPU_MS[model],
                peer=FLOOR,
                peer_value=least.median(model, 8, "cpu_ms"),
            )
        )
    for peer, one in {FLOOR: least, **packaged}.items():
        goals = (1.5, 150.0, 200.0) if peer == FLOOR else (None, None, None)
        at = "" if peer == FLOOR else f", beside {peer}"
        rows += [
            row(f"start to three models answering{at}", [ours.start_s], "s", goals[0], peer=peer, peer_value=one.start_s),
            row(f"memory of all processes (PSS), idle{at}", [ours.idle_mib], "MiB", goals[1], peer=peer, peer_value=one.idle_mib),
            row(f"memory of all processes (PSS), after load{at}", [ours.loaded_mib], "MiB", goals[2], peer=peer, peer_value=one.loaded_mib),
        ]  # fmt: skip
    return rows
