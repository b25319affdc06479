"""What the catalog's policies make of a request: further labels, beside its own and the model's.

A policy narrows and never widens, so a site that does not know one yet is as strict as the others by all
that it knows. Which policies a request meets is known where the application asks: what they allow travels on
as the request's label, by name of jurisdiction, and each site on the way adds what its own policies say.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from agent.foundation.errors import Refused
from agent.wire.documents import Policy
from agent.wire.residency import Group, covers, is_within

PATTERNS_CACHED_MAX = 4096


@dataclass(frozen=True, slots=True)
class Bound:
    """A label that somebody has put on a request."""

    policy: str
    """Its name."""
    label: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """How a request came into the cluster, as far as the asked site knows."""

    jurisdiction: str
    """Of the site that the application asked; empty = not known, so only policies for anywhere count."""
    application: str | None
    """Its name by its token (``serving.access.LOCAL``: without one); None = not known."""


def applying(
    policies: Iterable[Policy], groups: Sequence[Group], model: str, entry: Entry
) -> tuple[Policy, ...]:
    """The policies that are about a request for ``model``."""
    return tuple(one for one in policies if _is_about(one, groups, model, entry))


def bounds_of(policies: Iterable[Policy]) -> tuple[Bound, ...]:
    """What policies that are about a request put on it."""
    return tuple(Bound(one.name, one.answer_in) for one in policies if one.answer_in)


def require_label(policies: Iterable[Policy], label: Sequence[str]) -> None:
    """Pass if a request with this label of its own is enough for the policies that are about it.

    Raises:
        Refused: one of them wants a label, and there is none.
    """
    for policy in policies:
        if policy.needs_label and not label:
            raise Refused(
                "the request has no residency label",
                why=f"policy {policy.name} wants one",
                mend="say where it may be answered, such as Atoll-Residency: DE,FR",
            )


def narrowed(
    label: tuple[str, ...], bounds: Sequence[Bound], groups: Sequence[Group]
) -> tuple[str, ...]:
    """The label with which the request is passed on: what its own and all bounds allow, name by name.

    Raises:
        Refused: that is nothing, which as a label would mean anywhere.
    """
    labels = [one for one in (label, *(bound.label for bound in bounds)) if one]
    if not bounds:
        return label
    names = dict.fromkeys(name for one in labels for name in _spelled_out(one, groups))
    common = tuple(name for name in names if all(covers(one, name, groups) for one in labels))
    if not common:
        told = ", ".join(bound.policy for bound in bounds)
        raise Refused(
            "no jurisdiction is left in which the request may be answered",
            why=f"its label and policies have none in common: {told}",
        )
    said = {member for group in groups if group.name in common for member in group.members}
    said -= {group.name for group in groups}  # two groups may name each other
    return tuple(name for name in common if name not in said)


def _is_about(policy: Policy, groups: Sequence[Group], model: str, entry: Entry) -> bool:
    if not policy.is_active or not _fits(policy.models, model):
        return False
    if policy.origins and not is_within(entry.jurisdiction, policy.origins, groups):
        return False
    if not policy.applications:
        return True
    return entry.application is not None and _fits(policy.applications, entry.application)


def _fits(patterns: Sequence[str], name: str) -> bool:
    return not patterns or any(_read(one).fullmatch(name) for one in patterns)


@lru_cache(PATTERNS_CACHED_MAX)
def _read(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)


def _spelled_out(label: Sequence[str], groups: Sequence[Group]) -> list[str]:
    return [*label, *(m for group in groups if group.name in label for m in group.members)]
