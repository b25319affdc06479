"""What Atoll alone is held to: bad requests, kills, deadlines, swaps, memory, lag, idling, overload, drift.

Each function is one part of the bench: it founds its own site and gives its rows.
"""

import contextlib
import http.client
import json
import re
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Self

from rows import Row, row
from serving_dense import dense_body, row_us, write_dense
from serving_open_loop import drive
from serving_peers import work
from serving_servers import FLOOR, JSON, Body, Server, Site, binary, floor, running, scratch
from serving_setup import MODELS

LARGE: work.Shapes = {"x": (1, 3, 960, 960)}
KILLS_A_MODEL = 2
KILLS_IN_A_ROW = 100
KILL_EVERY_S = 0.5
"""One less than quarantine takes."""
KILLERS = ("vad", "cls", "det")
DEADLINES = 20
SWAPS = 30
UNLOADED_S = 5.0
"""A former version is let go by then."""
DRIFT_REQUESTS = 200_000
CPU_S = 20.0
SHARING_S = 4.0
JSON_S = 30.0


@contextlib.contextmanager
def site(settings: str = "") -> Iterator[Site]:
    """A running site with the three models."""
    with scratch() as folder:
        made = Site(folder / "site", settings)
        with running(made):
            yield made


@dataclass(slots=True)
class Clients:
    """Threads that send one request after the other, each over a connection of its own."""

    server: Site
    model: str
    count: int
    seen: list[tuple[float, float, int]] = field(default_factory=list)
    """(sent at, answered at, status; 0 = the connection broke), monotonic seconds."""
    told: Counter[str] = field(default_factory=Counter)
    """What those that are not 200 say."""
    _ending: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._go, daemon=True) for _ in range(self.count)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(30)

    def _go(self) -> None:
        while not self._ending.is_set():
            began = time.monotonic()
            try:
                answer = self.server.ask(self.model)
                status, text = answer.status, answer.body.decode("utf-8", "replace")
            except (OSError, http.client.HTTPException) as error:
                status, text = 0, repr(error)
            if status != 200:
                self.told[text[:300]] += 1
            self.seen.append((began, time.monotonic(), status))


def bad_requests() -> list[Row]:
    """The twenty wrong ones of the tests, put to the whole daemon and the real model."""
    from bad_requests import PEERS

    right = accepted = 0
    with site() as one:
        for case, (model, (content, headers), status, sentence) in PEERS.items():
            path = f"/v2/models/{model}/infer"
            answer = one.ask("cls", Body(content, JSON), headers, path=path)
            accepted += answer.status == 200
            names = re.findall(r"(?:in|out)put '\w+'", sentence)
            if answer.status == status and all(name.encode() in answer.body for name in names):
                right += 1
            else:
                print(f"  wrong: {case}: {answer.status} {answer.body[:200]!r}")
        is_alive = one.ask("cls").status == 200
    total = len(PEERS)
    return [
        row(f"{total} malformed requests: right 4xx, error names the tensor", [right], "", total, is_least=True,
            peer="PyTriton (Triton 2.51), measured earlier", peer_value=16),
        row(f"{total} malformed requests: accepted", [accepted], "", 0),
        row("served as before after them", [float(is_alive)], "", 1, is_least=True),
    ]  # fmt: skip


def kills() -> list[Row]:
    """SIGKILL of the model worker under load, in turn with each model inside."""
    failed_s: list[float] = []
    again_s: list[float] = []
    unready: list[float] = []
    other = 0
    with scratch() as folder:
        one = Site(folder / "site")
        for model in KILLERS * KILLS_A_MODEL:
            with (
                running(one),
                Clients(one, model, 4) as clients,
            ):  # restarted: no back-off of former kills
                time.sleep(0.5)
                one.process_of("model-worker").kill()
                killed = time.monotonic()
                is_unready = False
                while time.monotonic() < killed + 0.05:
                    is_unready |= one.get("/v2/health/ready") != 200
                one.until("served again", lambda m=model: one.ask(m).status == 200)
                again_s.append(time.monotonic() - killed)
                unready.append(float(is_unready))
                failed_s += [
                    ended - killed
                    for began, ended, _ in tuple(clients.seen)
                    if began < killed < ended
                ]
                other += sum(status not in {200, 503} for _, _, status in tuple(clients.seen))
    return [
        row("worker SIGKILL: requests under way answered (503) or run elsewhere, last", failed_s, "s", 0.1, of=max),
        row("worker SIGKILL: served again, slowest", again_s, "s", 1.0, of=max,
            peer="MLServer, measured earlier", peer_value=4.4),
        row("worker SIGKILL: kills seen by /v2/health/ready", [sum(unready)], "", len(again_s), is_least=True),
        row("worker SIGKILL: answers that are neither 200 nor 503", [other], "", 0),
    ]  # fmt: skip


