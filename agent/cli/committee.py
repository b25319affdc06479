"""A job's committee, and whether this site's updates were counted."""

import argparse
from typing import Any

from agent.cli.output import clean, print_json, print_table
from agent.cli.site_files import admin_client

CHANGE_TIMEOUT_S = 30.0
"""The agent waits 20 s for a change to be decided."""
DIGEST_CHARS_SHOWN = 16


def audit(asked: argparse.Namespace) -> int:
    """Print what became of each update of this site; 1 if a round is not what it says it is."""
    answer = admin_client(asked).get(f"/1/jobs/{asked.job}/audit")
    if asked.json:
        print_json(answer)
        return 1 if answer["findings"] else 0
    if answer.get("region"):
        print(f"rounds of this site's region ({clean(answer['region'])}):")
    print_table(
        ("round", "update", "samples", "standing", "among", "epoch", "aggregator"),
        [
            (
                row["round"], row["update"][:DIGEST_CHARS_SHOWN], row["samples"], _standing(row),
                row["among"] or "-", row["epoch"] or "-", row["aggregator"],
            )
            for row in answer["rows"]
        ],
        nothing="This site has made no update for the job.",
    )  # fmt: skip
    for finding in answer["findings"]:
        print(f"WRONG: {clean(finding)}")
    print(f"{answer['checked']} of {answer['round']} committed rounds checked, each from its bytes")
    return 1 if answer["findings"] else 0


def _standing(row: dict[str, Any]) -> str:
    counted_in = row.get("counted_in") or row["round"]
    late = f" in round {counted_in}" if counted_in != row["round"] else ""
    whole = row.get("whole_round")
    if row.get("counted_in") and whole != row["counted_in"]:
        late += f", in round {whole} of the whole job" if whole else ", by the region alone so far"
    return f"{row['standing']}{late}"


def replace(asked: argparse.Namespace) -> int:
    """Replace a member of the committee that does not come back."""
    body = {"gone": asked.gone, "by": asked.by or ""}
    answer = admin_client(asked).post(
        f"/1/jobs/{asked.job}/replace", body, timeout_s=CHANGE_TIMEOUT_S
    )
    _print(asked, answer, "the committee is now")
    return 0


def recover(asked: argparse.Namespace) -> int:
    """Take the register over after the loss of a majority of the committee."""
    answer = admin_client(asked).post(
        f"/1/jobs/{asked.job}/recover", {"members": asked.members}, timeout_s=CHANGE_TIMEOUT_S
    )
    word = f"taken over at round {answer['round']}, epoch {answer['epoch']}; the committee is now"
    _print(asked, answer, word)
    return 0


def _print(asked: argparse.Namespace, answer: dict[str, object], word: str) -> None:
    if asked.json:
        print_json(answer)
    else:
        print(f"{word} {clean(answer['committee'])}")
