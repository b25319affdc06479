"""Faults for a site that serves: broken models, slow crowds, huge bodies, clients that vanish.

Each returns what was seen, in figures; the tests ask for little and judge it, ``benchmarks/serving_faults.py``
asks for much and reports it.
"""

import contextlib
import queue
import random
import selectors
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from serving_site import ServingSite

from agent.wire.inside import KnownModel, LocalModel, ModelLoaded, ModelRefused

LOAD_S_MAX = 90.0
"""Beyond the worker's own bound of a trial run."""
CHUNK = 1 << 16
_TENSOR_BYTES = 4 * 3 * 48 * 192
_HEADER = (
    b'{"inputs":[{"name":"x","shape":[1,3,48,192],"datatype":"FP32",'
    b'"parameters":{"binary_data_size":%d}}]}' % _TENSOR_BYTES
)
IMAGE = _HEADER + bytes(_TENSOR_BYTES)
"""What a model called ``cls`` takes, whether it is the real one or the small one."""
BINARY = {"Inference-Header-Content-Length": str(len(_HEADER))}


# --- what the gateway says and holds ---------------------------------------------------------------
def metrics(site: ServingSite) -> dict[str, float]:
    lines = site.get("/metrics")[2].decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {key: float(value) for key, value in pairs}


def late(before: dict[str, float], after: dict[str, float], bound: str = "0.05") -> float:
    """The part of all moments between two readings at which the loop was later than ``bound``."""
    name = "atoll_loop_lag_seconds"
    many = after[f"{name}_count"] - before[f"{name}_count"]
    key = f'{name}_bucket{{le="{bound}"}}'
    return 1 - (after[key] - before[key]) / many if many else 0.0


def peak_bytes(pid: int) -> int:
    """Most memory that the process held since ``forget_peak``."""
    status = Path(f"/proc/{pid}/status").read_text()
    return (
        int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) << 10
    )


