"""``atoll app token``: let applications use this site, and no longer."""

import argparse
import math
import os
import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from agent.cli.client import AdminClient
from agent.cli.output import print_json, print_table
from agent.cli.signing import load_signer, submit_bodies, unpack_body
from agent.cli.site_files import admin_client
from agent.drivers.clock import wall_s
from agent.foundation.errors import NotFound, UsageError
from agent.serving.access import SECRET_BYTES, check_scopes, mint
from agent.serving.token_book import RESERVED
from agent.wire.documents import Scope

_UNCONFIRMED = "the gateway has not confirmed it yet (atoll status shows how it is)"


def create(asked: argparse.Namespace) -> int:
    """Print a new token, this once."""
    if asked.jurisdictions and not asked.fleet:
        raise UsageError(
            "--jurisdictions is for tokens of the fleet",
            why="any other is valid at this site only",
            mend="give --fleet too",
        )
    answer = (
        _sign_new(asked)
        if asked.fleet
        else admin_client(asked).post(
            "/1/applications/tokens",
            {"name": asked.name, "scopes": asked.scopes, "life_s": asked.expires},
        )
    )
    if asked.json:
        print_json(answer)
        return 0
    print(answer["token"])
    if not answer["is_in_force"]:
        print(f"note: {_UNCONFIRMED}", file=sys.stderr)
    if sys.stdout.isatty():
        print(
            f"{asked.name} sends it with each request, as the header\n"
            "  Authorization: Bearer TOKEN\n"
            "It is not kept anywhere and cannot be shown again.",
            file=sys.stderr,
        )
    return 0


def list_tokens(asked: argparse.Namespace) -> int:
    """Print every token but the secrets, which nobody has but the applications."""
    answer = admin_client(asked).get("/1/applications/tokens")
    if asked.json:
        print_json(answer)
        return 0
    print_table(
        ("application", "valid at", "state", "scopes", "made", "ends", "revoked"),
        [
            (
                row["name"],
                "every site" if row["is_fleet"] else "this site",
                row["state"],
                row["scopes"],
                _day(row["created_at"]),
                _day(row["expires_at"]),
                _day(row["revoked_at"]),
            )
            for row in answer["tokens"]
        ],
        nothing="There is no token; `atoll app token create NAME --scope infer:MODEL` makes one.",
    )
    return 0


def revoke(asked: argparse.Namespace) -> int:
    """Refuse a token from the next request on."""
    if asked.fleet:
        return _sign_end(asked)
    answer = admin_client(asked).post("/1/applications/revoke", {"name": asked.name})
    if asked.json:
        print_json(answer)
    elif answer["is_in_force"]:
        print(f"revoked: the next request of {asked.name} is refused")
    else:
        print(f"revoked, for good; but {_UNCONFIRMED}")
    return 0


def _sign_new(asked: argparse.Namespace) -> dict[str, Any]:
    """The secret is made here and goes nowhere: the catalog has its hash."""
    signer, client = load_signer(asked), admin_client(asked)
    present = _present(client, asked.name)
    if asked.name in RESERVED:
        raise UsageError(f"{asked.name!r} is the name of requests without a token of their own")
    now = wall_s()
    if present is not None and present.is_active and not 0 < present.expires_at_s <= now:
        raise UsageError(
            f"the application {asked.name!r} has a token at every site",
            why="each has one, by whose name it is counted",
            mend=f"revoke it first: atoll app token revoke {asked.name} --fleet",
        )
    token, digest = mint(os.urandom(SECRET_BYTES))
    expires_at_s = math.ceil(now + asked.expires) if asked.expires else 0
    body = Scope(
        "scope",
        asked.name,
        (digest,),
        check_scopes(asked.scopes),
        expires_at_s,
        asked.jurisdictions,
    )
    submit_bodies(client, signer, [body])
    return {
        "token": token, "name": asked.name, "scopes": list(body.scopes), "is_fleet": True,
        "expires_at": float(expires_at_s) or None, "is_in_force": True,
    }  # fmt: skip


def _sign_end(asked: argparse.Namespace) -> int:
    signer, client = load_signer(asked), admin_client(asked)
    present = _present(client, asked.name)
    if present is None:
        raise NotFound(
            f"no application {asked.name!r} has a token at every site",
            mend="see atoll app token list; without --fleet the one of this site is revoked",
        )
    if present.is_active:
        submit_bodies(client, signer, [replace(present, is_active=False)])
    if asked.json:
        print_json({"name": asked.name, "is_fleet": True, "state": "revoked"})
    else:
        print(f"revoked: each site refuses {asked.name} as soon as it hears of it")
    return 0


def _present(client: AdminClient, name: str) -> Scope | None:
    for row in client.get("/1/documents", kind="scope", name=name)["documents"]:
        body = unpack_body(row["body"])
        if isinstance(body, Scope):
            return body
    return None


def _day(at: float | None) -> str | None:
    return None if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}"
