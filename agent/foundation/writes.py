"""What a machine asks to be made durable: rows, by table, in one transaction.

The tables and their columns are defined once, in ``agent.drivers.store``; scalars only.
"""

from collections.abc import Mapping
from dataclasses import dataclass

Scalar = int | float | str | bytes | None


@dataclass(frozen=True, slots=True)
class Put:
    """Insert the row, or replace the one with the same primary key."""

    table: str
    row: Mapping[str, Scalar]


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove the row with this primary key, if it is there."""

    table: str
    key: tuple[Scalar, ...]


Write = Put | Delete
