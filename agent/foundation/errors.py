"""The error tree, by who can act.

::

    AtollError
    ├── ConfigError        the operator, before the site starts
    ├── UsageError         the caller (CLI, application, local API): wrong input
    │   ├── NotFound       ... names something that is not there
    │   ├── Refused        ... is understood and not allowed (policy, residency, authority)
    │   └── Busy           ... may try again later (``retry_after_s``)
    ├── RemoteFault        a peer misbehaved or is gone: counted, dropped, never crashes us
    │   ├── Malformed      ... sent bytes that do not decode
    │   └── Unreachable    ... did not answer
    ├── OutcomeUnknown     a change may or may not have happened; a retry must be idempotent
    ├── Corruption         stored bytes are not what they should be: quarantine
    └── StoreFault         this site's disk refused (full, read-only, broken); ``is_fatal``: restart

A broken invariant is an ``AssertionError`` and ends the process. Wrong input from outside never is.
Each message says what happened, why, and how to mend it.
"""


class AtollError(Exception):
    """Base of all errors that Atoll raises on purpose."""

    def __init__(self, what: str, *, why: str = "", mend: str = "") -> None:
        """Compose the message: ``what``, then ``why``, then how to ``mend`` it."""
        self.what, self.why, self.mend = what, why, mend
        super().__init__("; ".join(part for part in (what, why, mend) if part))


class ConfigError(AtollError):
    """The operator's configuration cannot be used."""


class UsageError(AtollError):
    """The caller asked for something impossible."""


class NotFound(UsageError):
    """The caller named something that does not exist here."""


class Refused(UsageError):
    """The request is understood and not allowed."""


class Busy(UsageError):
    """The request may succeed later."""

    def __init__(
        self, what: str, *, why: str = "", mend: str = "", retry_after_s: float = 1.0
    ) -> None:
        """As the base; ``retry_after_s`` is the earliest sensible time to try again, in seconds."""
        super().__init__(what, why=why, mend=mend)
        self.retry_after_s = retry_after_s


class RemoteFault(AtollError):
    """A peer misbehaved or did not answer."""


class Malformed(RemoteFault):
    """Bytes from outside do not decode."""


class Unreachable(RemoteFault):
    """A peer could not be reached or did not answer in time."""

    def __init__(self, what: str, *, why: str = "", mend: str = "", cause: str = "") -> None:
        """As the base; ``cause`` is one of ``agent.site.causes``, where it is known."""
        super().__init__(what, why=why, mend=mend)
        self.cause = cause


class OutcomeUnknown(AtollError):
    """A change may or may not have taken effect."""


class Corruption(AtollError):
    """Stored bytes are not what their digest or schema says."""


class StoreFault(AtollError):
    """The disk of this site did not take or give what was asked."""

    def __init__(self, what: str, *, why: str = "", mend: str = "", is_fatal: bool = False) -> None:
        """As the base; ``is_fatal``: what is on disk is no longer known, so the process must end."""
        super().__init__(what, why=why, mend=mend)
        self.is_fatal = is_fatal
