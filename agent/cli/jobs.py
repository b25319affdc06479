"""Training jobs: submit, follow, list and look into."""

import argparse
import json
import time
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agent.cli.client import AdminClient
from agent.cli.output import clean, print_json, print_table
from agent.cli.site_files import admin_client
from agent.cli.text_files import read_text
from agent.foundation.errors import Unreachable, UsageError

SPEC_BYTES_MAX = 1 << 20
RECONNECT_S = 60.0
"""The agent may be restarting (an upgrade, a crash); the job goes on without it."""
RECONNECT_PAUSE_S = 1.0
ENDED = ("finished", "failed", "cancelled")


def submit(asked: argparse.Namespace) -> int:
    """Check the file, let the site choose id and committee, sign, submit."""
    # These import cryptography, which verbs that sign nothing need not wait for.
    from agent.api.job_spec import parse_job_spec  # noqa: PLC0415
    from agent.cli.signing import load_signer, submit_bodies, unpack_body  # noqa: PLC0415
    from agent.foundation.toml_lines import positions  # noqa: PLC0415
    from agent.wire.documents import Job  # noqa: PLC0415

    text = read_text(Path(asked.file), SPEC_BYTES_MAX)
    raw = _parsed(asked, text)
    lines = {path[0]: line for path, line in positions(text).items() if len(path) == 1}
    parse_job_spec(raw, lines)  # says all that is wrong before the agent is even asked
    signer = load_signer(asked)
    client = admin_client(asked)
    draft = client.post("/1/jobs/draft", raw)
    body = unpack_body(draft["body"])
    if not isinstance(body, Job):
        raise UsageError("the agent drafted something that is not a job")
    submit_bodies(client, signer, [body])
    if asked.json:
        print_json({"id": body.id, "committee": draft["committee"]})
    else:
        print(f"submitted {body.id} (committee of {len(body.committee)})")
    return _follow(client, body.id, as_json=asked.json) if asked.watch else 0


def watch(asked: argparse.Namespace) -> int:
    """Print a line for each change until the job has ended; 1 if it did not finish."""
    return _follow(admin_client(asked), asked.job, as_json=asked.json)


def list_jobs(asked: argparse.Namespace) -> int:
    """Print every job."""
    answer = admin_client(asked).get("/1/jobs")
    if asked.json:
        print_json(answer)
        return 0
    print_table(
        ("job", "recipe", "dataset", "state", "round", "epoch", "aggregator", "reason"),
        [
            (
                row["id"],
                row["recipe"],
                row["dataset"],
                row["state"],
                f"{row['round']}/{row['rounds']}",
                row["epoch"],
                row["aggregator"],
                row["reason"],
            )
            for row in answer["jobs"]
        ],
        nothing="No jobs; `atoll job submit` adds one.",
    )
    return 0


def show(asked: argparse.Namespace) -> int:
    """Print one job's rounds, and who was counted in each."""
    answer = admin_client(asked).get(f"/1/jobs/{asked.job}")
    if asked.json:
        print_json(answer)
        return 0
    print(
        f"{clean(answer['id'])}: {clean(answer['state'])}, round {answer['round']}/{answer['rounds']},"
        f" epoch {answer['epoch']}, aggregator {clean(answer['aggregator'])}"
        + (f" ({clean(answer['reason'])})" if answer["reason"] else "")
    )
    print(f"committee: {clean(answer['committee'])}")
    if answer.get("committee_trouble"):
        print(f"a change of the committee waits: {clean(answer['committee_trouble'])}")
    if answer.get("recoveries"):
        print(
            "TAKEN OVER by an operator after the loss of the committee's majority, times:"
            f" {answer['recoveries']}; rounds that only the lost members knew are gone"
        )
    print_table(
        (
            "round",
            "epoch",
            "aggregator",
            "counted (samples)",
            "accuracy",
            "committed",
            "parameters",
        ),
        [
            (
                row["round"],
                row["epoch"],
                row["aggregator"],
                [f"{one['name']} ({one['samples']})" for one in row["counted"]],
                "-" if row["accuracy"] is None else f"{row['accuracy']:.4f}",
                _instant(row["committed_at"]),
                row["parameters"][:12],
            )
            for row in answer["rounds_done"]
        ],
        nothing="No round has been committed yet.",
    )
    _print_participants(answer["participants"])
    if region := answer.get("region"):
        started = region["started_from"]
        from_ = "nothing yet" if started is None else f"round {started} of the whole job"
        print(
            f"region {clean(region['name'])} ({clean(region['id'])}): round {region['round']}, started from"
            f" {from_}, aggregator {clean(region['aggregator'])}, committee {clean(region['committee'])}"
            + (f"; alone for {region['alone']} rounds" if region["alone"] > 1 else "")
            + (f"; waiting for {clean(region['waiting_for'])}" if region["waiting_for"] else "")
        )
        _print_participants(region["participants"])
    return 0


def _print_participants(rows: list[dict[str, Any]]) -> None:
    print_table(
        ("participant", "state", "reason"),
        [(row["name"], row["state"], row["reason"]) for row in rows],
        nothing="No site takes part yet.",
    )


def _instant(unix_s: float | None) -> str:
    """When, for a person; a round whose time was not recorded shows a dash."""
    if unix_s is None:
        return "-"
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _parsed(asked: argparse.Namespace, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(
            f"{asked.file} is not TOML", why=str(error), mend="examples/ has jobs to begin with"
        ) from None


def _follow(client: AdminClient, job: str, *, as_json: bool) -> int:
    state = "waiting"
    for change in _changes(client, job):
        state = change["state"]
        print(json.dumps(change) if as_json else _line(change), flush=True)
        if state in ENDED:
            break
    return 0 if state == "finished" else 1


def _changes(client: AdminClient, job: str) -> Iterator[dict[str, Any]]:
    """The stream, taken up again if the agent restarts; what was said already is not repeated."""
    last: dict[str, Any] | None = None
    lost_at: float | None = None
    while True:
        try:
            for change in client.stream(f"/1/jobs/{job}/watch"):
                lost_at = None
                if change != last:
                    yield change
                last = change
        except Unreachable:
            now = time.monotonic()
            lost_at = now if lost_at is None else lost_at
            if last is None or now - lost_at > RECONNECT_S:
                raise
        else:
            if last is None or last["state"] in ENDED:
                return
            lost_at = time.monotonic() if lost_at is None else lost_at
        time.sleep(RECONNECT_PAUSE_S)  # a person waits in front of this; nothing else does


def _line(change: dict[str, Any]) -> str:
    parts = [
        f"{clean(change['id'])}  {clean(change['state'])}  round {change['round']}/{change['rounds']}"
    ]
    if change["accuracy"] is not None:
        parts.append(f"accuracy {change['accuracy']:.4f}")
    if change["loss"] is not None:
        parts.append(f"loss {change['loss']:.4f}")
    if change["participants"] is not None:
        parts.append(f"{change['participants']} updates, {change['samples']} samples")
    parts.append(f"epoch {change['epoch']} at {clean(change['aggregator'])}")
    if change["reason"]:
        parts.append(clean(change["reason"]))
    return "  ".join(parts)