def kills_in_a_row() -> list[Row]:
    """A hundred SIGKILLs without a restart of the site, with one model worker and with two."""
    rows: list[Row] = []
    for workers in (1, 2):
        seen: list[int] = []
        again_s: list[float] = []
        with scratch() as folder:
            settings = f"workers = {workers}\nthreads = {workers}"
            one = Site(folder / "site", settings)
            names = ["model-worker"] if workers == 1 else ["model-worker-0", "model-worker-1"]
            with running(one), Clients(one, "cls", 4) as clients:
                for number in range(KILLS_IN_A_ROW):
                    time.sleep(KILL_EVERY_S)
                    name = names[number % workers]
                    process = one.process_of(name)
                    process.kill()
                    killed = time.monotonic()
                    one.until("served again", lambda one=one: one.ask("cls").status == 200)
                    again_s.append(time.monotonic() - killed)
                    # The site may not have seen the end yet when it is asked how things are.
                    one.until(
                        "another process is there",
                        lambda one=one, name=name, pid=process.pid: one.process_of(name).pid != pid,
                    )
                    one.until(
                        "all is well", lambda one=one, all_=[3] * workers: _holding(one) == all_
                    )
            seen = [status for _, _, status in clients.seen]
        print(f"  {workers} workers: {len(seen)} requests, failed: {dict(clients.told)}")
        told = f"worker SIGKILL x {KILLS_IN_A_ROW}, each {KILL_EVERY_S:g} s after all is well, {workers} workers"
        failed = [status for status in seen if status != 200]
        rows += [
            row(f"{told}: answered 200", [float(len(seen) - len(failed))], "", None),
            row(f"{told}: not 200 nor 503", [sum(status != 503 for status in failed)], "", 0),
            row(f"{told}: served again, slowest", again_s, "s", 1.0, of=max),
            row(f"{told}: answered 503", [float(len(failed))], "", 0 if workers > 1 else None),
        ]
    return rows


def _holding(one: Site) -> list[int]:
    """Models that each worker can answer for."""
    lines = one.read("/metrics").decode().splitlines()
    return [int(line.split()[1]) for line in lines if line.startswith("atoll_worker_models{")]


def deadlines() -> list[Row]:
    """A long run with a timeout in its middle; one operator of the larger takes some 10 ms."""
    return [*_deadlines((1, 3, 640, 640), 0.05), *_deadlines(LARGE["x"], 0.1)]


def _deadlines(shape: tuple[int, ...], limit_s: float) -> list[Row]:
    body = binary("det", {"x": shape})
    head = json.loads(body.content[: body.json_bytes])
    head["parameters"]["timeout"] = round(limit_s * 1e6)
    text = json.dumps(head).encode()
    hasty = Body(text + body.content[body.json_bytes :], body.kind, len(text))
    late_s, spent_s, wrong = [], [], 0
    with site("threads = 1") as one:
        one.ask("det", body)
        worker = one.process_of("model-worker")
        for _ in range(DEADLINES):
            # The deadline runs from the arrival on; the 11 MB take their time before that.
            answer = one.ask("det", hasty)
            wrong += answer.status != 504
            before = sum(worker.cpu_times()[:2])
            time.sleep(0.2)
            spent_s.append(sum(worker.cpu_times()[:2]) - before)
            late_s.append(answer.took_s - limit_s)
        sending = [one.ask("vad", body).took_s for _ in range(5)]  # refused: all but the run
    what = f"deadline of {limit_s * 1000:.0f} ms in a run of det at {shape[2]} x {shape[3]}"
    late_s = [late - statistics.median(sending) for late in late_s]
    return [
        row(f"{what}: answered after it, p50", [s * 1000 for s in late_s],
            "ms", 10.0),
        row(f"{what}: answers that are not 504", [wrong], "", 0),
        row(f"{what}: CPU of the worker in the 200 ms after it, p50", [s * 1000 for s in spent_s], "ms", 10.0),
    ]  # fmt: skip


