"""The caller's trace, carried along: W3C Trace Context.

Rule: a valid ``traceparent`` goes on to whoever answers in this site's place, with the same trace id and
a new span id for each hop; ``tracestate`` goes with it unchanged. Neither is believed for anything. What
is not valid is ignored as if it were not there, and no trace is begun here: a request without one has the
request id, which is carried and logged in the same places.

``tracestate`` may say anything, so it goes where the request goes and nowhere else: never to a site that
the request's residency label keeps it from, and not into logs.

Source: W3C Recommendation Trace Context (Level 1), sections 3.2 and 3.3; the random flag of Level 2.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

PARENT: Final = "traceparent"
STATE: Final = "tracestate"
SPAN_BYTES: Final = 8
STATE_CHARS_MAX: Final = 512
"""What every implementation carries (section 3.3.1.5); a longer one is dropped whole."""
MEMBERS_MAX: Final = 32
"""Entries of a ``tracestate`` (section 3.3.1.1)."""

_FLAGS_KNOWN = 0b11
"""Sampled and random; the others are not ours to hand on (section 3.2.2.5)."""
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MEMBER = re.compile(
    r"(?:[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)


class Headers(Protocol):
    """Headers of a request, or metadata of a call."""

    def getall(self, key: str, default: Sequence[str], /) -> Sequence[str]:
        """Every value of one."""
        ...


@dataclass(frozen=True, slots=True)
class Trace:
    """Where a request stands in its caller's trace."""

    id: str
    """Of the trace: 32 hexadecimal digits."""
    span: str
    """Of the caller: 16 hexadecimal digits."""
    flags: int
    state: str
    """``tracestate``; empty if there is none that can be carried."""

    def passed_on(self, span: bytes) -> "Trace":
        """As whoever is asked next gets it; ``span`` is random, ``SPAN_BYTES`` long, not all zero."""
        return replace(self, span=span.hex())

    def headers(self) -> dict[str, str]:
        """What carries it."""
        found = {PARENT: f"00-{self.id}-{self.span}-{self.flags:02x}"}
        if self.state:
            found[STATE] = self.state
        return found


def read_trace(headers: Headers) -> Trace | None:
    """The trace that a request belongs to; None if it names none, or none that is valid."""
    parents = headers.getall(PARENT, ())
    match = _PARENT.fullmatch(parents[0].strip(" \t")) if len(parents) == 1 else None
    if match is None:
        return None
    version, trace, span, flags, more = match.groups()
    is_known_form = version != "ff" and (version != "00" or more is None)
    if not is_known_form or int(trace, 16) == 0 or int(span, 16) == 0:
        return None
    return Trace(trace, span, int(flags, 16) & _FLAGS_KNOWN, _state(headers.getall(STATE, ())))


def _state(given: Sequence[str]) -> str:
    """Several headers are one list (section 3.3.1); empty if it is not one that can be carried."""
    members = [part for one in given for text in one.split(",") if (part := text.strip(" \t"))]
    keys = {member.partition("=")[0] for member in members}
    state = ",".join(members)
    is_valid = (
        len(state) <= STATE_CHARS_MAX
        and len(members) <= MEMBERS_MAX
        and len(keys) == len(members)
        and all(map(_MEMBER.fullmatch, members))
    )
    return state if is_valid else ""
