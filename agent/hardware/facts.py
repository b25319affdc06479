"""Facts: what was read about this machine, each with the place it was read from."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

FactValue = str | int | float | tuple[str, ...]

TEXT_CHARS_MAX = 256
"""Longest text of one fact: firmware strings are short, and facts are shown to people."""
LIST_MAX = 1024
"""Most elements of one fact: CPU flags number some 200, PCI functions of a large server some 500."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that is known about this machine."""

    name: str
    """Dotted: ``dmi.product_name``, ``memory.bytes``."""
    value: FactValue
    source: str
    """Where it was read: a path, ``nvml``, ``psutil``."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts by name; of two with one name the later wins."""

    entries: dict[str, Fact] = field(default_factory=dict)

    @classmethod
    def of(cls, facts: Iterable[Fact]) -> "Facts":
        """The facts, cut to their bounds."""
        return cls({fact.name: _bounded(fact) for fact in facts})

    def __iter__(self) -> Iterator[Fact]:
        """All facts, by name."""
        return iter(sorted(self.entries.values(), key=lambda fact: fact.name))

    def text(self, name: str) -> str | None:
        """The fact as text; a list joined by commas; None if it is not known."""
        fact = self.entries.get(name)
        if fact is None:
            return None
        return ", ".join(fact.value) if isinstance(fact.value, tuple) else str(fact.value)

    def texts(self, name: str) -> tuple[str, ...]:
        """The fact as a list; empty if it is not known."""
        fact = self.entries.get(name)
        if fact is None:
            return ()
        return fact.value if isinstance(fact.value, tuple) else (str(fact.value),)

    def number(self, name: str) -> float | None:
        """The fact as a number; None if it is not known or no number."""
        fact = self.entries.get(name)
        if fact is None or not isinstance(fact.value, int | float):
            return None
        return float(fact.value)


def _bounded(fact: Fact) -> Fact:
    match fact.value:
        case str():
            return Fact(fact.name, fact.value[:TEXT_CHARS_MAX], fact.source)
        case tuple():
            cut = tuple(text[:TEXT_CHARS_MAX] for text in fact.value[:LIST_MAX])
            return Fact(fact.name, cut, fact.source)
        case _:
            return fact
