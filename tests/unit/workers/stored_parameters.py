"""Parameters as files hold them, and means of them."""

import io
from collections.abc import Sequence

import numpy as np

from agent.workers.mean import Blocks, Mean, blocks, make_all, within
from agent.workers.parameters import Floats, Parameters, Stored, parse, write


def content(parameters: Parameters) -> bytes:
    file = io.BytesIO()
    write(parameters, file)
    return file.getvalue()


def stored(parameters: Parameters) -> Stored:
    """As it is read from its file."""
    return parse(content(parameters))


def made(*values: float, label: str = "r/8") -> Stored:
    return stored(Parameters(label, {"w": np.array(values, np.float32)}))


def mean_of(
    updates: Sequence[tuple[Stored, int]], mean: Blocks | None = None, *, threads: int = 1
) -> Stored:
    """Of ``updates``, and of what ``mean`` counts already."""
    of = Mean() if mean is None else mean
    for update, samples in updates:
        assert isinstance(of, Mean)
        of.include(update, samples)
    wanted = list(blocks(of.like))
    values: Floats = np.full(sum(at.stop - at.start for at in wanted), np.nan, np.float32)
    make_all(of, iter(wanted), threads, place=within(values))
    head = content(of.like)[: -values.nbytes or None]
    return parse(head + values.tobytes())
