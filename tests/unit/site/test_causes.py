"""Every cause that can be mended says how."""

import pytest

from agent.site.causes import GOOD, Cause, mend


@pytest.mark.parametrize("cause", Cause)
def test_every_failure_has_a_mend_and_nothing_else_has(cause: Cause) -> None:
    text = mend(cause, "192.0.2.1", 7411, 7412)
    assert bool(text) == (cause not in GOOD and cause is not Cause.WAITING)
    assert "{" not in text


def test_the_mend_names_the_ports_and_the_host() -> None:
    assert "TCP and UDP 7411 and TCP 7412" in mend(Cause.TIMED_OUT, "h", 7411, 7412)
    assert "getent hosts seed.example" in mend(Cause.UNKNOWN_NAME, "seed.example", 1, 2)
