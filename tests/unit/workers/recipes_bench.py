"""A job, and data that anything can learn."""

import numpy as np

from agent.foundation.ids import JobId
from agent.wire.documents import Job
from agent.workers.recipes_idx import Dataset

JOB = Job(
    JobId("digits-00000001"),
    recipe="mnist-2nn",
    dataset="digits",
    committee=(),
    rounds=3,
    epochs=2,
    batch=16,
    learning_rate=0.1,
    seed=7,
    sites_min=1,
    round_timeout_s=60.0,
    publish="",
    residency=(),
)


def bars(count: int, seed: int, side: int = 8) -> Dataset:
    """Images whose bright row is their label: anything that learns, learns this."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, side, count).astype(np.uint8)
    images = random.integers(0, 80, (count, side, side)).astype(np.uint8)
    images[np.arange(count), labels] = 255
    flat = images.reshape(count, side * side)
    half = count // 2
    return Dataset(flat[:half], labels[:half], flat[half:], labels[half:], side)
