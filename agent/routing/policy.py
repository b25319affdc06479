"""Where a request may go: a filter that fails closed.

Rule: a site is a candidate only if every question below is answered yes from what is known here;
what is unknown counts as no. It is asked at the sender and again at the receiver, which knows its
own jurisdiction best. Jurisdictions come from certificates, never from what a site says of itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from agent.foundation.errors import NotFound, Refused, UsageError
from agent.foundation.ids import SiteId
from agent.routing.law import Bound
from agent.wire.inside import KnownModel, LocalModel, RemoteSite, View
from agent.wire.residency import is_within

HOPS_MAX = 2
"""A request is passed on at most twice: once to the best site, once more if that has lost the model."""
RESIDENCY_MAX = 64
"""As many jurisdictions as a record may name (``wire.records.Jurisdictions``)."""

_NAME_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


@dataclass(frozen=True, slots=True)
class Question:
    """One request, as far as routing cares."""

    model: KnownModel
    residency: tuple[str, ...] = ()
    """Jurisdictions in which it may be answered; empty = the model's own label decides alone."""
    hops: int = 0
    """How often it has been passed on already."""
    excluded: frozenset[SiteId] = frozenset()
    """Sites that were tried and could not answer."""
    bounds: tuple[Bound, ...] = ()
    """What policies say besides."""


Ground = Literal["", "policy", "absent", "unloaded", "temporary"]
"""Why a site is out: a label forbids it, it has not got the model, somebody there took it away, or it
cannot at the moment."""


@dataclass(frozen=True, slots=True)
class Removal:
    """What takes a site out of the choice; false if nothing does."""

    ground: Ground = ""
    reason: str = ""

    def __bool__(self) -> bool:
        """Whether the site is out."""
        return bool(self.ground)


ALLOWED = Removal()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one site may answer, why not, and what is known of its speed."""

    site: SiteId
    name: str
    is_local: bool
    jurisdiction: str
    removed: Removal
    """False: it may answer."""
    remote: RemoteSite | None
    service_us: int


def parse_residency(text: str | None) -> tuple[str, ...]:
    """The jurisdictions named in an ``Atoll-Residency`` header (``DE,FR``); empty without one.

    Raises:
        UsageError: it names nothing, too many, or something that is not a name: a label that is
            not understood must not be ignored.
    """
    if text is None:
        return ()
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if len(names) > RESIDENCY_MAX or not all(
        name and len(name) <= RESIDENCY_MAX and _NAME_CHARS.issuperset(name) for name in names
    ):
        raise UsageError(
            "Atoll-Residency is not a list of jurisdictions",
            why=f"given {text[:80]!r}",
            mend="name at least one, separated by commas, such as DE,FR",
        )
    return names


def resolve(view: View, name: str, version: str | None) -> KnownModel:
    """The model version that a request means: the one named, else the deployed one.

    Raises:
        NotFound: no such model or version in the catalog.
    """
    versions = [model for model in view.known if model.name == name]
    if not versions:
        raise NotFound(f"unknown model {name!r}", mend="see POST /v2/repository/index")
    if version is not None:
        for model in versions:
            if model.version == version:
                return model
        listed = ", ".join(sorted(model.version for model in versions))
        raise NotFound(f"unknown version {version!r} of model {name!r}", why=f"known are {listed}")
    for model in versions:
        if model.is_default:
            return model
    if len(versions) == 1:
        return versions[0]
    raise NotFound(f"model {name!r} has no deployed version", mend="name a version")


def local_model(view: View, key: bytes) -> LocalModel | None:
    """The model as this site serves it, if it does."""
    return next((model for model in view.local if model.key == key), None)


def check_received(view: View, question: Question, caller: SiteId) -> None:
    """The receiver's own look at a request that another site has passed on.

    Raises:
        Refused: the caller is revoked, or this site must not answer.
    """
    if caller in view.revoked:
        raise Refused("the calling site is revoked")
    if question.hops > HOPS_MAX:
        raise Refused(
            f"the request was passed on {question.hops} times", why=f"the limit is {HOPS_MAX}"
        )
    if removed := _label(view, view.jurisdiction, question):
        raise Refused(f"site {view.name} must not answer this request", why=removed.reason)


def judge(view: View, question: Question, *, is_worker_up: bool) -> list[Verdict]:
    """Every site that was considered, this one first, each with what removed it."""
    return [
        judge_local(view, question, is_worker_up=is_worker_up),
        *(judge_remote(view, question, remote) for remote in view.sites),
    ]


def judge_local(view: View, question: Question, *, is_worker_up: bool) -> Verdict:
    """Whether this site may and can answer."""
    model = local_model(view, question.model.key)
    removed = _label(view, view.jurisdiction, question)
    if not removed:
        if view.site in question.excluded:
            removed = Removal("temporary", "was tried and could not answer")
        elif model is None and question.model.unloaded:
            removed = Removal("unloaded", f"{question.model.unloaded}; atoll model load ends it")
        elif model is None:
            removed = Removal("absent", "does not serve the model")
        elif view.is_draining:
            removed = Removal("temporary", "is draining")
        elif not model.is_ready:
            reason = model.reason or "it is being loaded"
            removed = Removal("temporary", f"model is not ready: {reason}")
        elif not is_worker_up:
            removed = Removal("temporary", "model worker is restarting")
    return Verdict(
        site=view.site,
        name=view.name,
        is_local=True,
        jurisdiction=view.jurisdiction,
        removed=removed,
        remote=None,
        service_us=model.service_us if model is not None else 0,
    )


def judge_remote(view: View, question: Question, remote: RemoteSite) -> Verdict:
    """Whether a member may and can answer, as far as is known here."""
    served = next((item for item in remote.serving if item.key == question.model.key), None)
    removed = _label(view, remote.jurisdiction, question)
    if not removed:
        if remote.site in view.revoked:
            removed = Removal("policy", "is revoked")
        elif served is None:
            removed = Removal("absent", "does not serve the model")
        elif question.hops >= HOPS_MAX:
            removed = Removal("temporary", f"request was passed on {question.hops} times already")
        elif remote.site in question.excluded:
            removed = Removal("temporary", "was tried and could not answer")
        elif remote.is_draining:
            removed = Removal("temporary", "is draining")
    return Verdict(
        site=remote.site,
        name=remote.name,
        is_local=False,
        jurisdiction=remote.jurisdiction,
        removed=removed,
        remote=remote,
        service_us=served.service_us if served is not None else 0,
    )


def _label(view: View, jurisdiction: str, question: Question) -> Removal:
    place = jurisdiction or "an unknown place"
    for subject, label in (
        ("model may run", question.model.residency),
        ("request may be answered", question.residency),
    ):
        if not is_within(jurisdiction, label, view.groups):
            told = f"{subject} only in {', '.join(label)}, the site is in {place}"
            return Removal("policy", told + _unknown(view, label))
    for bound in question.bounds:
        if not is_within(jurisdiction, bound.label, view.groups):
            told = (
                f"policy {bound.policy} lets it be answered only in {', '.join(bound.label)}, "
                f"the site is in {place}"
            )
            return Removal("policy", told + _unknown(view, bound.label))
    return ALLOWED


def _unknown(view: View, label: Sequence[str]) -> str:
    """Names that allow nothing because the cluster does not know them; empty if any name may be one."""
    known = {*view.vocabulary, *(group.name for group in view.groups)}
    names = [name for name in label if name not in known] if view.vocabulary else []
    if not names:
        return ""
    return f" ({', '.join(names)}: no jurisdiction or group of this cluster, see atoll trust)"
