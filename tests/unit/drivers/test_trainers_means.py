"""What an attack found about means: hostile files, liars, results taken for others. Each failed first."""

from collections.abc import AsyncIterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from test_trainers import JOB

from agent.drivers.trainers import Trainers, Weighed
from agent.training.contract import AttemptFailed, UpdatesRejected
from agent.training.ranges import cut
from agent.wire.limits import CHUNK_BYTES
from agent.workers.parameters import Parameters, write


@pytest_asyncio.fixture
async def trainers(tmp_path: Path) -> AsyncIterator[Trainers]:
    made = Trainers(jobs_dir=tmp_path / "jobs")
    yield made
    await made.close()


def file(folder: Path, name: str, values) -> Path:  # type: ignore[no-untyped-def]
    path = folder / name
    with path.open("wb") as out:
        write(Parameters("mnist-2nn/8", {"w": np.array(values, np.float32)}), out)
    return path


async def test_a_model_of_one_chunk_is_summed_in_its_one_range(
    trainers: Trainers, tmp_path: Path
) -> None:
    """D1: mnist-2nn at 8 x 8 is 220 KiB: one part of one; ``FinishRange`` kills the process."""
    job = replace(JOB, ranges=4)
    base = file(tmp_path, "base", [0.0, 0.0])
    updates = [Weighed(file(tmp_path, f"u{n}", [n, n]), n + 1) for n in range(2)]
    assert len(cut(base.stat().st_size, job.ranges)) == 1
    made = await trainers.aggregate_range(job, 1, updates, base, (0, 1))
    joined = await trainers.join(job, 1, [made], base)
    whole = await trainers.aggregate(job, 2, updates, base)
    assert joined.parameters.read_bytes() == whole.parameters.read_bytes()


async def test_two_lists_of_one_range_do_not_take_each_others_file(
    trainers: Trainers, tmp_path: Path
) -> None:
    """D: two works of one round and part, of other lists, give one path."""
    job = replace(JOB, ranges=3)
    random = np.random.default_rng(5)
    base = file(tmp_path, "base", random.standard_normal(200_000))
    whole = [file(tmp_path, f"u{n}", random.standard_normal(200_000)) for n in range(3)]
    chunks = cut(base.stat().st_size, 3)[1]
    parts = []
    for one in whole:
        path = tmp_path / f"{one.name}-1"
        path.write_bytes(one.read_bytes()[chunks.start * CHUNK_BYTES : chunks.stop * CHUNK_BYTES])
        parts.append(Weighed(path, 1))
    first = await trainers.aggregate_range(job, 1, parts, base, (1, 3))
    content = first.read_bytes()
    await trainers.aggregate_range(job, 1, parts[:2], base, (1, 3))
    assert first.read_bytes() == content


@pytest.mark.parametrize("first", ["a-liar", "z-liar"])
async def test_one_that_claims_too_many_samples_is_blamed_itself(
    trainers: Trainers, tmp_path: Path, first: str
) -> None:
    base = file(tmp_path, "base", [0.0, 0.0])
    honest = [Weighed(file(tmp_path, f"u{n}", [n, n]), 1000) for n in range(3)]
    liar = Weighed(file(tmp_path, first, [9.0, 9.0]), 2**36 - 1)
    with pytest.raises(UpdatesRejected) as raised:
        await trainers.aggregate(JOB, 1, [*honest, liar], base)
    assert [index for index, _ in raised.value.rejected] == [3]


async def test_float_means_in_ranges_have_the_same_bits(trainers: Trainers, tmp_path: Path) -> None:
    job = replace(JOB, ranges=3, is_float_mean=True)
    random = np.random.default_rng(5)
    base = file(tmp_path, "base", random.standard_normal(200_000))
    whole = [file(tmp_path, f"u{n}", random.standard_normal(200_000)) for n in range(5)]
    wanted = await trainers.aggregate(
        job, 1, [Weighed(one, n + 1) for n, one in enumerate(whole)], base
    )
    expected = wanted.parameters.read_bytes()
    ranges = []
    for number, chunks in enumerate(cut(base.stat().st_size, 3)):
        parts = []
        for n, one in enumerate(whole):
            data = one.read_bytes()[chunks.start * CHUNK_BYTES : chunks.stop * CHUNK_BYTES]
            path = tmp_path / sha256(data).hexdigest()  # blobs are named so
            path.write_bytes(data)
            parts.append(Weighed(path, n + 1))
        ranges.append(await trainers.aggregate_range(job, 1, parts, base, (number, 3)))
    joined = await trainers.join(job, 1, ranges, base)
    assert joined.parameters.read_bytes() == expected


async def test_an_outer_step_that_one_update_spoils_names_it(
    trainers: Trainers, tmp_path: Path
) -> None:
    job = replace(JOB, outer="nesterov")
    base = file(tmp_path, "base", [0.0, 0.0])
    honest = [Weighed(file(tmp_path, f"u{n}", [n, n]), 1000) for n in range(3)]
    bad = Weighed(file(tmp_path, "bad", [1e18, 1e18]), 1000_000)
    with pytest.raises(AttemptFailed) as raised:
        await trainers.aggregate(job, 1, [*honest, bad], base)
    assert isinstance(raised.value, UpdatesRejected), raised.value


async def test_a_hostile_update_is_named_and_ends_no_process(
    trainers: Trainers, tmp_path: Path
) -> None:
    """An impossible shape of no bytes: numpy's ``ValueError`` is no ``AtollError``, so the process dies and nobody is blamed."""
    base = file(tmp_path, "base", [0.0, 0.0])
    honest = [Weighed(file(tmp_path, f"u{n}", [n, n]), 1000) for n in range(3)]
    body = (
        b'{"a":{"dtype":"F32","shape":[0,8589934592,8589934592,8589934592],"data_offsets":[0,0]}}'
    )
    evil = tmp_path / "evil"
    evil.write_bytes(len(body).to_bytes(8, "little") + body)
    with pytest.raises(AttemptFailed) as raised:
        await trainers.aggregate(JOB, 1, [*honest, Weighed(evil, 5)], base)
    assert isinstance(raised.value, UpdatesRejected), raised.value
    assert [index for index, _ in raised.value.rejected] == [3]
