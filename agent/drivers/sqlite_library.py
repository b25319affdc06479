"""sqlite-utils without what it imports for others.

It imports numpy if that is installed, to store numpy's scalars; this process never has any, and numpy
would cost it 0.3 s and some 15 MiB. Import ``Database`` and ``Migrations`` from here.
"""

import contextlib
import sys
from collections.abc import Iterator

_NOT_NEEDED = ("numpy", "pandas")


@contextlib.contextmanager
def _absent(*names: str) -> Iterator[None]:
    """Make imports of ``names`` fail inside the block, as if they were not installed."""
    hidden = [name for name in names if name not in sys.modules]
    modules: dict[str, object] = sys.modules  # type: ignore[assignment]
    for name in hidden:
        modules[name] = None
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]


with _absent(*_NOT_NEEDED):
    from sqlite_utils import Database
    from sqlite_utils.migrations import Migrations

__all__ = ["Database", "Migrations"]
