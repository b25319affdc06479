"""What the daemon offers to the operator: implemented by ``agent.daemon``, served by ``agent.api.admin``.

Rules:

- Answers are plain JSON values (dict, list, str, int, float, bool, None). Digests and site ids are
  lower-case hex, instants are seconds of Unix time, ``_ms``/``_s``/``_bytes`` name the unit.
- Keys are only added, never renamed: the command line and operators' scripts read them.
- A failure is an ``AtollError``; ``what``, ``why`` and ``mend`` go to the operator unchanged.
- A method that is not ``async`` answers from memory and returns within a millisecond or so.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from agent.api.bodies import Json
from agent.api.job_spec import JobSpec
from agent.wire.documents import Job, Stamp


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """What a join token grants; every field but ``ttl_s`` ends up in the new site's certificate."""

    name: str
    region: str
    tier: str
    jurisdiction: str
    roles: tuple[str, ...]
    ttl_s: float
    """Seconds from now, 60 to 604,800."""
    life_s: int = 0
    """How long the site's certificates live, seconds, at most 14 days; 0: 14 days."""


class Operations(Protocol):
    """The operator's view of one site."""

    def status(self) -> Json:
        """How this site is.

        Keys: site, name, cluster, region, tier, jurisdiction, version, uptime_s,
        state (``starting`` | ``ready`` | ``isolated`` | ``draining``), reasons [str],
        members {alive, suspect, dead, left}, processes [{name, pid, state, restarts, rss_bytes}],
        of which model workers have worker (its index), is_up, device (accelerators that it sees; empty:
        any), providers [str] (that its models got), models, loading (counts), runtime, sandbox,
        hardware {profile, why, providers}, models [{name, version, state, reason}],
        jobs [{id, state, epoch, round, rounds, aggregator}],
        certificate {begins_at, expires_at, renew_at, renewed_by, problem},
        loop_lag {samples, over_50_ms, longest_ms}: how late this process's timers were,
        http "host:port", http_certificate (path; empty: no TLS there), store [str] (findings at boot; empty is good),
        trust {height, head, revoked, forked_at (or None), doubt},
        gossip {sent, received, dropped (not authentic, not new, or not a message), limited (of
        members that send too many), malformed, forged} (datagrams; the last two are statements).
        """
        ...

    def members(self) -> list[Json]:
        """Every member, this site included.

        Keys of each: site, name, tier, region, jurisdiction, status (``alive`` | ``suspect`` |
        ``dead`` | ``left`` | ``draining``), rtt_ms (float or None),
        rtt_is_estimated (by coordinates, not measured), estimated_rtt_ms (by coordinates in any
        case; float or None), load, endpoint "host:port",
        serving [str "model:version"], incarnation, self (bool).
        """
        ...

    def peers(self) -> list[Json]:
        """Every way in which another site was looked for, and what came of it last.

        Keys of each: source (``mdns`` | ``seed`` | ``token`` | ``peer-book``), target "host:port"
        or interface, site (hex or None), name (or None), outcome (``connected`` | ``failed`` |
        ``waiting``), reason (str, why the last attempt ended as it did), mend (str, may be empty),
        last_at (Unix seconds or None), next_at (Unix seconds or None), attempts (int).
        """
        ...

    def models(self) -> list[Json]:
        """Every model version of the catalog.

        Keys of each: name, version, digest, bytes, residency [str], source,
        deployed (bool: this version answers requests that name none),
        sites [{name, state, reason, service_us}] for every member that is to serve it or does;
        state: ``waiting`` | ``fetching`` | ``loading`` | ``ready`` | ``refused`` | ``unloaded``
        (by a decision at this site).
        """
        ...

    def jobs(self) -> list[Json]:
        """Every training job of the catalog.

        Keys of each: id, recipe, dataset, state (``waiting`` | ``running`` | ``finished`` |
        ``failed`` | ``cancelled``), epoch, round (rounds committed), rounds, aggregator (site
        name or None), reason.
        """
        ...

    async def job(self, job: str) -> Json:
        """One job in full.

        Keys: those of ``jobs()``, and committee [site name], committee_trouble (why a change of it
        waits), recoveries, value (the register's value as a dict, or None), participants [{site, name, state, reason}],
        rounds_done [{round, epoch, aggregator, parameters, committed_at,
        counted [{site, name, samples, update, and of a late one round, of a region's region and
        until}], accuracy (or None)}], region (None, or what this site's region does: id, name, aggregator,
        committee, epoch, round, started_from, alone, activity, waiting_for, participants), changes_took_s (the
        last changes of the register from this site, seconds each).

        Raises:
            NotFound: no such job in the catalog.
        """
        ...

    def explain(self, model: str, residency: Sequence[str], application: str) -> Json:
        """Where a request for ``model`` would go now, and why.

        Args:
            model: ``name`` or ``name:version``.
            residency: jurisdictions in which it may be answered; empty = anywhere.
            application: who asks, by the name of its token.

        Returns:
            Keys: model, version, model_residency [str], request_residency [str], policies [str]
            (the names of those that narrow where it may be answered), chosen (site
            name; empty if none may), candidates (allowed, best first), removed. Keys of each site:
            site, name, is_local, jurisdiction; of a candidate also predicted_ms (the score),
            rtt_ms, queue_ms, service_ms, penalty_ms; of a removed one removed_by (the reason).

        Raises:
            NotFound: the catalog has no such model.
        """
        ...

    async def doctor(self) -> list[Json]:
        """Checks that need the running daemon. Keys of each: check, ok (bool), evidence, mend."""
        ...

    def stamp(self) -> Stamp:
        """A stamp newer than every document seen here, for the next document an admin signs.

        Raises:
            Refused: this site's clock is too far from the members': they would refuse the document.
        """
        ...

    def clock(self) -> Json:
        """This site's clock beside the members'.

        Keys: clock_ahead_s (of the median member; negative: behind), clocks_heard (how many members
        have told theirs lately).
        """
        ...

    async def submit(self, documents: Sequence[bytes]) -> list[Json]:
        """Take documents (``schema.pack(Document)``) that an admin signed.

        Returns:
            One for each, in order. Keys: kind, name, accepted (bool: False if what is here is
            newer or equal), reason. Stored durably and announced when this returns.

        Raises:
            Malformed: a document does not decode. None is taken.
            Refused: a signature is not an admin's, or the stamp lies in the future. None is taken.
        """
        ...

    async def draft_job(self, spec: JobSpec) -> Job:
        """The job for an admin to sign: a fresh id, and a committee chosen and pinned.

        Raises:
            Busy: no committee can be formed now.
            NotFound: the recipe does not exist.
        """
        ...

    async def store_blob(self, stream: AsyncIterator[bytes]) -> Json:
        """Keep a blob under its digest. Keys: digest (hex of its manifest), bytes.

        Raises:
            Refused: larger than BLOB_BYTES_MAX. StoreFault: the disk is full.
        """
        ...

    async def create_token(self, request: TokenRequest) -> str:
        """Mint a single-use join token.

        Raises:
            Refused: this site is not an issuer, or the claims are not in the vocabulary.
        """
        ...

    async def release_model(self, model: str) -> Json:
        """Try a model version again that this site refused or quarantined; its crashes are forgotten.

        Args:
            model: ``name:version``.

        Returns:
            Keys: name, version, state (as in ``models``), reason: as they were before.

        Raises:
            NotFound: this site is not to serve such a model.
        """
        ...

    async def control_model(self, model: str, *, is_load: bool) -> None:
        """Load or unload a model at this site, durably and whatever the catalog says.

        Args:
            model: ``name`` or ``name:version``.
            is_load: serve it; returns when it is ready. False: serve it no more.

        Raises:
            NotFound: the catalog does not have it.
            Refused: its residency label keeps it away from here.
            UsageError: it cannot be loaded; says why.
            Busy: it is not ready yet.
        """
        ...

    async def renew(self) -> Json:
        """Renew this site's certificate now; keys as of ``certificate`` in ``status``.

        Raises:
            Unreachable: nobody has renewed it; says what each has answered.
        """
        ...

    async def set_draining(self, draining: bool) -> None:  # noqa: FBT001 - the one thing it sets
        """Stop (or resume) taking forwarded requests and training rounds; local requests go on."""
        ...

    async def leave(self) -> None:
        """Say goodbye to the members, then stop. Returns when the goodbye is sent."""
        ...

    async def stop(self) -> None:
        """Begin to stop; returns at once, so that the answer reaches the operator."""
        ...

    def watch_job(self, job: str) -> AsyncIterator[Json]:
        """The job's state now and after each change; ends when the job has ended.

        Keys of each: id, state, epoch, round, rounds, aggregator, reason, and of the newest
        committed round (or None): accuracy, loss, samples, participants (counted updates).

        Raises:
            NotFound: no such job; raised by the first step.
        """
        ...
