"""What is announced by multicast DNS: exactly our form, or nothing."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.foundation.errors import Malformed
from agent.foundation.ids import SiteId
from agent.wire.advert import TEXT_BYTES_MAX, Advert, read_advert

SITE = SiteId(bytes(range(32)))
ADVERT = Advert("ab" * 8, SITE, 7 << 32, 7412)


def text(*strings: bytes) -> bytes:
    return b"".join(bytes([len(one)]) + one for one in strings)


def parts(**changes: str | None) -> bytes:
    keys = {"v": "1", "cluster": "ab" * 8, "id": SITE.hex(), "seq": "5", "data": "7412", **changes}
    return text(*(f"{key}={value}".encode() for key, value in keys.items() if value is not None))


def test_what_is_announced_is_read_back_and_far_below_one_packet() -> None:
    assert read_advert(ADVERT.pack(), ADVERT.instance) == ADVERT
    assert len(ADVERT.pack()) < 160


def test_unknown_keys_and_keys_without_a_value_are_ignored_for_later_versions() -> None:
    data = parts() + text(b"new=thing", b"flag", b"flag", b"")
    assert read_advert(data, SITE.hex()[:16].upper()).data_port == 7412


@pytest.mark.parametrize(
    "data",
    [
        parts() + text(b"note=" + b"x" * 240, b"more=" + b"x" * 100),
        parts() + text(b"id=" + b"0" * 64),
        parts() + text(b"ID=" + b"0" * 64),
        parts(note="\x00\xff"),
        parts() + b"\x40abc",
        parts(v="2"),
        parts(v=None),
        parts(id=None),
        parts(id="ab" * 31),
        parts(id=SITE.hex().upper()),
        parts(cluster="zz" * 8),
        parts(cluster=""),
        parts(seq="-1"),
        parts(seq=str(2**63)),
        parts(seq="9" * 200),
        parts(data="0"),
        parts(data="65536"),
        parts(data="\u0661"),
        b"",
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        read_advert(data, SITE.hex()[:16])


def test_the_name_must_be_that_of_the_site() -> None:
    with pytest.raises(Malformed, match="name"):
        read_advert(parts(), "ff" * 8)


@given(st.binary(max_size=TEXT_BYTES_MAX + 50))
def test_no_bytes_do_anything_but_decode_or_be_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        read_advert(data, "00" * 8)


@given(st.integers(0, len(ADVERT.pack()) - 1), st.integers(1, 255))
def test_one_wrong_byte_never_raises_anything_else(at: int, change: int) -> None:
    data = bytearray(ADVERT.pack())
    data[at] ^= change
    with contextlib.suppress(Malformed):
        read_advert(bytes(data), ADVERT.instance)
