"""One join token, its issuer, and everything that may happen between them: crashes, thieves, guesses.

The issuer's part is ``agent.identity.tokens.redeem`` and the order in which ``agent.daemon.joining``
uses it: judge, make the row durable, certify, answer. A power failure may come before and after
each of these; what was written and not synced is then lost. Judged from outside: a token admits one
key; five wrong proofs that were answered burn it; who was admitted is answered again after a lost
answer.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from random import Random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from agent.foundation.errors import Refused
from agent.foundation.ids import SiteId
from agent.identity.claims import Claims
from agent.identity.tokens import (
    WRONG_TRIES_MAX,
    JoinRequest,
    TokenRow,
    decode_token,
    make_request,
    mint,
    redeem,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TTL_S = 600.0
REQUESTS = 14
"""Of one seed: enough to burn a token and to ask again."""
HONEST, THIEF, GUESSERS = 0, 1, range(2, 8)

Redeem = Callable[
    [TokenRow | None, JoinRequest, datetime], tuple[TokenRow | None, Claims | Refused]
]


@dataclass(slots=True)
class Disk:
    """One row: as written, and as it survives a power failure."""

    written: TokenRow
    synced: TokenRow


@dataclass(frozen=True, slots=True)
class Parts:
    """What the issuer does; tests put mutants here."""

    judge: Redeem = redeem
    is_synced: bool = True
    answers_first: bool = False
    """Whether the answer leaves before the row is written (wrong)."""


@dataclass(slots=True)
class TokenStory:
    """What one seed did, as seen by those outside the issuer."""

    admitted: set[int] = field(default_factory=set)
    """Keys for which a certificate has left the issuer."""
    wrong_answered: int = 0
    """Wrong proofs whose refusal has left the issuer."""
    asked_in_time: set[int] = field(default_factory=set)
    """Keys that asked before the last wrong proof was answered: their row may be on disk."""
    admitted_after_burn: bool = False
    was_refused_again: bool = False
    """Who had been admitted was refused later, before the token expired."""
    account: list[str] = field(default_factory=list)

    @property
    def broken(self) -> str:
        """The rule that was broken; empty if none."""
        if len(self.admitted) > 1:
            return "single use: one token admitted two keys"
        if self.admitted_after_burn:
            return f"burning: a key was admitted after {WRONG_TRIES_MAX} wrong proofs"
        if self.was_refused_again:
            return "repeat: an admitted key was refused when it asked again"
        return ""


@lru_cache(maxsize=1)
def _token() -> tuple[str, TokenRow]:
    def entropy(count: int) -> bytes:
        return hashlib.sha256(b"token %d" % count).digest()[:count]

    return mint(
        cluster=bytes(32), issuer=SiteId(bytes(32)), name="new", region="here", tier="edge",
        jurisdiction="DE", roles=(), seeds=(("10.0.0.1", 7411),), entropy=entropy, now=NOW,
        ttl_s=TTL_S,
    )  # fmt: skip


@lru_cache(maxsize=64)
def _request(who: int) -> JoinRequest:
    """HONEST and THIEF hold the token; the others guess its secret."""
    key = hashlib.sha256(b"key %d" % who).digest()
    token = decode_token(_token()[0])
    if who in GUESSERS:
        token = replace(token, secret=key[:16])
    return make_request(
        token, Ed25519PrivateKey.from_private_bytes(key), X25519PrivateKey.from_private_bytes(key)
    )


def _handle(disk: Disk, who: int, at_s: float, parts: Parts) -> Iterator[str]:
    """Serve one request; each yield is a moment at which the power may fail."""
    now = NOW + timedelta(seconds=at_s)
    changed, outcome = parts.judge(disk.written, _request(who), now)
    if isinstance(outcome, Claims):
        answer = "admitted"
    else:
        answer = "wrong proof" if "does not match" in str(outcome) else "refused"
    if parts.answers_first:
        yield answer
    yield ""
    if changed is not None and changed != disk.written:
        disk.written = changed
        yield ""
        if parts.is_synced:
            disk.synced = changed
        yield ""
    if not parts.answers_first:
        yield answer


def tell(seed: int, parts: Parts | None = None) -> TokenStory:
    """Run one seed: requests in random order, power failures at random moments, lost answers."""
    parts = Parts() if parts is None else parts
    rng = Random(seed)  # noqa: S311 - reproducible on purpose
    row = _token()[1]
    disk = Disk(row, row)
    story = TokenStory()
    at_s = 0.0
    for _ in range(REQUESTS):
        at_s += rng.uniform(0, 30)
        who = rng.choice((HONEST, HONEST, THIEF, *GUESSERS))
        if story.wrong_answered < WRONG_TRIES_MAX:
            story.asked_in_time.add(who)
        fails_at = rng.randrange(4) if rng.random() < 1 / 2 else -1
        for moment, said in enumerate(_handle(disk, who, at_s, parts)):
            if said:
                _hear(story, who, said, at_s)
            if moment == fails_at:
                disk.written = disk.synced
                story.account.append(f"{at_s:7.1f}  the power fails")
                break
    return story


def _hear(story: TokenStory, who: int, said: str, at_s: float) -> None:
    """An answer has left the issuer."""
    name = "the thief" if who == THIEF else f"guesser {who}" if who in GUESSERS else "the new site"
    story.account.append(f"{at_s:7.1f}  {name}: {said}")
    if said == "admitted":
        story.admitted_after_burn |= who not in story.asked_in_time
        story.admitted.add(who)
    elif said == "wrong proof":
        story.wrong_answered += 1
    elif who in story.admitted and at_s < TTL_S:
        story.was_refused_again = True
