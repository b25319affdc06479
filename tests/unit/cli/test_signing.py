"""``agent.cli.signing``: what is signed, and what the operator is told of the site's clock."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.cli.client import AdminClient
from agent.cli.signing import submit_packed
from agent.identity.certificates import key_id
from agent.wire.documents import BODIES, Deployment

if TYPE_CHECKING:
    from conftest import CannedSite

BODY = BODIES.pack(Deployment("m", "1", ()))


@pytest.mark.parametrize(
    ("ahead_s", "told"),
    [(0.0, ""), (59.0, ""), (61.0, "61 s ahead of those of 2 members"), (-90.0, "90 s behind")],
)
def test_whoever_signs_is_told_that_the_clock_is_wrong_before_it_matters(
    canned: "CannedSite",
    socket_path: Path,
    capsys: pytest.CaptureFixture[str],
    ahead_s: float,
    told: str,
) -> None:
    signer = Ed25519PrivateKey.generate()
    canned.admin_keys[key_id(signer.public_key())] = signer.public_key()
    canned.clock_ahead_s = ahead_s
    submit_packed(AdminClient(socket_path), signer, [BODY])
    assert canned.bodies == [Deployment("m", "1", ())]
    shown = capsys.readouterr().err
    assert told in shown
    assert bool(shown) == bool(told)
