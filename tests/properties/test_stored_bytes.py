"""Whatever the bytes are: a value of the right type, or the one error that is promised."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from agent.audit.chain import head_of
from agent.distribution.manifest import Manifest, build, digest_of, encode, parse
from agent.drivers.store_schema import TABLES, row_hash
from agent.foundation.errors import Corruption, Malformed
from agent.foundation.writes import Scalar


@given(st.binary(max_size=300))
def test_any_bytes_are_a_manifest_or_malformed(data: bytes) -> None:
    try:
        manifest = parse(digest_of(data), data)
    except Malformed:
        return
    assert isinstance(manifest, Manifest)
    assert sum(manifest.length(n) for n in range(len(manifest.chunks))) == manifest.bytes


@given(st.binary(max_size=5000), st.integers(1024, 2048))
def test_a_manifest_covers_its_blob_exactly(data: bytes, chunk_bytes: int) -> None:
    pieces = [data[at : at + chunk_bytes] for at in range(0, len(data), chunk_bytes)]
    manifest = build(pieces, chunk_bytes)
    encoded = encode(manifest)
    assert parse(digest_of(encoded), encoded) == manifest
    rebuilt = b"".join(
        data[manifest.offset(n) :][: manifest.length(n)] for n in range(len(manifest.chunks))
    )
    assert rebuilt == data
    hashes = [hashlib.sha256(piece).digest() for piece in pieces]
    assert list(manifest.chunks) == hashes


@given(st.binary(max_size=300), st.one_of(st.none(), st.integers(), st.binary(max_size=40)))
def test_any_row_is_an_audit_entry_or_corruption(entry: bytes, other: int | bytes | None) -> None:
    try:
        head_of({"sequence": other, "entry": entry, "hash": other})
    except Corruption:
        return
    raise AssertionError("random bytes were taken for an audit entry")


scalars = st.one_of(
    st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.binary(), st.text()
)


@given(st.tuples(scalars, scalars), st.tuples(scalars, scalars))
def test_two_rows_share_a_hash_only_if_they_are_equal(
    one: tuple[Scalar, ...], two: tuple[Scalar, ...]
) -> None:
    is_same = [(type(value), value) for value in one] == [(type(value), value) for value in two]
    zeros = any(isinstance(value, float) and value == 0.0 for value in (*one, *two))
    assert (row_hash("jobs", one) == row_hash("jobs", two)) is is_same or zeros  # 0.0 and -0.0
    assert row_hash("jobs", one) != row_hash("meta", one)
    assert len(TABLES["jobs"].values({"job": "j"})) == 4
