"""What of a blob is here already, in other blobs: a new version of a model need not travel whole.

Chunks are compared by their hash. They begin at fixed offsets, so what two versions share is found where it
stands at the same place modulo the chunk's length: weights that training left alone, in a file whose layout
is the same.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.distribution.manifest import Manifest, parse
from agent.drivers.disk import files_in
from agent.foundation.errors import AtollError
from agent.foundation.ids import ID_BYTES, Digest

BLOBS_LOOKED_AT_MAX = 256
MANIFEST_BYTES_READ_MAX = 32 << 20
"""Of all manifests together: half a second of hashing and decoding."""


def shared_chunks(
    folder: Path,
    read_manifest: Callable[[Digest], bytes],
    manifest: Manifest,
    held: set[int],
) -> Iterator[tuple[int, bytes]]:
    """Chunks of a blob that are not in ``held`` and that whole blobs in ``folder`` have, newest first.

    Each is read once for all places where it is missing, and not checked: whoever stores it checks it.
    """
    missing: dict[bytes, list[int]] = {}
    for index, chunk in enumerate(manifest.chunks):
        if index not in held:
            missing.setdefault(chunk, []).append(index)
    bytes_read = 0
    for other in _newest(folder):
        if not missing or bytes_read > MANIFEST_BYTES_READ_MAX:
            return
        try:
            encoded = read_manifest(other)
            bytes_read += len(encoded)
            yield from _common(folder / other.hex(), parse(other, encoded), missing)
        except (AtollError, OSError):
            continue  # damaged or gone: it is only a short cut


def _common(
    path: Path, known: Manifest, missing: dict[bytes, list[int]]
) -> Iterator[tuple[int, bytes]]:
    indices = [index for index, chunk in enumerate(known.chunks) if chunk in missing]
    if not indices:
        return
    with path.open("rb", buffering=0) as stream:
        for index in indices:
            places = missing.pop(known.chunks[index], [])
            data = os.pread(stream.fileno(), known.length(index), known.offset(index))
            yield from ((place, data) for place in places)


def _newest(folder: Path) -> list[Digest]:
    found = [
        (facts.st_mtime, name) for name, facts in files_in(folder) if len(name) == 2 * ID_BYTES
    ]
    return [
        Digest(bytes.fromhex(name)) for _, name in sorted(found, reverse=True)[:BLOBS_LOOKED_AT_MAX]
    ]
