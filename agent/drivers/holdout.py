"""The hold-out of a data set that the operator has bound: opened for whoever judges a model by it."""

import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from agent.training.contract import HOLDOUT_PREFIXES


@dataclass(frozen=True, slots=True)
class Holdout:
    """Files of one data set, and which models they may judge."""

    folder: Path
    models: tuple[str, ...]
    """Names, ``*`` for any."""

    def may_judge(self, model: str) -> bool:
        """Whether the operator lets the data be used for it."""
        return any(fnmatchcase(model, pattern) for pattern in self.models)

    def opened(self) -> tuple[int, int]:
        """Descriptors of images and labels, read-only.

        Raises:
            OSError: the folder has no hold-out, or it cannot be read.
        """
        prefix = next(
            (
                one
                for one in HOLDOUT_PREFIXES
                if (self.folder / f"{one}-images-idx3-ubyte").exists()
            ),
            HOLDOUT_PREFIXES[0],
        )
        images = _open(self.folder / f"{prefix}-images-idx3-ubyte")
        try:
            return images, _open(self.folder / f"{prefix}-labels-idx1-ubyte")
        except OSError:
            os.close(images)
            raise


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
