"""``atoll app token``: let applications use this site, and no longer."""

import argparse
import sys
from datetime import UTC, datetime

from agent.cli.output import print_json, print_table
from agent.cli.site_files import admin_client

_UNCONFIRMED = "the gateway has not confirmed it yet (atoll status shows how it is)"


def create(asked: argparse.Namespace) -> int:
    """Print a new token, this once."""
    answer = admin_client(asked).post(
        "/1/applications/tokens",
        {"name": asked.name, "scopes": asked.scopes, "life_s": asked.expires},
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
            "It is not kept here and cannot be shown again.",
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
        ("application", "state", "scopes", "made", "ends", "revoked"),
        [
            (
                row["name"],
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
    answer = admin_client(asked).post("/1/applications/revoke", {"name": asked.name})
    if asked.json:
        print_json(answer)
    elif answer["is_in_force"]:
        print(f"revoked: the next request of {asked.name} is refused")
    else:
        print(f"revoked, for good; but {_UNCONFIRMED}")
    return 0


def _day(at: float | None) -> str | None:
    return None if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}"
