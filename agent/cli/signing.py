"""An operator's decisions become documents: stamped by the site, signed here, given to the site.

The admin key never leaves this process: the agent sees signed documents only.
"""

import argparse
import base64
import binascii
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.catalog.clock import DIFFERS_MS
from agent.cli.client import AdminClient
from agent.cli.site_files import settings
from agent.drivers import keystore
from agent.foundation.errors import ConfigError, Malformed, Refused
from agent.identity.admin import check_names, sign_packed
from agent.identity.certificates import Identity
from agent.wire.documents import BODIES, Body, Stamp
from agent.wire.schema import pack


def load_signer(asked: argparse.Namespace) -> Ed25519PrivateKey:
    """The admin key: of ``--admin-key``, else this site's own.

    Raises:
        ConfigError: there is none, or it cannot be used.
    """
    given: Path | None = asked.admin_key
    path = settings(asked).identity_dir / "admin.key" if given is None else given
    if not path.exists():
        raise ConfigError(
            f"there is no admin key at {path}",
            why="changes to the catalog are signed by an admin, whose key is where the cluster was founded",
            mend="run this there, or bring the key and name it with --admin-key FILE",
        )
    return keystore.load_admin(path)


def own_identity(identity_dir: Path) -> Identity:
    """Who this site is, as its certificate says; the folder is checked as a whole.

    Raises:
        ConfigError: it is missing or damaged.
    """
    return keystore.load(identity_dir).identity


def unpack_body(text: str) -> Body:
    """The body of a document to sign, from the agent's base64.

    Raises:
        Malformed: it is none.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("the agent's draft is not base64") from None
    return cast("Body", BODIES.unpack(data))


def submit_bodies(
    client: AdminClient, signer: Ed25519PrivateKey, bodies: Sequence[Body]
) -> list[dict[str, Any]]:
    """Sign each body with a stamp that is newer than all the site knows, and submit them together.

    Raises:
        Malformed: a name in one of them is none.
        Refused: the site did not take one of them, or its clock is wrong.
    """
    for body in bodies:
        check_names(body)
    return submit_packed(client, signer, [BODIES.pack(body) for body in bodies])


def submit_packed(
    client: AdminClient, signer: Ed25519PrivateKey, bodies: Sequence[bytes]
) -> list[dict[str, Any]]:
    """As ``submit_bodies``, of bodies as their bytes: what this version does not know of them stays."""
    stamp = client.get("/1/stamp")
    _warn_of_clock(float(stamp.get("clock_ahead_s", 0.0)), int(stamp.get("clocks_heard", 0)))
    first = Stamp(int(stamp["wall_ms"]), int(stamp["count"]))
    documents = [
        sign_packed(signer, Stamp(first.wall_ms, first.count + index), body)
        for index, body in enumerate(bodies)
    ]
    answer = client.post(
        "/1/documents",
        {"documents": [base64.b64encode(pack(document)).decode() for document in documents]},
    )
    results: list[dict[str, Any]] = answer["results"]
    for row in results:
        if not row["accepted"]:
            raise Refused(
                f"the site did not take {row['kind']} {row['name']}",
                why=row["reason"],
                mend="somebody may have changed it at the same time: look, then try again",
            )
    return results


def _warn_of_clock(ahead_s: float, heard: int) -> None:
    """The change is made: the bound is far; but whoever signs should know before it is met."""
    if abs(ahead_s) * 1000 < DIFFERS_MS:
        return
    where = "ahead of" if ahead_s > 0 else "behind"
    print(
        f"atoll: this site's clock is {abs(ahead_s):.0f} s {where} those of {heard} members; "
        "beyond 300 s nothing can be signed here",
        file=sys.stderr,
    )
