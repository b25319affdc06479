"""Residency labels: where something may be, by jurisdictions and by groups of them.

A label is a list of names. A site's certificate names one jurisdiction. It is within the label if the label
names that, or a group of the trust log that has it as a member. What is not known counts as no: a name
that is neither the site's jurisdiction nor a known group allows nothing, and while the trust log is
forked or may be older than it was there are no groups.

Sender and receiver ask with the groups that each of them knows. While a change is on its way they may
differ; then the stricter one decides, because both must agree before anything goes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from agent.wire.records import Name
from agent.wire.schema import AtMost, pack

MEMBERS_MAX = 64
"""As many jurisdictions as a record may name; the European Economic Area has thirty."""
GROUPS_MAX = 64

LawDigest = Annotated[bytes, AtMost(32)]
"""Of what labels mean: ``law_digest``, or empty where that was not told."""


@dataclass(frozen=True, slots=True)
class Group:
    """Jurisdictions that a label may name together."""

    name: Name
    members: Annotated[tuple[Name, ...], AtMost(MEMBERS_MAX)]
    """Jurisdictions; a member that is itself the name of a group is only that name."""


@dataclass(frozen=True, slots=True)
class _Law:
    vocabulary: tuple[Name, ...]
    groups: tuple[Group, ...]


def law_digest(
    vocabulary: tuple[str, ...], groups: tuple[Group, ...], policies: Sequence[object] = ()
) -> bytes:
    """Eight bytes that tell by which jurisdictions, groups and policies something was decided.

    ``policies``: the active ones (``wire.documents.Policy``), by name.
    """
    parts = (pack(_Law(vocabulary, groups)), *map(pack, policies))
    return hashlib.sha256(b"".join(parts)).digest()[:8]


def is_within(jurisdiction: str, label: Sequence[str], groups: Sequence[Group]) -> bool:
    """Whether a label allows a jurisdiction; an empty label allows any, an empty place none."""
    if not label:
        return True
    if not jurisdiction:
        return False
    return jurisdiction in label or any(
        jurisdiction in group.members for group in groups if group.name in label
    )


def covers(label: Sequence[str], name: str, groups: Sequence[Group]) -> bool:
    """Whether a label allows all that a name stands for: a jurisdiction, or a group that it names too."""
    if name in label:
        return True
    if any(group.name == name for group in groups):
        return False
    return is_within(name, label, groups)
