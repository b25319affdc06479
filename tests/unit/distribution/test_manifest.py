import hashlib

import pytest

from agent.distribution.manifest import Manifest, build, digest_of, encode, parse
from agent.foundation.errors import Corruption, Malformed
from agent.foundation.ids import Digest
from agent.wire.schema import pack

CHUNK = 1024
DATA = bytes(range(256)) * 10  # 2,560 bytes: two whole chunks and a half


def pieces(data: bytes) -> list[bytes]:
    return [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]


def test_a_manifest_describes_every_byte() -> None:
    manifest = build(pieces(DATA), CHUNK)
    assert (manifest.bytes, len(manifest.chunks)) == (2560, 3)
    assert [manifest.length(i) for i in range(3)] == [1024, 1024, 512]
    assert [manifest.offset(i) for i in range(3)] == [0, 1024, 2048]
    for index, piece in enumerate(pieces(DATA)):
        assert manifest.is_chunk(index, piece)
        assert not manifest.is_chunk(index, piece[:-1])
        assert not manifest.is_chunk(index, bytes(len(piece)))


def test_an_empty_blob_has_a_name_too() -> None:
    manifest = build([], CHUNK)
    assert (manifest.bytes, manifest.chunks) == (0, ())
    assert parse(digest_of(encode(manifest)), encode(manifest)) == manifest


def test_a_digest_is_the_hash_of_the_manifest() -> None:
    encoded = encode(build(pieces(DATA), CHUNK))
    digest = Digest(hashlib.sha256(encoded).digest())
    assert parse(digest, encoded).bytes == 2560
    with pytest.raises(Corruption):
        parse(digest, encoded + b"\0")
    with pytest.raises(Corruption):
        parse(Digest(bytes(32)), encoded)


@pytest.mark.parametrize(
    "fields",
    [
        [2560, 1024, [bytes(32)] * 2],
        [2560, 1024, [bytes(32)] * 4],
        [2560, 0, []],
        [2560, 1, [bytes(32)] * 2560],
        [-1, 1024, []],
        [1 << 40, 262144, []],
        [10, 1024, [bytes(31)]],
        ["10", 1024, [bytes(32)]],
        [10, 1024],
    ],
)
def test_a_manifest_that_does_not_add_up_is_malformed(fields: list[object]) -> None:
    import msgpack  # noqa: PLC0415 - a raw packer is needed in this test only

    encoded: bytes = msgpack.packb(fields)
    with pytest.raises(Malformed):
        parse(digest_of(encoded), encoded)


def test_any_bytes_are_a_manifest_or_malformed() -> None:
    good = encode(build(pieces(DATA), CHUNK))
    for cut in range(len(good)):
        with pytest.raises(Malformed):
            parse(digest_of(good[:cut]), good[:cut])
    assert pack(Manifest(0, 1024, ())) == encode(build([], CHUNK))


def test_a_short_chunk_may_only_be_the_last() -> None:
    with pytest.raises(AssertionError):
        build([b"a" * 10, b"b" * 10], CHUNK)
