from pathlib import Path

import pytest

from agent.distribution.manifest import build, digest_of, encode
from agent.drivers.blob_files import BlobFiles, Incoming, PartialFile, file_chunks, name_of
from agent.foundation.errors import NotFound, Refused
from agent.foundation.ids import Digest
from agent.wire.limits import CHUNK_BYTES

PIECES = [bytes([n]) * CHUNK_BYTES for n in range(1, 5)] + [b"end"]
MANIFEST = build(PIECES)
ENCODED = encode(MANIFEST)
DIGEST = digest_of(ENCODED)


@pytest.fixture
def files(tmp_path: Path) -> BlobFiles:
    return BlobFiles(tmp_path, 0)


@pytest.mark.parametrize("digest", [b"", b"../../../etc/passwd", bytes(31), bytes(33)])
def test_only_a_digest_names_a_file(digest: bytes) -> None:
    with pytest.raises(NotFound):
        name_of(Digest(digest))
    assert name_of(DIGEST) == DIGEST.hex()


def test_an_incoming_file_becomes_the_blob(files: BlobFiles) -> None:
    with Incoming(files, 1 << 30) as incoming:
        for piece in PIECES:
            incoming.add(piece)
        assert incoming.publish() == DIGEST
    assert (files.data / DIGEST.hex()).read_bytes() == b"".join(PIECES)
    assert files.read_manifest(DIGEST) == ENCODED
    assert list(files.incoming.iterdir()) == []


def test_what_is_added_after_closing_goes_nowhere(files: BlobFiles) -> None:
    incoming = Incoming(files, 1 << 30)
    incoming.add(PIECES[0])
    incoming.close()
    incoming.add(PIECES[1])
    incoming.close()
    with pytest.raises(Refused):
        incoming.publish()
    assert list(files.incoming.iterdir()) == []
    assert list(files.data.iterdir()) == []


def test_a_partial_file_takes_right_chunks_only(files: BlobFiles) -> None:
    part = PartialFile(files, DIGEST)
    assert part.known_manifest() is None
    assert part.open(ENCODED, MANIFEST) == set()
    assert part.write(MANIFEST, 3, PIECES[3])
    assert not part.write(MANIFEST, 2, PIECES[3])
    assert not part.write(MANIFEST, 2, PIECES[2][:-1])
    part.close()
    again = PartialFile(files, DIGEST)
    assert again.known_manifest() == ENCODED
    assert again.open(ENCODED, MANIFEST) == {3}
    for index in (0, 1, 2, 4):
        assert again.write(MANIFEST, index, PIECES[index])
    assert not files.is_held(DIGEST)
    again.publish()
    again.close()
    assert files.is_held(DIGEST)
    assert (files.data / DIGEST.hex()).read_bytes() == b"".join(PIECES)


def test_a_closed_partial_file_takes_nothing(files: BlobFiles) -> None:
    part = PartialFile(files, DIGEST)
    part.close()
    assert part.open(ENCODED, MANIFEST) == set()
    assert not part.write(MANIFEST, 0, PIECES[0])
    part.publish()
    assert not files.is_held(DIGEST)


def test_a_partial_file_with_wrong_bytes_is_rehashed(files: BlobFiles) -> None:
    files.make_folders()
    wrong = PIECES[0] + bytes(CHUNK_BYTES) + PIECES[2] + b"x" * 10
    (files.partial / DIGEST.hex()).write_bytes(wrong)
    part = PartialFile(files, DIGEST)
    assert part.open(ENCODED, MANIFEST) == {0, 2}
    part.close()


def test_a_file_is_read_in_chunks(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"".join(PIECES))
    assert list(file_chunks(tmp_path / "f")) == PIECES
