"""A blob's manifest: how long it is and the hash of each of its chunks.

Rule: the manifest's own SHA-256 *is* the blob's name, so whoever holds a digest can check the
manifest, and whoever holds the manifest can check each chunk before it is written, from any source.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from agent.foundation.errors import Corruption, Refused
from agent.foundation.ids import Digest
from agent.wire.limits import BLOB_BYTES_MAX, CHUNK_BYTES, MESH_BODY_BYTES_MAX
from agent.wire.records import Identifier
from agent.wire.schema import AtMost, Range, pack, unpack

Buffer = bytes | memoryview

CHUNK_BYTES_MIN = 1024
"""A smaller chunk only makes the manifest larger than its worth."""

CHUNKS_MAX = BLOB_BYTES_MAX // CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class Manifest:
    """The shape of one blob; chunk ``i`` is bytes ``i * chunk_bytes`` up to the next chunk or the end."""

    bytes: Annotated[int, Range(0, BLOB_BYTES_MAX)]
    chunk_bytes: Annotated[int, Range(CHUNK_BYTES_MIN, CHUNK_BYTES)]
    chunks: Annotated[tuple[Identifier, ...], AtMost(CHUNKS_MAX)]
    """SHA-256 of each chunk, in order."""

    def __post_init__(self) -> None:
        """Refuse a manifest whose numbers do not agree.

        Raises:
            ValueError: the number of chunks does not follow from the length (``Malformed`` when the
                manifest came through ``parse``).
        """
        if self.chunk_bytes < 1 or len(self.chunks) != -(-self.bytes // self.chunk_bytes):
            raise ValueError("the number of chunks does not follow from the length")

    def length(self, index: int) -> int:
        """How many bytes chunk ``index`` has."""
        return min(self.chunk_bytes, self.bytes - index * self.chunk_bytes)

    def offset(self, index: int) -> int:
        """Where chunk ``index`` begins in the blob."""
        return index * self.chunk_bytes

    def is_chunk(self, index: int, data: Buffer) -> bool:
        """Whether ``data`` is exactly chunk ``index``."""
        return (
            len(data) == self.length(index) and hashlib.sha256(data).digest() == self.chunks[index]
        )


def digest_of(encoded: bytes) -> Digest:
    """The blob's name: SHA-256 of its encoded manifest."""
    return Digest(hashlib.sha256(encoded).digest())


def build(chunks: Iterable[bytes], chunk_bytes: int = CHUNK_BYTES) -> Manifest:
    """The manifest of the blob that these chunks make up.

    Args:
        chunks: each exactly ``chunk_bytes`` long but the last, which is shorter or as long.
        chunk_bytes: unit: bytes.

    Raises:
        Refused: the blob is longer than ``BLOB_BYTES_MAX``.
    """
    total = 0
    hashes: list[bytes] = []
    for chunk in chunks:
        assert total % chunk_bytes == 0, "only the last chunk may be short"
        assert 0 < len(chunk) <= chunk_bytes, "a chunk is 1 to chunk_bytes long"
        total += len(chunk)
        if total > BLOB_BYTES_MAX or len(hashes) == CHUNKS_MAX:
            raise Refused("the blob is too large", why=f"the bound is {BLOB_BYTES_MAX} bytes")
        hashes.append(hashlib.sha256(chunk).digest())
    return Manifest(total, chunk_bytes, tuple(hashes))


def encode(manifest: Manifest) -> bytes:
    """The bytes whose hash names the blob."""
    return pack(manifest)


def parse(digest: Digest, encoded: bytes) -> Manifest:
    """The manifest named ``digest``.

    Raises:
        Corruption: these bytes are not the manifest of that name.
        Malformed: they are, and do not describe a blob.
    """
    if digest_of(encoded) != digest:
        raise Corruption(
            f"manifest of {digest.hex()[:16]} has another hash", why="damaged or forged"
        )
    return unpack(Manifest, encoded, MESH_BODY_BYTES_MAX)