def swaps(count: int = SWAPS) -> list[Row]:
    """New versions of a model while it is asked by eight."""
    import onnx

    model = onnx.load(MODELS / "cls.onnx")
    with site() as one, scratch() as folder:
        file = folder / "cls.onnx"

        def push(number: int) -> None:
            del model.metadata_props[:]
            model.metadata_props.add(key="swap", value=str(number))
            onnx.save(model, str(file))
            one.push("cls", str(number), file)

        with Clients(one, "cls", 8) as clients:
            push(2)
            time.sleep(UNLOADED_S)
            before = one.process_of("model-worker").memory_info().rss
            for number in range(3, 3 + count):
                push(number)
            time.sleep(UNLOADED_S)
            after = one.process_of("model-worker").memory_info().rss
            asked = len(clients.seen)
            bad = folder / "bad.onnx"
            bad.write_bytes(file.read_bytes()[:-1000])
            with contextlib.suppress(RuntimeError):  # said to be refused
                one.push("cls", "999", bad)
            time.sleep(1)
        failed = [status for _, _, status in clients.seen if status != 200]
    print(f"  {asked} requests during {count} swaps, {len(failed)} failed {dict(clients.told)}")
    return [
        row(f"hot swap x {count} and a bad file at concurrency 8: failed requests", [len(failed)], "", 0),
        row(f"hot swap x {count}: memory of the worker after, of before", [after / before], "x", 1.1),
    ]  # fmt: skip


def memory() -> list[Row]:
    """One request that is much larger than all others."""
    with site() as one:
        for _ in range(3):
            one.load("det", 4, 1)
        time.sleep(3)
        before = one.pss_mib()
        status = one.ask("det", binary("det", LARGE)).status
        peak = one.pss_mib()
        time.sleep(5)
        after = one.pss_mib()
    print(f"  {status}: {before:.0f} -> {peak:.0f} -> {after:.0f} MiB")
    return [
        row("memory 5 s after one 960 x 960 request, of before", [after / before], "x", 1.2,
            peer="ONNX Runtime as it comes, measured earlier", peer_value=2.85),
    ]  # fmt: skip


def lag() -> list[Row]:
    """A small question to the gateway while large JSON comes: its loop's lag, and this process's own."""
    body = Body(work.json_body("det"), JSON)
    size = len(body.content) / 1e6
    with site() as one:
        before = _lags(one)
        here = _p99_beside_json(one, body)
        within, all_of_them = (after - past for after, past in zip(_lags(one), before, strict=True))
    least = floor()
    with running(least):
        there = _p99_beside_json(least, body)
    return [
        row(f"small question answered, p99, while {size:.1f} MB JSON comes at concurrency 4", [here], "ms", 5.0,
            peer=f"{FLOOR} (JSON decoded in the thread)", peer_value=there),
        row("lag of the gateway's loop meanwhile, by its own metrics: within 5 ms", [100 * within / all_of_them], "%",
            99.0, is_least=True),
    ]  # fmt: skip


def _lags(one: Site) -> tuple[float, float]:
    """Samples of the loop's lag of at most 5 ms, and all, since the start."""
    counts = [
        float(line.split()[-1])
        for line in one.read("/metrics").decode().splitlines()
        if line.startswith(
            ('atoll_loop_lag_seconds_bucket{le="0.005"}', "atoll_loop_lag_seconds_count")
        )
    ]
    within, all_of_them = counts
    return within, all_of_them


def _p99_beside_json(server: Server, body: Body) -> float:
    """Milliseconds."""
    times: list[float] = []
    ending = threading.Event()

    def ask() -> None:
        connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
        while not ending.wait(0.005):
            began = time.perf_counter()
            connection.request("GET", "/v2/health/live")
            connection.getresponse().read()
            times.append((time.perf_counter() - began) * 1000)
        connection.close()

    prober = threading.Thread(target=ask)
    prober.start()
    seen = server.load("det", 4, JSON_S, body)
    ending.set()
    prober.join()
    times.sort()
    print(
        f"  {server.name}: {seen['rps']:.1f}/s; p50 {statistics.median(times):.2f} ms of {len(times)}"
    )
    return times[int(len(times) * 0.99)]


