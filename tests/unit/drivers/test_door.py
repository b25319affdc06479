"""The door on real loopback sockets: members come in, strangers cannot hold it shut."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from agent.drivers import door
from agent.drivers.door import Door

MEMBER, STRANGER, THIRD = "127.0.0.11", "127.0.0.12", "127.0.0.13"


class Greeter(asyncio.Protocol):
    """Says hello to whoever was let in."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"hello\n")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    folder: Path = tmp_path_factory.mktemp("door")
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "door")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
        .public_key(key.public_key()).not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1)).sign(key, None)
    )  # fmt: skip
    (folder / "c").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "k").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(folder / "c", folder / "k")
    return made


@pytest.fixture
async def opened(context: ssl.SSLContext) -> AsyncIterator[Door]:
    made = Door(Greeter, context, lambda: [MEMBER])
    made.open("127.0.0.1", 0)
    yield made
    await made.close()


Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


@pytest.fixture
async def reach() -> AsyncIterator[Callable[[Door, str], Awaitable[tuple[Reader, Writer]]]]:
    """Opens plain connections from an address; closes them all in the end."""
    writers: list[Writer] = []

    async def connect(to: Door, address: str) -> tuple[Reader, Writer]:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", to.port, local_addr=(address, 0)
        )
        writers.append(writer)
        return reader, writer

    yield connect
    for writer in writers:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


Reach = Callable[[Door, str], Awaitable[tuple[Reader, Writer]]]


async def is_greeted(to: Door, address: str, reader_writer: list[Writer] | None = None) -> bool:
    """Whether a whole TLS handshake from ``address`` is let in."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", to.port, local_addr=(address, 0), ssl=context, server_hostname="x"
            )
            greeting = await reader.readline()
    except (OSError, TimeoutError):
        return False
    if reader_writer is None:
        writer.close()
    else:
        reader_writer.append(writer)
    return greeting == b"hello\n"


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110 - the door has no event for tests
            await asyncio.sleep(0.01)


async def test_who_shakes_hands_is_let_in(opened: Door) -> None:
    assert await is_greeted(opened, MEMBER)
    assert await is_greeted(opened, STRANGER)


async def test_who_says_nothing_costs_a_bare_socket_and_not_for_long(
    opened: Door, reach: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "HANDSHAKE_TIMEOUT_S", 0.1)
    reader, _ = await reach(opened, STRANGER)
    await until(lambda: len(opened._strangers.waiting) == 1)
    assert not opened._strangers.shaking
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    assert opened.turned_away == 1


async def test_of_too_many_silent_ones_the_busiest_address_loses_its_oldest(
    opened: Door, reach: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "WAITING_MAX", 5)
    quiet = await reach(opened, THIRD)
    crowd = [await reach(opened, STRANGER) for _ in range(12)]
    await until(lambda: opened.turned_away == 8)
    for reader, _ in crowd[:8]:
        assert await reader.read() == b""
    assert not quiet[0].at_eof()
    assert len(opened._strangers.waiting) == 5


async def test_strangers_in_every_place_of_theirs_keep_no_member_out(
    opened: Door, reach: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "WAITING_MAX", 5)
    opened._strangers.handshakes_max = 3
    for _ in range(20):
        _, writer = await reach(opened, STRANGER)
        writer.write(b"\x16")  # the first byte of a handshake that never goes on
    await until(lambda: len(opened._strangers.shaking) == 3)
    assert await is_greeted(opened, MEMBER)


async def test_a_crowded_network_gives_way_to_another_one(opened: Door, reach: Reach) -> None:
    opened._strangers.handshakes_max = 3
    for _ in range(3):
        _, writer = await reach(opened, STRANGER)
        writer.write(b"\x16")
    await until(lambda: len(opened._strangers.shaking) == 3)
    assert await is_greeted(opened, THIRD)


async def test_strangers_shake_hands_only_so_often_and_members_always(
    opened: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "STRANGER_HANDSHAKES_AT_ONCE", 2.0)
    monkeypatch.setattr(door, "STRANGER_HANDSHAKES_PER_S", 0.001)
    monkeypatch.setattr(door, "HANDSHAKE_TIMEOUT_S", 0.2)
    opened._allowance = 2.0
    assert [await is_greeted(opened, STRANGER) for _ in range(3)] == [True, True, False]
    assert [await is_greeted(opened, MEMBER) for _ in range(5)] == [True] * 5


async def test_who_has_no_certificate_may_not_stay(
    opened: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "STRANGERS_MAX", 2)
    writers: list[Writer] = []
    for address in (STRANGER, STRANGER, THIRD):
        assert await is_greeted(opened, address, writers)
    await until(lambda: opened.turned_away == 1)
    assert len(opened._anonymous) == 2
    monkeypatch.setattr(door, "STRANGER_S", 0.1)
    assert await is_greeted(opened, THIRD, writers)
    await until(lambda: opened.turned_away == 3)
    for writer in writers:
        writer.close()


async def test_at_a_door_for_all_nobody_is_a_stranger(
    context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Applications show no certificate: they stay, and come as fast as they like."""
    monkeypatch.setattr(door, "STRANGERS_MAX", 1)
    monkeypatch.setattr(door, "STRANGER_HANDSHAKES_AT_ONCE", 1.0)
    monkeypatch.setattr(door, "STRANGER_HANDSHAKES_PER_S", 1e-9)
    made = Door(Greeter, context, is_for_all=True)
    made.open("127.0.0.1", 0)
    writers: list[Writer] = []
    try:
        for address in (MEMBER, STRANGER, STRANGER, THIRD):
            assert await is_greeted(made, address, writers)
        assert made.turned_away == 0
        assert not made._anonymous
    finally:
        for writer in writers:
            writer.close()
        await made.close()


async def test_a_handshake_that_is_noise_is_counted_and_the_next_one_let_in(
    opened: Door, reach: Reach
) -> None:
    reader, writer = await reach(opened, STRANGER)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionError):
            await reader.read()
    await until(lambda: opened.turned_away == 1)
    assert await is_greeted(opened, STRANGER)


async def test_closing_ends_everybody_who_was_not_let_in(
    context: ssl.SSLContext, reach: Reach
) -> None:
    made = Door(Greeter, context)
    made.open("127.0.0.1", 0)
    silent, _ = await reach(made, STRANGER)
    slow, writer = await reach(made, THIRD)
    writer.write(b"\x16")
    await until(lambda: len(made._strangers.shaking) == 1 and len(made._strangers.waiting) == 1)
    await made.close()
    async with asyncio.timeout(5):
        for reader in (silent, slow):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""


def test_a_network_is_an_ipv4_address_or_the_half_of_an_ipv6_one() -> None:
    assert door._network("192.0.2.1") == "192.0.2.1"
    assert door._network("2001:db8::1") == door._network("2001:db8::ffff") == "2001:db8::/64"
    assert door._network("fe80::1%eth0") == "fe80::/64"


async def test_every_address_means_both_families_and_names_them_as_they_are(
    context: ssl.SSLContext,
) -> None:
    made = Door(Greeter, context)
    made.open("::", 0)
    try:
        with (
            socket.create_connection(("127.0.0.1", made.port)),
            socket.create_connection(("::1", made.port)),
        ):
            made._accept()
            assert {one.network for one in made._strangers.waiting} == {"127.0.0.1", "::/64"}
    finally:
        await made.close()
