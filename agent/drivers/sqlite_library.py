"""sqlite-utils without what it imports for others.

It imports numpy if that is installed, to store numpy's scalars; this process never has any, and numpy
would cost it 0.3 s and some 15 MiB. It also imports the libraries of its own command line and of its
conversion recipes (2 MiB, 15 ms), which nobody calls here. Import ``Database`` and ``Migrations`` from
here.
"""

import contextlib
import sys
import types
from collections.abc import Iterator

_NOT_NEEDED = ("numpy", "pandas")
_ONLY_NAMED = ("click", "dateutil", "dateutil.parser")


class _NotHere(types.ModuleType):
    """Stands for a library that is imported and never used: what is taken from it is only a name."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,), {})


@contextlib.contextmanager
def _absent(not_needed: tuple[str, ...], only_named: tuple[str, ...]) -> Iterator[None]:
    """Make imports of ``not_needed`` fail inside the block, and those of ``only_named`` find nothing."""
    hidden = [name for name in not_needed if name not in sys.modules]
    emptied = [name for name in only_named if name not in sys.modules]
    modules: dict[str, object] = sys.modules  # type: ignore[assignment]
    modules |= dict.fromkeys(hidden) | {name: _NotHere(name) for name in emptied}
    try:
        yield
    finally:
        for name in (*hidden, *emptied):
            del modules[name]


with _absent(_NOT_NEEDED, _ONLY_NAMED):
    from sqlite_utils import Database
    from sqlite_utils.migrations import Migrations

__all__ = ["Database", "Migrations"]
