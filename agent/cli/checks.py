"""What a check of ``atoll doctor`` finds."""

from collections.abc import Callable
from dataclasses import dataclass

from agent.foundation.errors import AtollError


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's outcome: in order, in order with advice (``mend`` is set), or a problem."""

    check: str
    ok: bool
    evidence: str
    """What was seen, so that a person can judge it too."""
    mend: str = ""


def guarded(check: str, look: Callable[[], Finding]) -> Finding:
    """The finding of ``look``; a check that cannot be made is a problem, never a crash."""
    try:
        return look()
    except AtollError as error:
        why = f": {error.why}" if error.why else ""
        return Finding(check, ok=False, evidence=f"{error.what}{why}", mend=error.mend)
    except OSError as error:
        return Finding(
            check,
            ok=False,
            evidence=f"cannot be checked: {error}",
            mend="run `atoll doctor` as root or as the agent's user",
        )
