"""Cases that an operator writes down about where requests may go, tried on the filter that decides.

Nothing is decided here: each case is asked of ``policy.judge_remote``, as the sender asks, and of
``policy.check_received``, as the receiver asks; it is allowed only if both allow it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Final, Literal

from agent.foundation.errors import Refused
from agent.foundation.ids import SiteId
from agent.foundation.toml_reading import AtMost, Each, Keys, Matches, read_toml
from agent.routing.law import Entry, applying, bounds_of, narrowed, require_label
from agent.routing.policy import (
    RESIDENCY_MAX,
    Question,
    check_received,
    judge_remote,
)
from agent.serving.access import LOCAL
from agent.wire.documents import Policy
from agent.wire.inside import KnownModel, RemoteSite, View, model_key
from agent.wire.residency import GROUPS_MAX, MEMBERS_MAX, Group

CASES_MAX: Final = 10_000
"""Tried in under a second; more is a mistake."""

_IS_NAME = Matches(
    re.compile(r"[A-Za-z0-9._ -]{1,64}"), "it must be letters, digits, spaces and . _ - (1 to 64)"
)
_IS_PLACE = Matches(
    re.compile(r"[A-Za-z0-9._-]{1,64}"), "it must be a jurisdiction as Atoll-Residency takes it"
)
_Label = Annotated[tuple[str, ...], AtMost(RESIDENCY_MAX), Each(_IS_PLACE)]
_Answer = Literal["allow", "deny"]

_HERE, _THERE = SiteId(bytes(31) + b"\1"), SiteId(bytes(31) + b"\2")
_KEY = model_key("m", "1")


@dataclass(frozen=True, slots=True)
class Case:
    """``[case."NAME"]``: one request, one site, and what should come of it."""

    site: Annotated[str, _IS_PLACE]
    """The jurisdiction in the site's certificate."""
    expect: _Answer
    request: _Label = ()
    """What ``Atoll-Residency`` names; empty = no header."""
    model: _Label = ()
    """The model's residency label; empty = anywhere."""
    name: Annotated[str, _IS_NAME] = "m"
    """The model's name, for policies."""
    origin: Annotated[str, _IS_PLACE] | None = None
    """The jurisdiction of the site that the application asks; None = the site's own."""
    application: Annotated[str, _IS_NAME] = LOCAL
    """By the name of its token."""


@dataclass(frozen=True, slots=True)
class Members:
    """``[group.NAME]``: what a label means by that name, as ``atoll trust group`` would set it."""

    members: Annotated[tuple[str, ...], AtMost(MEMBERS_MAX), Each(_IS_PLACE)]


@dataclass(frozen=True, slots=True)
class CaseFile:
    """The whole file."""

    case: Annotated[Mapping[str, Case], AtMost(CASES_MAX), Keys(_IS_NAME)]
    group: Annotated[Mapping[str, Members], AtMost(GROUPS_MAX), Keys(_IS_PLACE)] = field(
        default_factory=dict
    )

    @property
    def groups(self) -> tuple[Group, ...]:
        """As the trust log would have them."""
        return tuple(Group(name, one.members) for name, one in sorted(self.group.items()))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the filter says of one case."""

    name: str
    expected: _Answer
    answer: _Answer
    rule: str
    """The rule that denies, for a person; empty if it is allowed."""

    @property
    def is_as_expected(self) -> bool:
        """Whether the operator was right about it."""
        return self.expected == self.answer


def read(text: str, source: str) -> CaseFile:
    """The cases of a file.

    Raises:
        ConfigError: with every problem and its line.
    """
    return read_toml(CaseFile, text, source)


def outcome(
    name: str, case: Case, groups: tuple[Group, ...], policies: Sequence[Policy] = ()
) -> Outcome:
    """Ask the sender's filter and the receiver's."""
    model = KnownModel(_KEY, case.name, "1", is_default=True, residency=case.model)
    entry = Entry(case.site if case.origin is None else case.origin, case.application)
    about = applying(policies, groups, case.name, entry)
    try:
        require_label(about, case.request)
    except Refused as refusal:
        return Outcome(name, case.expect, "deny", refusal.why)
    question = Question(model, residency=case.request, bounds=bounds_of(about))
    receiver = RemoteSite(
        _THERE, "there", "r", "edge", case.site, "h", 1, "alive",
        is_draining=False, rtt_ms=0.0, load=0.0, serving=(),
    )  # fmt: skip
    removed = judge_remote(
        _view(groups, _HERE, "here", case.site, receiver), question, receiver
    ).removed
    rule = removed.reason if removed.ground == "policy" else ""
    try:
        question = replace(question, residency=narrowed(case.request, question.bounds, groups))
        check_received(_view(groups, _THERE, "there", case.site), question, _HERE)
    except Refused as refusal:
        rule = rule or refusal.why or refusal.what
    return Outcome(name, case.expect, "deny" if rule else "allow", rule)


def _view(
    groups: tuple[Group, ...], site: SiteId, name: str, jurisdiction: str, *others: RemoteSite
) -> View:
    return View(
        site=site, name=name, jurisdiction=jurisdiction, is_draining=False,
        local=(), known=(), sites=others, blobs=(), revoked=(), groups=groups,
    )  # fmt: skip
