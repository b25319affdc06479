"""Floods at a site's mesh port, from a process of their own: ``python mesh_flood.py KIND ...`` prints JSON.

``udp``: datagrams of junk, most with headers that look like a member's. ``silent``: TCP connections that
say nothing. ``slow``: TLS handshakes that say one byte at a time. ``handshakes``: complete handshakes
without certificate. ``join``: join requests with wrong tokens. Sources are many 127/8 addresses.
"""

import asyncio
import contextlib
import json
import os
import random
import socket
import ssl
import struct
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SOURCES = 32
BURST = 50


@dataclass
class Flood:
    """What was done, and what came back."""

    sent: int = 0
    replies: int = 0
    """Bytes (UDP) or finished answers (TCP) that came back."""
    refused: int = 0
    took_s: float = 0.0


def source(number: int, base: str) -> str:
    """An address of the attacker's own, in the block of the victim's loopback address."""
    first, second, _, _ = base.split(".")
    return f"{first}.{second}.{200 + number // 200}.{1 + number % 200}"


def junk(ids: list[bytes], chance: random.Random) -> bytes:
    """A datagram: noise, or a header like a member's before noise."""
    kind = chance.randrange(6)
    if kind == 0:
        return chance.randbytes(chance.choice((0, 1, 36, 37, 600, 1200, 1400)))
    version = 1 if kind > 1 else chance.randrange(256)
    epoch = chance.choice((0, 1, 2, 3, 2**32 - 1, chance.getrandbits(32)))
    counter = chance.choice((0, 1, chance.randrange(5000), chance.getrandbits(64)))
    header = struct.pack(">B8sIQ", version, chance.choice(ids)[:8], epoch, counter)
    return header + chance.randbytes(chance.choice((15, 16, 60, 400, 1179)))


def udp(host: str, port: int, ids: list[bytes], rate: int, seconds: float) -> Flood:
    """``rate`` datagrams a second from ``SOURCES`` sockets, which must hear nothing."""
    chance = random.Random(7)
    packets = [junk(ids, chance) for _ in range(4096)]
    senders = []
    for number in range(SOURCES):
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.bind((source(number, host), 0))
        one.setblocking(False)
        senders.append(one)
    done = Flood()
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        due = min(int(passed * rate), int(seconds * rate))
        while done.sent < due:
            sender = senders[done.sent // BURST % SOURCES]
            with contextlib.suppress(BlockingIOError):
                sender.sendto(packets[done.sent % len(packets)], (host, port))
            done.sent += 1
        time.sleep(0.002)
    time.sleep(0.5)
    for one in senders:
        with contextlib.suppress(BlockingIOError):
            while True:
                done.replies += len(one.recv(2048))
    done.took_s = time.monotonic() - began
    return done


async def _connect(host: str, port: int, number: int) -> socket.socket:
    one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    one.setblocking(False)
    one.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: as many ports as there are
    one.bind((source(number, host), 0))
    async with asyncio.timeout(2):
        await asyncio.get_running_loop().sock_connect(one, (host, port))
    return one


async def held(host: str, port: int, kind: str, number: int, seconds: float) -> Flood:
    """Keep ``number`` connections open for ``seconds``, each made again as soon as it is closed."""
    done = Flood()
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="x").do_handshake()
    hello = outgoing.read()

    async def hold(index: int) -> None:
        await asyncio.sleep(index / number)
        while loop.time() < until:
            try:
                one = await _connect(host, port, index)
            except (OSError, TimeoutError):
                done.refused += 1
                await asyncio.sleep(0.2)
                continue
            done.sent += 1
            with one, contextlib.suppress(OSError, TimeoutError):
                for place in range(len(hello) if kind == "slow" else 0):
                    async with asyncio.timeout(max(0.0, until - loop.time())):
                        await loop.sock_sendall(one, hello[place : place + 1])
                        await asyncio.sleep(0.2)
                async with asyncio.timeout(max(0.0, until - loop.time())):
                    while await loop.sock_recv(one, 4096):
                        pass
                done.replies += 1
            await asyncio.sleep(0.05)

    began = loop.time()
    await asyncio.gather(*(hold(index) for index in range(number)))
    done.took_s = loop.time() - began
    return done


async def strangers(
    host: str, port: int, kind: str, rate: int, seconds: float, addresses: int
) -> Flood:
    """``rate`` times a second a whole handshake without certificate, with or without a request."""
    done = Flood()
    loop = asyncio.get_running_loop()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["atoll/1"])
    body = os.urandom(200)
    request = (
        f"POST /join/1 HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )

    async def once(number: int) -> None:
        try:
            one = await _connect(host, port, number % addresses)
            async with asyncio.timeout(3):
                reader, writer = await asyncio.open_connection(
                    sock=one, ssl=context, server_hostname="x"
                )
                if kind == "join":
                    for _ in range(5):
                        writer.write(request)
                        if not (await reader.readline()).startswith(b"HTTP/1.1"):
                            break
                        await reader.readuntil(b"\r\n\r\n")
                        done.replies += 1
                writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            done.refused += 1

    began = loop.time()
    tasks: set[asyncio.Task[None]] = set()
    while (passed := loop.time() - began) < seconds:
        while done.sent < passed * rate and len(tasks) < 500:
            task = asyncio.create_task(once(done.sent))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            done.sent += 1
        await asyncio.sleep(0.005)
    await asyncio.gather(*tasks)
    done.took_s = loop.time() - began
    return done


def main(options: dict[str, Any]) -> Flood:
    """Run one flood."""
    host, port, kind = options["host"], options["port"], options["kind"]
    if kind == "udp":
        ids = [bytes.fromhex(one) for one in options["ids"]]
        return udp(host, port, ids, options["rate"], options["seconds"])
    if kind in ("silent", "slow"):
        return asyncio.run(held(host, port, kind, options["number"], options["seconds"]))
    return asyncio.run(
        strangers(host, port, kind, options["rate"], options["seconds"], options["addresses"])
    )


@contextlib.contextmanager
def flooding(**options: Any) -> Any:
    """A flood beside the body; yields a function that waits for its end and says what came of it."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__)), json.dumps(options)], stdout=subprocess.PIPE
    )

    def ended() -> Flood:
        text, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        return Flood(**json.loads(text))

    try:
        yield ended
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


if __name__ == "__main__":
    print(json.dumps(asdict(main(json.loads(sys.argv[1])))))  # noqa: T201
