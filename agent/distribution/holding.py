"""What a site tells of a blob that it has or fetches: which chunks are there, and who else is reading."""

from dataclasses import dataclass
from typing import Annotated

from agent.distribution.manifest import CHUNKS_MAX
from agent.wire.schema import AtMost, Range, pack, unpack

READERS_MAX = 1024
"""More sites than this share a source as if they were so many."""
HOLDING_BYTES_MAX = CHUNKS_MAX // 8 + 64


@dataclass(frozen=True, slots=True)
class Holding:
    """The answer to a look at a blob. A hint: each chunk is checked by whoever gives it and whoever gets it."""

    chunks: Annotated[bytes, AtMost(-(-CHUNKS_MAX // 8))]
    """Bit ``i % 8`` of byte ``i // 8``: chunk ``i`` is there. Bytes at the end may lack."""
    readers: Annotated[int, Range(1, READERS_MAX)] = 1
    """Sites that have asked for parts of it lately, the one that looks included."""
    place: Annotated[int, Range(0, READERS_MAX - 1)] = 0
    """Of that one among them."""

    @property
    def mask(self) -> int:
        """The chunks as ``agent.distribution.fetch`` has them."""
        return int.from_bytes(self.chunks, "little")


def encode_holding(holding: Holding) -> bytes:
    """As it travels."""
    return pack(holding)


def parse_holding(data: bytes) -> Holding:
    """What a site told.

    Raises:
        Malformed: it is none.
    """
    return unpack(Holding, data, HOLDING_BYTES_MAX)
