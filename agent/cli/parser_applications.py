"""What can be typed about applications: the tokens by which they use this site."""

import argparse
import re

from agent.cli.parser import Verbs, labels, name, seconds
from agent.cli.parser import _admin_key as admin_key
from agent.cli.parser import _group as group
from agent.cli.parser import _verb as verb

_SCOPE = re.compile(r"read|repository|infer:(?:\*|[a-z0-9][a-z0-9._-]{0,63})")
"""The authority is ``agent.serving.access``; a test compares the two."""


def scope(text: str) -> str:
    """What a token is for."""
    if not _SCOPE.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a scope: infer:MODEL, infer:* (any model), read or repository"
        )
    return text


def add(verbs: Verbs) -> None:
    """The verbs of this module."""
    applications = group(verbs, "app", "Applications that use this site.")
    tokens = group(
        applications, "token", "Tokens of applications, valid at this site or at every one."
    )
    create = verb(
        tokens, "create", "applications:create", "Make a token for one application, shown once."
    )
    create.add_argument("name", type=name, metavar="NAME", help="of the application")
    create.add_argument(
        "--scope",
        type=scope,
        action="append",
        required=True,
        dest="scopes",
        metavar="SCOPE",
        help="infer:MODEL, infer:* (any model), read (descriptions, index, statistics, metrics) or"
        " repository (load and unload); repeat for several",
    )
    create.add_argument(
        "--expires",
        type=seconds,
        default=0.0,
        metavar="TIME",
        help="valid for this long, such as 90d (default: until revoked)",
    )
    create.add_argument(
        "--fleet", action="store_true", help="valid at every site, signed with an admin key"
    )
    create.add_argument(
        "--jurisdictions", type=labels, default=(), metavar="DE,FR",
        help="with --fleet: only at sites of these jurisdictions",
    )  # fmt: skip
    admin_key(create)
    verb(tokens, "list", "applications:list_tokens", "Every token: its scopes and dates.")
    revoke = verb(
        tokens, "revoke", "applications:revoke", "Refuse an application's token from now on."
    )
    revoke.add_argument("name", type=name, metavar="NAME")
    revoke.add_argument("--fleet", action="store_true", help="the one that is valid at every site")
    admin_key(revoke)