def idling() -> list[Row]:
    """20 requests a second of a small model: what all processes of the site use."""
    with site() as one:
        drive(one, "cls", 20, 2)
        before = one.cpu_s()
        drive(one, "cls", 20, CPU_S)
        used = one.cpu_s() - before
    return [
        row("20 requests a second of cls, CPU of all processes", [100 * used / CPU_S], "% of a core", 10.0,
            peer="ONNX Runtime as it comes, measured earlier", peer_value=101.0),
    ]  # fmt: skip


def overload() -> list[Row]:
    """Twice what the site can bear, at a fixed rate; it keeps the wait to 30 ms.

    What it bears is measured at concurrency 4: two run, two wait, nobody is refused.
    """
    with site("queue_max_s = 0.03\nbatch_rows_max = 1") as one:
        one.load("det", 4, 2)
        bears = one.load("det", 4, 4)
        assert not bears["refused"], "the base is to be measured without refusals"
        seen = drive(one, "det", 2 * bears["rps"], 8)
    accepted, refused = seen.times(200), seen.times(503)
    other = len(seen.status_and_s) - len(accepted) - len(refused)
    base_s = bears["p99_us"] / 1e6

    def at(times: list[float], part: float) -> float:
        return times[int(len(times) * part)] if times else 0.0

    print(
        f"  bears {bears['rps']:.0f}/s; of {len(seen.status_and_s)}: {len(accepted)} answered, "
        f"{len(refused)} refused p50 {at(refused, 0.5) * 1000:.1f} ms, {other} other, {seen.not_sent} not sent"
    )
    return [
        row("2x overload of det: accepted, p99, of the p99 at concurrency 4", [at(accepted, 0.99) / base_s], "x", 2.0),
        row("2x overload of det: answered, of what it bears", [len(accepted) / (8 * bears["rps"])], "", 0.8, is_least=True),
        row("2x overload of det: refused within, p50", [at(refused, 0.5) * 1000], "ms", 20.0),
        row("2x overload of det: refused within, p99", [at(refused, 0.99) * 1000], "ms", 20.0),
        row("2x overload of det: neither 200 nor 503 with Retry-After",
            [other + seen.without_retry_after + seen.not_sent], "", 0),
    ]  # fmt: skip


def sharing() -> list[Row]:
    """One request of det at a time, alone and beside 32 clients that ask for det without a pause.

    The 32 (``wrk``) are the application ``local``. What is asked beside them is of another application, of
    the same one, and of the same one with high priority, each for a few seconds in turn.
    """
    asked: dict[str, dict[str, str]] = {
        "alone": {}, "other": {"Atoll-Application": "other"}, "same": {}, "high": {"Atoll-Priority": "high"},
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in asked}
    refused = 0
    with site("batch_rows_max = 1") as one:
        one.load("det", 4, 2)
        for _ in range(3):
            for name, headers in asked.items():
                with contextlib.nullcontext() if name == "alone" else flood(one):
                    end = time.monotonic() + SHARING_S
                    while time.monotonic() < end:
                        answer = one.ask("det", headers=headers)
                        times[name].append(answer.took_s * 1000)
                        refused += answer.status != 200
    p50, p99 = (
        {name: sorted(of)[int(len(of) * part)] for name, of in times.items()}
        for part in (0.5, 0.99)
    )
    for name, of in times.items():
        print(f"  {name}: {len(of)} answered, p50 {p50[name]:.1f} ms, p99 {p99[name]:.1f} ms")
    beside, urgent = (
        f"det, one at a time {how}" for how in
        ("beside 32 clients of another application", "with high priority beside 32 clients of its application")
    )  # fmt: skip
    return [
        row(f"{beside}: p50", [p50["other"]], "ms", 2 * p50["alone"], peer="in the same application", peer_value=p50["same"]),
        row(f"{beside}: p99", [p99["other"]], "ms", peer="in the same application", peer_value=p99["same"]),
        row(f"{urgent}: p50", [p50["high"]], "ms", 2 * p50["alone"], peer="without priority", peer_value=p50["same"]),
        row(f"{urgent}: p99", [p99["high"]], "ms", peer="without priority", peer_value=p99["same"]),
        row("det, one at a time beside nobody: p50", [p50["alone"]], "ms"),
        row("det, one at a time beside nobody: p99", [p99["alone"]], "ms"),
        row("det, one at a time beside 32 clients: refused", [refused], "", 0),
    ]  # fmt: skip


