"""A new version in waves: how far it is, and a hold on it; ``apply`` and ``model push`` begin one."""

import argparse
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agent.catalog.rollout import continued, is_rollout
from agent.cli.client import AdminClient
from agent.cli.output import clean, print_json, print_table, span
from agent.cli.signing import load_signer, submit_bodies, unpack_body
from agent.cli.site_files import admin_client
from agent.foundation.errors import NotFound, UsageError
from agent.wire.documents import Body, Deployment, Key, Rollout

ATTEMPT_BITS = 53
"""Two attempts of one version never meet."""


def status(asked: argparse.Namespace) -> int:
    """Print each rollout: its waves, what each site tells, and why this site is where it is."""
    rows = admin_client(asked).get("/1/rollouts", model=asked.model or "")["rollouts"]
    if asked.model and not rows:
        raise _none_of(asked.model)
    if asked.json:
        print_json({"rollouts": rows})
        return 0
    if not rows:
        print("No new version comes in waves.")
    for row in rows:
        _tell(row)
    return 0


def pause(asked: argparse.Namespace) -> int:
    """Let no further site begin."""
    return _change(asked, is_paused=True)


def resume(asked: argparse.Namespace) -> int:
    """Go on after a pause; ``--again``: after a failure, from the first wave."""
    return _change(asked, is_paused=False)


def continue_rollouts(
    client: AdminClient, wanted: Mapping[Key, Body], present: Mapping[Key, Body]
) -> dict[Key, Body]:
    """Complete each deployment that asks for waves by the version that serves until then."""
    found = dict(wanted)
    for key, body in wanted.items():
        if isinstance(body, Deployment) and body.rollout is not None:
            former = present.get(key)
            former = former if isinstance(former, Deployment) else None
            established = _established(client, former)
            number = secrets.randbits(ATTEMPT_BITS)
            found[key] = continued(body, former, established, number)
    return found


def _established(client: AdminClient, present: Deployment | None) -> str:
    """The version that has proved itself, as the site at hand knows it."""
    if present is None or not present.is_active:
        return ""
    if not is_rollout(present):
        return present.version
    rows = client.get("/1/rollouts", model=present.model)["rollouts"]
    return str(rows[0]["established"]) if rows else present.version


def _none_of(model: str) -> NotFound:
    return NotFound(
        f"no new version of {model!r} comes in waves",
        mend=f"write [deployment.{model}.rollout] and apply it with the next version",
    )


def _change(asked: argparse.Namespace, *, is_paused: bool) -> int:
    client = admin_client(asked)
    documents = client.get("/1/documents", kind="deployment", name=asked.model)["documents"]
    bodies = [unpack_body(row["body"]) for row in documents]
    rows = client.get("/1/rollouts", model=asked.model)["rollouts"]
    if not rows or not bodies or not isinstance(bodies[0], Deployment):
        raise _none_of(asked.model)
    body, terms = bodies[0], bodies[0].rollout
    assert isinstance(terms, Rollout)
    if not is_paused and asked.again:
        terms = replace(terms, attempt=secrets.randbits(ATTEMPT_BITS))
    elif not is_paused and rows[0]["is_stopped"]:
        raise UsageError(
            f"the rollout of {asked.model}:{body.version} has failed",
            why=str(rows[0]["here"]["reason"]),
            mend="push a mended version, or try this one anew with --again",
        )
    changed = replace(body, rollout=replace(terms, is_paused=is_paused))
    if changed == body:
        word = "paused" if is_paused else "not paused"
        print(f"the rollout of {asked.model}:{body.version} is {word} already")
        return 0
    submit_bodies(client, load_signer(asked), [changed])
    if asked.json:
        print_json({"model": body.model, "version": body.version, "is_paused": is_paused})
    else:
        word = "is paused" if is_paused else "begins anew" if asked.again else "goes on"
        print(f"the rollout of {asked.model}:{body.version} {word}")
    return 0


def _tell(row: Mapping[str, Any]) -> None:
    terms, here = row["terms"], row["here"]
    paused = ", paused" if terms["is_paused"] else ""
    version, previous = clean(row["version"]), clean(row["previous"])
    print(f"{clean(row['model'])}: version {version} in place of {previous}{paused}")
    print(f"  each site observes {span(terms['observe_s'])}; gates: {_gates(terms)}")
    why = here["reason"] or here["waiting"]
    print(f"  this site: {here['stage']}{f' - {clean(why)}' if why else ''}")
    print_table(
        ("wave", "site", "state", "stage", "requests", "errors", "p99", "failed gate"),
        [
            (
                number, clean(site["name"]), site["presence"], site["stage"],
                f"{site['requests']}", f"{site['errors']}",
                f"{site['p99_ms']} ms" if site["p99_ms"] else "-", site["gate"] or "-",
            )
            for number, wave in enumerate(row["waves"], start=1)
            for site in wave
        ],
        nothing="  no site takes part",
    )  # fmt: skip


def _gates(terms: Mapping[str, Any]) -> str:
    told = ["it loads and answers its golden question", f"errors <= {terms['error_rate_max']:.2%}"]
    if terms["p99_ms_max"]:
        told.append(f"p99 <= {terms['p99_ms_max']:g} ms")
    if terms["p99_ratio_max"]:
        told.append(f"p99 <= {terms['p99_ratio_max']:g} x the previous version's")
    if terms["accuracy_min"]:
        told.append(f"accuracy >= {terms['accuracy_min']:g} on {terms['holdout']}")
    if terms["requests_min"]:
        told.append(f"{terms['requests_min']} requests in each wave")
    return ", ".join(told)
