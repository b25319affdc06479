"""``atoll trust``: the trust log as this site knows it."""

import argparse
from typing import Any

from agent.cli.output import clean, print_json, print_table
from agent.cli.site_files import admin_client

ENTRIES_SHOWN_MAX = 20
NAMES_SHOWN_MAX = 6


def show(asked: argparse.Namespace) -> int:
    """Print height, issuers, admins, revoked keys, the fork if there is one, and the last entries."""
    answer = admin_client(asked).get("/1/trust")
    if asked.json:
        print_json(answer)
        return 0
    print(f"trust log of {answer['height']} entries, head {clean(answer['head'][:16])}")
    if answer["doubt"]:
        print(f"DOUBT     it may be older than it was: {clean(answer['doubt'])}")
    if answer["fork"] is not None:
        _fork(answer["fork"])
    print(f"admins    {clean([key[:8] for key in answer['admins']])}")
    law = clean(answer["jurisdictions"] or "any jurisdiction")
    print(f"law       {law} (digest {clean(answer['law'])})")
    for name, members in sorted(answer["groups"].items()):
        print(f"group     {clean(name)} = {clean(members)}")
    _issuers(answer["issuers"])
    print_table(
        ("refused", "name", "what", "reason"),
        [(row["id"][:8], row["name"], row["kind"], row["reason"]) for row in answer["revoked"]],
        nothing="No key is revoked.",
    )
    entries = answer["entries"][-ENTRIES_SHOWN_MAX:]
    if len(entries) < len(answer["entries"]):
        print(f"the last {len(entries)} entries (--json shows all):")
    _entries(entries)
    return 0


def _issuers(issuers: list[dict[str, Any]]) -> None:
    from agent.api.trust import day  # noqa: PLC0415 - the web framework, only when shown

    rows = []
    for row in issuers:
        names = row["certified"]
        more = [f"and {len(names) - NAMES_SHOWN_MAX} more"] if len(names) > NAMES_SHOWN_MAX else []
        shown = [*names[:NAMES_SHOWN_MAX], *more]
        rows.append((row["id"][:8], row["name"] or row["site"][:8], day(row["expires_at"]), shown))
    print_table(
        ("issuer", "kept at", "ends", "certified"),
        rows,
        nothing="There is no issuer: nobody can join or renew; `atoll issuer add` makes one.",
    )


def _fork(fork: dict[str, Any]) -> None:
    print(f"FORKED    at height {fork['height']}: nothing is added until the root key has decided.")
    print("          What any branch revokes is refused all the same.")
    for branch in fork["branches"]:
        shown = " (shown meanwhile)" if branch["is_shown"] else ""
        print(f"branch {branch['number']}{shown}, up to height {branch['height']}")
        _entries(branch["entries"][:ENTRIES_SHOWN_MAX])
    print("try       atoll trust mend --keep NUMBER --root-key FILE")


def _entries(entries: list[dict[str, Any]]) -> None:
    from agent.api.trust import day  # noqa: PLC0415 - as above

    print_table(
        ("height", "when", "signed by", "what"),
        [(row["height"], day(row["at"]), row["by"], row["text"]) for row in entries],
        nothing="No entries.",
    )
