"""What is decided at one site against the catalog: a model it must not serve, or serves besides.

Rule: the catalog says what this site should serve; a decision made here overrides it, durably, until
the opposite is decided here. One about a version counts before one about all versions of the model.
Residency is never overridden.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from agent.foundation.errors import Busy, NotFound, Refused
from agent.foundation.writes import Delete, Put, Scalar, Write
from agent.wire.documents import ModelVersion
from agent.wire.residency import Group, is_within

OVERRIDES_MAX = 4096
"""One for each model version that a site can hold, many times over; each is a row read at start."""
WHO_CHARS_MAX = 200

ALL = ""
"""In place of a version: all of them, also those that are not published yet."""

Named = tuple[str, str]
"""Model and version."""


@dataclass(frozen=True, slots=True)
class Override:
    """One decision."""

    name: str
    version: str
    """Or ``ALL``."""
    is_served: bool
    """Serve it besides what the catalog says; False: do not serve it, whatever that says."""
    who: str
    """Who decided, for a person."""
    at_s: float
    """Unix time."""

    def __str__(self) -> str:
        """``unloaded by the operator at 2026-11-26 16:40:05 UTC``."""
        at = f"{datetime.fromtimestamp(self.at_s, UTC):%Y-%m-%d %H:%M:%S} UTC"
        return f"{'loaded' if self.is_served else 'unloaded'} by {self.who} at {at}"

    @property
    def spelled(self) -> str:
        """The model as the command line takes it."""
        return self.name + (f":{self.version}" if self.version else "")


class Overrides:
    """All decisions of one site."""

    def __init__(self, stored: Iterable[Override]) -> None:
        """``stored``: as read from the database."""
        self._known = {(one.name, one.version): one for one in stored}

    def of(self, name: str, version: str) -> Override | None:
        """The decision that counts for a model version."""
        return self._known.get((name, version)) or self._known.get((name, ALL))

    def is_unloaded(self, name: str, version: str) -> bool:
        """Whether the version must not be served here."""
        found = self.of(name, version)
        return found is not None and not found.is_served

    def unload(self, wanted: Override) -> list[Write]:
        """Serve a version, or all versions of a model, no more; rows to make durable first."""
        writes: list[Write] = []
        if wanted.version == ALL:
            writes += self._forget(key for key in self._known if key[0] == wanted.name)
        return [*writes, *self._keep(wanted)]

    def load(
        self, name: str, version: str, targets: Iterable[str], planned: Collection[Named],
        who: str, at_s: float,
    ) -> list[Write]:  # fmt: skip
        """Serve a version, or a model (``ALL``) again; rows to make durable first.

        Args:
            name: of the model.
            version: what is lifted: the decisions about this version, or about any.
            targets: the versions to serve.
            planned: what the catalog wants here, which needs no decision.
            who: decides, for a person.
            at_s: Unix time.
        """
        writes = self._forget(
            key
            for key, one in self._known.items()
            if key[0] == name and (key[1] == version or (version == ALL and not one.is_served))
        )
        for target in targets:
            if (name, target) not in planned or self.is_unloaded(name, target):
                writes += self._keep(Override(name, target, True, who[:WHO_CHARS_MAX], at_s))
        return writes

    def require_room(self, name: str, version: str) -> None:
        """Raise ``Busy`` if a decision would be one too many; one that replaces another never is."""
        is_replacing = (name, version) in self._known or (
            version == ALL
            and any(key[0] == name and not one.is_served for key, one in self._known.items())
        )
        if len(self._known) >= OVERRIDES_MAX and not is_replacing:
            raise Busy(
                "this site can remember no more loads and unloads",
                why=f"there are {len(self._known)}",
                mend="atoll model load NAME forgets all that unload versions of that model",
            )

    def apply(
        self,
        planned: Sequence[ModelVersion],
        every: Mapping[Named, ModelVersion],
        place: str,
        groups: Sequence[Group],
    ) -> list[ModelVersion]:
        """What this site serves in the end; ``planned`` by the catalog, ``place`` its jurisdiction."""
        served = [one for one in planned if not self.is_unloaded(one.name, one.version)]
        present = {(one.name, one.version) for one in served}
        for key, decision in sorted(self._known.items()):
            version = every.get(key)
            if (
                decision.is_served
                and version is not None
                and key not in present
                and is_within(place, version.residency, groups)
            ):
                served.append(version)
        return served

    def _keep(self, one: Override) -> list[Write]:
        self._known[one.name, one.version] = one
        row: dict[str, Scalar] = {
            "name": one.name, "version": one.version, "is_served": one.is_served,
            "who": one.who, "at_s": one.at_s,
        }  # fmt: skip
        return [Put("overrides", row)]

    def _forget(self, keys: Iterable[Named]) -> list[Write]:
        gone = list(keys)
        for key in gone:
            del self._known[key]
        return [Delete("overrides", key) for key in gone]


def find(every: Mapping[Named, ModelVersion], name: str, version: str) -> list[ModelVersion]:
    """The versions that are meant, newest name last.

    Raises:
        NotFound: the catalog has none of them.
    """
    found = [one for _, one in sorted(every.items()) if one.name == name]
    meant = [one for one in found if version in (ALL, one.version)]
    if not meant:
        known = ", ".join(one.version for one in found)
        raise NotFound(
            f"the catalog has no model {name!r}" + (f" version {version!r}" if version else ""),
            why=f"known are {known}" if known else "",
            mend="publish it with atoll model push",
        )
    return meant


def check_place(
    versions: Sequence[ModelVersion], place: str, groups: Sequence[Group]
) -> list[ModelVersion]:
    """Those that may be held in a jurisdiction.

    Raises:
        Refused: none of them may.
    """
    allowed = [one for one in versions if is_within(place, one.residency, groups)]
    if not allowed:
        label = ", ".join(versions[0].residency)
        raise Refused(
            f"model {versions[0].name!r} must not be held here",
            why=f"its residency is {label}, this site is in {place}",
            mend="a residency is never overridden; use a site that is there",
        )
    return allowed