@contextlib.contextmanager
def flood(one: Site) -> Iterator[None]:
    """32 clients that ask for det without a pause, for the whole of the block."""
    clients = threading.Thread(target=one.load, args=("det", 32, SHARING_S + 3))
    clients.start()
    time.sleep(1.0)  # until all are connected
    yield
    clients.join()


def is_served(one: Site, model: str, body: Body | None) -> bool:
    """Whether the model answers."""
    return one.ask(model, body).status == 200


def batching() -> list[Row]:
    """The gain of running together at concurrency 32: of convolutions, and of dense layers."""
    settings = {
        "on": "slots = 64",
        "waiting": "slots = 64\nbatch_delay_ms = 2.0",
        "off": "slots = 64\nbatch_rows_max = 1",
    }
    bodies: dict[str, Body | None] = {"cls": None, "dense": dense_body()}
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    with scratch() as folder:
        file = write_dense(folder / "dense.onnx")
        sites = {name: Site(folder / name, more) for name, more in settings.items()}
        for one in sites.values():
            with running(one):
                one.push("dense", "1", file)
        raw = {
            model: row_us(path, shape, 1) / row_us(path, shape, 8)
            for model, path, shape in (
                ("cls", MODELS / "cls.onnx", (3, 48, 192)),
                ("dense", file, (784,)),
            )
        }
        for _ in range(3):
            for name, one in sites.items():
                with running(one):
                    for model, body in bodies.items():
                        one.until("it answers", partial(is_served, one, model, body))
                        one.load(model, 32, 3, body)
                        found[model, name].append(one.load(model, 32, 4, body)["rps"])
    off = {model: statistics.median(found[model, "off"]) for model in bodies}
    peer = {model: {"peer": "each alone", "peer_value": off[model]} for model in bodies}
    return [
        row("cls, raw ONNX Runtime on one thread: 8 rows together are faster by the factor", [raw["cls"]], "x"),
        row("cls at concurrency 32, requests run together where that pays", found["cls", "on"], "/s", off["cls"], is_least=True, **peer["cls"]),
        row("dense layers (784-2048-2048-10), raw ONNX Runtime on one thread: 8 rows together are faster by the factor", [raw["dense"]], "x"),
        row("dense layers at concurrency 32, requests run together where that pays", found["dense", "on"], "/s", 1.3 * off["dense"], is_least=True, **peer["dense"]),
        row("dense layers at concurrency 32, the first waits up to 2 ms for others", found["dense", "waiting"], "/s", **peer["dense"]),
    ]  # fmt: skip


def drift(requests: int = DRIFT_REQUESTS) -> list[Row]:
    """Memory after very many requests."""
    with site() as one:
        done = warm = 0.0
        while warm < min(20_000, requests):
            warm += one.load("vad", 8, 5)["requests"]
        before = sum(process.memory_info().rss for process in one.tree())
        while done < requests:
            done += one.load("vad", 8, 10)["requests"]
        after = sum(process.memory_info().rss for process in one.tree())
    print(f"  {done:.0f} requests: {before / 2**20:.1f} -> {after / 2**20:.1f} MiB")
    return [
        row(
            f"RSS of all processes after {requests:,} requests, grown by",
            [100 * (after / before - 1)],
            "%",
            1.0,
        )
    ]


SCENES: dict[str, Callable[[], list[Row]]] = {
    "sharing": sharing, "batching": batching, "bad": bad_requests, "kills": kills, "kills_in_a_row": kills_in_a_row, "deadlines": deadlines, "swaps": swaps,
    "memory": memory, "lag": lag, "idling": idling, "overload": overload, "drift": drift,
}  # fmt: skip