def forget_peak(pid: int) -> int:
    """Start over; what it holds now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak_bytes(pid)


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


# --- a client that only wants to be served ------------------------------------------------------------
@dataclass
class Bystander:
    """Asks one good question after the other, each over a connection of its own."""

    site: ServingSite
    pause_s: float = 0.01
    took_s: list[float] = field(default_factory=list)
    refused: list[tuple[int, bytes]] = field(default_factory=list)

    @contextlib.contextmanager
    def asking(self) -> Iterator["Bystander"]:
        over = threading.Event()
        thread = threading.Thread(target=self._ask, args=(over,))
        thread.start()
        try:
            yield self
        finally:
            over.set()
            thread.join(30)

    def _ask(self, over: threading.Event) -> None:
        while not over.wait(self.pause_s):
            begun = time.monotonic()
            try:
                status, _, body = self.site.request("POST", "/v2/models/cls/infer", IMAGE, BINARY)
            except OSError as error:
                status, body = 0, repr(error).encode()
            self.took_s.append(time.monotonic() - begun)
            if status != 200:
                self.refused.append((status, body[:200]))

    def quantile_s(self, part: float) -> float:
        ordered = sorted(self.took_s)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


# --- broken models --------------------------------------------------------------------------------
def broken(content: bytes, rng: random.Random) -> bytes:
    """The model cut off, with bits flipped, or with a run of other bytes."""
    kind = rng.randrange(4)
    if kind == 0:
        return content[: rng.randrange(len(content))]
    spoilt = bytearray(content)
    if kind == 3:
        size = rng.randrange(1, 64)
        start = rng.randrange(len(content) - size)
        spoilt[start : start + size] = rng.randbytes(size)
        return bytes(spoilt)
    # Weights are most of a file and harmless: half of the flips go to the text and numbers around them.
    end = len(content) if kind == 1 else min(len(content), 1 << 16)
    for _ in range(rng.randrange(1, 9)):
        at = (
            rng.randrange(end)
            if kind == 1 or rng.random() < 0.5
            else len(content) - 1 - rng.randrange(end)
        )
        spoilt[at] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


@dataclass
class Offered:
    """What became of broken models."""

    loaded: int = 0
    refused: int = 0
    unexplained: int = 0
    """Refused without a reason."""
    unanswered: int = 0
    """Loaded, but a request got no answer."""
    crashes: list[str] = field(default_factory=list)
    """Which one ended the worker, and how."""
    slowest_s: float = 0.0


def offer_broken(
    site: ServingSite, models: dict[str, bytes], count: int, seed: int, folder: Path
) -> Offered:
    """Offer ``count`` broken models one after the other, each with its own digest."""
    found, rng = Offered(), random.Random(seed)
    path = folder / "broken.onnx"
    for number in range(count):
        name = rng.choice(sorted(models))
        path.write_bytes(broken(models[name], rng))
        begun = time.monotonic()
        try:
            answer = site.load("broken", path)
        except (AssertionError, OSError, queue.Empty) as error:
            assert site.worker is not None
            found.crashes.append(
                f"{name} seed {seed} number {number}: {site.worker.process.wait(5)} {error}"
            )
            restart(site)
            continue
        found.slowest_s = max(found.slowest_s, time.monotonic() - begun)
        if isinstance(answer, ModelRefused):
            found.refused += 1
            found.unexplained += not answer.reason
            continue
        assert isinstance(answer, ModelLoaded)
        found.loaded += 1
        found.unanswered += not _is_answered(site, answer)
        if site.worker is None or site.worker.process.poll() is not None:
            found.crashes.append(f"{name} seed {seed} number {number}: while it was asked")
            restart(site)
        site.unload("broken")
    return found


def _is_answered(site: ServingSite, answer: ModelLoaded) -> bool:
    """Whether one request for the broken model ends with any answer."""
    view = site.view
    local = LocalModel(answer.key, "broken", "1", True, "", (), answer.metadata, answer.service_us)
    known = KnownModel(answer.key, "broken", "1", True, ())
    site.show(local=(*view.local, local), known=(*view.known, known))
    site.wait(lambda: site.get("/v2/models/broken/ready")[0] == 200)
    try:
        return site.request("POST", "/v2/models/broken/infer", IMAGE, BINARY, timeout=20)[0] > 0
    except OSError:
        return False
    finally:
        site.show(local=view.local, known=view.known)


def restart(site: ServingSite) -> None:
    """A new worker in the place of one that has ended, as the control process does it."""
    assert site.worker is not None
    site.detach()
    site.worker.close()
    site.slots.close()
    site.start_worker()
    for name, path in site.served.items():
        site.load(name, path)


# --- slow crowds --------------------------------------------------------------------------------------
HEADERS = b"POST /v2/models/cls/infer HTTP/1.1\r\nHost: x\r\nX-Slow: "
BODY = b"POST /v2/models/cls/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
STARTS = {"headers": HEADERS, "body": BODY, "silent": b""}


@contextlib.contextmanager
def slow_crowd(site: ServingSite, size: int, drip_s: float = 0.2) -> Iterator[dict[str, int]]:
    """That many connections, a third each: headers that drip, bodies that drip, and silence.

    Whoever is sent away comes back at once. Counts how often that was.
    """
    kinds, crowd, seen = list(STARTS), {}, {"came": 0}
    over = threading.Event()

    def come(kind: str) -> None:
        connection = socket.socket()
        connection.settimeout(2.0)
        try:
            connection.connect(("127.0.0.1", site.http_port))
            connection.sendall(STARTS[kind])
        except OSError:
            connection.close()
            return
        connection.setblocking(False)
        crowd[connection] = kind
        seen["came"] += 1

    def drip() -> None:
        while not over.wait(drip_s):
            for connection, kind in tuple(crowd.items()):
                if is_gone(connection, kind):
                    connection.close()
                    del crowd[connection]
            for number in range(size - len(crowd)):
                come(kinds[number % 3])

    for number in range(size):
        come(kinds[number % 3])
    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join(30)
        for connection in crowd:
            connection.close()


def is_gone(connection: socket.socket, kind: str) -> bool:
    """Send one byte more, if it is of that kind; whether the site has ended the connection."""
    try:
        if kind != "silent":
            connection.send(b"x")
        return connection.recv(1000) is not None  # an answer, or the end
    except BlockingIOError:
        return False
    except OSError:
        return True


# --- huge bodies ---------------------------------------------------------------------------------------
def send_huge(site: ServingSite, form: str, size: int) -> tuple[int, float, int]:
    """The status that a body of ``size`` bytes gets, after how long, and how much of it was sent."""
    head = b"POST /v2/models/cls/infer HTTP/1.1\r\nHost: x\r\n"
    head += {
        "length": b"Content-Length: %d\r\n\r\n" % size,
        "chunked": b"Transfer-Encoding: chunked\r\n\r\n",
        "gzip": b"Transfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n",
    }[form]
    begun, sent = time.monotonic(), 0
    with socket.create_connection(("127.0.0.1", site.http_port), timeout=20) as connection:
        ready = selectors.DefaultSelector()
        ready.register(connection, selectors.EVENT_READ)
        with contextlib.suppress(OSError):
            connection.sendall(head)
            for piece in _pieces(form, size):
                if ready.select(0):
                    break
                connection.sendall(piece)
                sent += len(piece)
        with contextlib.suppress(OSError):
            line = connection.recv(1000)
            return int(line.split()[1] if line else 0), time.monotonic() - begun, sent
    return 0, time.monotonic() - begun, sent


def _pieces(form: str, size: int) -> Iterator[bytes]:
    compress = zlib.compressobj(wbits=31)
    for _ in range(size // (1 << 20)):
        piece = bytes(1 << 20)
        if form == "gzip":
            piece = compress.compress(piece)
        if piece:
            yield piece if form == "length" else b"%x\r\n%b\r\n" % (len(piece), piece)


# --- clients that vanish ---------------------------------------------------------------------------------
def vanish(site: ServingSite, times: int, rng: random.Random) -> None:
    """Begin a request and go away: in the headers, in the body, or while the model runs."""
    head = b"POST /v2/models/cls/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(IMAGE)
    head += b"Inference-Header-Content-Length: %d\r\n\r\n" % len(_HEADER)
    whole = head + IMAGE
    for _ in range(times):
        ends = (20, len(head) + rng.randrange(len(IMAGE)), len(whole))
        with socket.create_connection(("127.0.0.1", site.http_port), timeout=10) as connection:
            connection.sendall(whole[: rng.choice(ends)])
            if rng.random() < 0.5:  # a reset rather than an end
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def settle(site: ServingSite, files: int) -> None:
    """Wait until nothing is under way, runs or is held open that was not before."""
    site.wait(lambda: metrics(site)["nv_inference_pending_request_count"] == 0)
    site.wait(lambda: site.slots.running() == [])
    site.wait(lambda: open_files(site.gateway.process.pid) <= files)
