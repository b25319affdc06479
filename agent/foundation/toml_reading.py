"""TOML to a frozen dataclass: strict, and all problems of a file reported at once.

A table is a dataclass, a key is a field; rules and explanation stand beside the type in
``Annotated``. Strict means: an unknown key, a wrong type or a value out of bounds is a
``ConfigError`` that names the key, its line and what to write instead. Nothing is silently ignored
or coerced (only a whole number where a decimal number is asked for).

Supported types: str, int, float, bool, Path, Literal of str, ``X | None`` for keys without default,
``tuple[X, ...]``, nested dataclasses, and ``Mapping[str, dataclass]`` for tables with free names.
"""

import re
import tomllib
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from agent.foundation.errors import ConfigError
from agent.foundation.toml_lines import line_of, positions

T = TypeVar("T")
KeyPath = tuple[str, ...]

PROBLEMS_MAX = 50
"""More than a screen helps nobody."""


class Problem(NamedTuple):
    """One thing that is wrong with a file."""

    path: KeyPath
    told: str
    """The whole sentence."""


class Rule(Protocol):
    """One condition on one value. It never raises: all problems are told at once."""

    def problem(self, value: object) -> str | None:
        """What is wrong with ``value`` (a sentence without its subject), or None."""
        ...


@dataclass(frozen=True, slots=True)
class Doc:
    """What the key means, for example files and documentation."""

    text: str


@dataclass(frozen=True, slots=True)
class Between:
    """A number from ``low`` to ``high``, both included."""

    low: float
    high: float

    def problem(self, value: object) -> str | None:
        """None for a number inside; NaN is outside of everything."""
        assert isinstance(value, int | float)
        if self.low <= value <= self.high:
            return None
        return f"is {value}; it must be from {self.low:g} to {self.high:g}"


@dataclass(frozen=True, slots=True)
class AtMost:
    """A list or a set of named tables with no more than ``most`` elements."""

    most: int

    def problem(self, value: object) -> str | None:
        """None if it is short enough."""
        assert isinstance(value, tuple | Mapping)
        if len(value) <= self.most:
            return None
        return f"has {len(value)} elements; at most {self.most} are allowed"


@dataclass(frozen=True, slots=True)
class Matches:
    """Text of the form ``pattern``; ``told`` explains it to a person ("it must be ...")."""

    pattern: re.Pattern[str]
    told: str

    def problem(self, value: object) -> str | None:
        """None if the whole text matches."""
        if self.pattern.fullmatch(str(value)):
            return None
        return f"is {value!r}; {self.told}"


@dataclass(frozen=True, slots=True)
class Each:
    """Every element of a list keeps ``rule``."""

    rule: Rule

    def problem(self, value: object) -> str | None:
        """The first element's problem, with its place in the list."""
        assert isinstance(value, tuple)
        for place, element in enumerate(value, start=1):
            found = self.rule.problem(element)
            if found is not None:
                return f"element {place} {found}"
        return None


@dataclass(frozen=True, slots=True)
class Keys:
    """Every free name of a ``Mapping`` of tables keeps ``rule``."""

    rule: Rule


@dataclass(frozen=True, slots=True)
class Key:
    """One declared key of a table."""

    kind: Any
    """Its type; of ``X | None``, X."""
    notes: tuple[Any, ...]
    """Doc, Keys and rules."""
    entry: Field[Any]

    @property
    def doc(self) -> str:
        """Its explanation; empty if it has none."""
        return next((note.text for note in self.notes if isinstance(note, Doc)), "")

    @property
    def is_required(self) -> bool:
        """Whether a file must give it."""
        return self.entry.default is MISSING and self.entry.default_factory is MISSING


def keys_of(table: type[Any]) -> dict[str, Key]:
    """The declared keys of a table, in order."""
    hints = get_type_hints(table, include_extras=True)
    found: dict[str, Key] = {}
    for entry in fields(table):
        hint = hints[entry.name]
        kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if get_origin(kind) in {types.UnionType, Union}:  # TOML has no null: what is given is set
            kind = next(one for one in get_args(kind) if one is not type(None))
        found[entry.name] = Key(kind, tuple(notes), entry)
    return found


def read_toml(
    kind: type[T],
    text: str,
    source: str,
    check: Callable[[T], Iterable[Problem]] | None = None,
) -> T:
    """The text as one ``kind``.

    Args:
        kind: a frozen dataclass.
        text: the file's content.
        source: names the file in errors.
        check: what only several keys together can get wrong; sees only values that are right alone.

    Raises:
        ConfigError: not TOML, or any key is wrong; the message holds every problem with its line.
    """
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not valid TOML", why=str(error)) from None
    except RecursionError:
        raise ConfigError(f"{source} is not valid TOML", why="it is nested too deep") from None
    reading = _Reading()
    read = reading.table(kind, (), tree)
    if not reading.problems and check is not None:
        assert isinstance(read, kind)
        reading.problems.extend(check(read))
    if reading.problems:
        raise _error(reading.problems, text, source)
    assert isinstance(read, kind)
    return read


