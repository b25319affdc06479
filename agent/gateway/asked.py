"""An inference request as it is read, and what goes back."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from agent.drivers.clock import monotonic_s
from agent.foundation.errors import UsageError
from agent.foundation.ids import SiteId
from agent.gateway.members import HOPS_HEADER, ID_HEADER, RESIDENCY_HEADER
from agent.gateway.site import SiteState
from agent.routing.law import Entry, applying, bounds_of, require_label
from agent.routing.policy import Question, check_received, parse_residency, resolve
from agent.serving.access import LOCAL
from agent.serving.fair import Priority
from agent.serving.trace import Trace
from agent.wire.inside import KnownModel

ONCE_HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotency-Replayed"
ONCE_CHARS_MAX = 128
REQUEST_ID_CHARS_MAX = 64

_ID_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:")


@dataclass(frozen=True, slots=True)
class Asked:
    """An inference request, read."""

    id: str
    model: KnownModel
    question: Question
    header: str | None
    """``Inference-Header-Content-Length`` as given."""
    body: bytes
    deadline: float
    """Monotonic seconds."""
    application: str = LOCAL
    """Who asks: see ``agent.gateway.applications``."""
    priority: Priority = Priority.NORMAL
    trace: Trace | None = None
    """Of the caller."""
    is_default: bool = False
    """The caller has named no version: ``model`` is the one that answered by default when it asked."""
    once: str | None = None
    """The caller's idempotency key; see ``agent.gateway.once``."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What goes back to the caller."""

    status: int
    body: bytes
    json_bytes: int | None
    served_by: str
    retry_after: str | None = None
    queue_us: int = 0
    run_us: int = 0
    together: int = 1
    """Requests that shared the run."""
    is_first: bool = True
    is_replayed: bool = False
    """The answer to an earlier request with the same idempotency key."""


def read_question(
    state: SiteState,
    name: str,
    version: str | None,
    headers: Mapping[str, str],
    caller: SiteId | None,
    application: str = LOCAL,
    *,
    is_data: bool = False,
) -> Question:
    """What is asked for and within which bounds.

    Args:
        state: of this site.
        name: of the model.
        version: None = the one that answers by default.
        headers: of the request.
        caller: the member that passed it on; None = an application.
        application: its name by its token; ``LOCAL`` if it has none.
        is_data: it brings data for the model, not only a question about it.

    Raises:
        NotFound: unknown model or version.
        Refused: this site must not answer a request that was passed on to it.
        UsageError: a header does not parse.
        Busy: the site is starting.
    """
    view = state.view
    model = resolve(view, name, version)
    residency = parse_residency(headers.get(RESIDENCY_HEADER))
    if caller is None:
        hops, entry = 0, Entry(view.jurisdiction, application)
    else:
        hops = _number(headers, HOPS_HEADER, 1)
        remote = state.remote(caller) if hops == 1 else None
        entry = Entry("" if remote is None else remote.jurisdiction, None)
    policies = applying(view.policies, view.groups, name, entry)
    if is_data:
        require_label(policies, residency)
    question = Question(
        model,
        residency,
        hops,
        frozenset(() if caller is None else (caller,)),
        bounds_of(policies),
    )
    if caller is not None:
        check_received(view, question, caller)
    return question


def read_request_id(headers: Mapping[str, str]) -> str:
    """The caller's id for the request, or a new one."""
    given = headers.get(ID_HEADER, "")
    if given and len(given) <= REQUEST_ID_CHARS_MAX and _ID_CHARS.issuperset(given):
        return given
    return os.urandom(8).hex()


def read_once(headers: Mapping[str, str]) -> str | None:
    """The caller's idempotency key, plain or as the quoted text of the draft; None if there is none.

    Raises:
        UsageError: it is none that can be kept.
    """
    given = headers.get(ONCE_HEADER)
    if given is None:
        return None
    key = given[1:-1] if len(given) > 1 and given[0] == given[-1] == '"' else given
    if not (key and len(key) <= ONCE_CHARS_MAX and _ID_CHARS.issuperset(key)):
        raise UsageError(
            f"{ONCE_HEADER} is no key",
            why=f"1 to {ONCE_CHARS_MAX} letters, digits, '.', '_', '-' or ':' are",
            mend="a UUID for each request will do",
        )
    return key


def read_deadline(state: SiteState, headers: Mapping[str, str], header: str) -> float:
    """When the answer is of no use any more, monotonic seconds.

    Raises:
        UsageError: the header is not a number of milliseconds.
    """
    allowed_ms = round(state.limits.deadline_max_s * 1000)
    return monotonic_s() + min(_number(headers, header, allowed_ms), allowed_ms) / 1000


def _number(headers: Mapping[str, str], header: str, default: int) -> int:
    text = headers.get(header)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(1 << 53))):
        raise UsageError(f"{header} is not a number", why=f"given {text[:40]!r}")
    return int(text)