class _Wrong(Exception):
    """A value is of another type than declared; the text is a sentence without its subject."""


class _Reading:
    """One pass over one file; collects problems instead of stopping at the first."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def table(self, kind: type[Any], path: KeyPath, given: Mapping[str, object]) -> object:
        """One ``kind``, or None if anything in it is wrong."""
        known = keys_of(kind)
        before = len(self.problems)
        values: dict[str, object] = {}
        for name, value in given.items():
            if name in known:
                values[name] = self._value(known[name], (*path, name), value)
            else:
                self._unknown((*path, name), known, is_table=isinstance(value, dict))
        for name, key in known.items():
            if name not in given and key.is_required:
                self.problems.append(Problem(path, f"{_dotted(path)} has no {name}; add it"))
        return kind(**values) if len(self.problems) == before else None

    def _value(self, key: Key, path: KeyPath, given: object) -> object:
        try:
            value = self._converted(key, path, given)
        except _Wrong as wrong:
            self.problems.append(Problem(path, f"{_dotted(path)} {wrong}"))
            return None
        rules: list[Rule] = [note for note in key.notes if not isinstance(note, Doc | Keys)]
        for rule in rules:
            problem = rule.problem(value)
            if problem is not None:
                self.problems.append(Problem(path, f"{_dotted(path)} {problem}"))
                return None
        return value

    def _converted(self, key: Key, path: KeyPath, given: object) -> object:
        is_mapping = get_origin(key.kind) is Mapping
        if not is_mapping and not is_dataclass(key.kind):
            return _plain(key.kind, given)
        if not isinstance(given, dict):
            raise _Wrong(f"is a section; write [{_dotted(path)}] and its keys below it")
        if not is_mapping:
            return self.table(key.kind, path, given)
        table = get_args(key.kind)[1]
        found: dict[str, object] = {}
        for name, inner in given.items():
            for note in key.notes:
                problem = note.rule.problem(name) if isinstance(note, Keys) else None
                if problem is not None:
                    self.problems.append(
                        Problem((*path, name), f"{_dotted(path)}: the name {problem}")
                    )
            if isinstance(inner, dict):
                found[name] = self.table(table, (*path, name), inner)
            else:
                told = f"{_dotted((*path, name))} is a section; write [{_dotted((*path, name))}]"
                self.problems.append(Problem((*path, name), told))
        return MappingProxyType(found)

    def _unknown(self, path: KeyPath, known: Mapping[str, Key], *, is_table: bool) -> None:
        near = get_close_matches(path[-1], known, n=1, cutoff=0.5)
        meant = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        what = "section" if is_table else "key"
        self.problems.append(Problem(path, f"unknown {what} {_dotted(path)!r}; {meant}"))


def _plain(expected: Any, given: object) -> object:
    """``given`` as the declared type.

    Raises:
        _Wrong: it is of another type.
    """
    origin, arguments = get_origin(expected), get_args(expected)
    if origin is Literal:
        if isinstance(given, str) and given in arguments:
            return given
        raise _Wrong(f"is {given!r}; it must be {' or '.join(map(repr, arguments))}")
    if origin is tuple:
        if not isinstance(given, list):
            raise _Wrong(f'is {_told(given)}; it must be a list, for example ["a", "b"]')
        return tuple(_plain(arguments[0], element) for element in given)
    if expected is Path:
        text = str(_plain(str, given))
        if not text or "\0" in text:
            raise _Wrong("is not a path")
        return Path(text)
    if expected is float and isinstance(given, int) and not isinstance(given, bool):
        return float(given)
    if isinstance(given, expected) and (expected is bool or not isinstance(given, bool)):
        return given
    names = {str: "text in quotes", int: "a whole number", float: "a number", bool: "true or false"}
    raise _Wrong(f"is {_told(given)}; it must be {names[expected]}")


def _told(given: object) -> str:
    """What the operator wrote, in a word."""
    match given:
        case bool():
            return "true" if given else "false"
        case int() | float():
            return f"the number {given}"
        case str():
            return f"the text {given!r}"
        case list():
            return "a list"
        case dict():
            return "a section"
        case _:
            return "a date or time"


def _dotted(path: KeyPath) -> str:
    return ".".join(path) or "the file"


def _error(problems: list[Problem], text: str, source: str) -> ConfigError:
    lines = positions(text)
    ordered = sorted((line_of(lines, path) or 0, problem) for path, problem in problems)
    told = [
        f"line {line}: {problem}" if line else problem for line, problem in ordered[:PROBLEMS_MAX]
    ]
    if len(ordered) > PROBLEMS_MAX:
        told.append(f"... and {len(ordered) - PROBLEMS_MAX} more")
    count = "1 problem" if len(ordered) == 1 else f"{len(ordered)} problems"
    return ConfigError(f"{source} has {count}", why="\n".join(told))
