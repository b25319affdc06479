"""``atoll doctor``: what is wrong with this machine or site, and how to mend it.

It works with the agent down, offline, before the machine is a site, and with packages missing; with
the agent up it adds what only the agent knows.
"""

import argparse

from agent.cli.checks import Finding
from agent.cli.checks_machine import machine_findings
from agent.cli.output import clean, print_json
from agent.cli.site_files import admin_client, settings
from agent.foundation.errors import AtollError, ConfigError, Unreachable


def doctor(asked: argparse.Namespace) -> int:
    """Print every finding; 0 if all is in order or only advised about, else 1."""
    findings = look(asked)
    problems = [finding for finding in findings if not finding.ok]
    if asked.json:
        print_json({"checks": [_plain(finding) for finding in findings]})
        return 1 if problems else 0
    for finding in findings:
        if asked.problems and finding.ok and not finding.mend:
            continue
        word = "ok" if finding.ok and not finding.mend else "advice" if finding.ok else "PROBLEM"
        print(f"{word:7}  {clean(finding.check)}: {clean(finding.evidence)}")
        if finding.mend:
            print(f"         try: {clean(finding.mend)}")
    advice = sum(1 for finding in findings if finding.ok and finding.mend)
    print(f"{len(findings)} checks: {len(problems)} problems, {advice} pieces of advice")
    return 1 if problems else 0


def look(asked: argparse.Namespace) -> list[Finding]:
    """All findings, each check made independently of the others."""
    findings = list(machine_findings())
    agent, answered = _agent(asked)
    try:
        found = settings(asked)
        findings.append(Finding("settings", ok=True, evidence="every key is understood"))
        from agent.cli.checks_site import site_findings  # noqa: PLC0415 - needs psutil

        findings.extend(site_findings(found, is_running=answered))
    except ConfigError as error:
        why = f": {error.why}" if error.why else ""
        findings.append(
            Finding("settings", ok=False, evidence=f"{error.what}{why}", mend=error.mend)
        )
    except ImportError as error:
        mend = "install the agent again (packaging/setup.sh)"
        findings.append(Finding("installation", ok=False, evidence=str(error), mend=mend))
    findings.extend(agent)
    return findings


def _agent(asked: argparse.Namespace) -> tuple[list[Finding], bool]:
    """What the agent says of itself, and whether it answered."""
    try:
        client = admin_client(asked)
        status = client.get("/1/status")
        checks = client.get("/1/doctor")["checks"]
    except Unreachable as error:
        # Advice, not a problem: the doctor is also for a machine that is not started yet.
        return [
            Finding("agent", ok=True, evidence=f"{error.what}: {error.why}", mend=error.mend)
        ], False
    except (AtollError, ImportError) as error:
        return [Finding("agent", ok=False, evidence=str(error), mend="")], False
    is_well = status["state"] in ("ready", "draining")
    agent = Finding(
        "agent",
        ok=is_well,
        evidence=f"{status['state']}, version {status['version']}"
        + "".join(f"; {reason}" for reason in status["reasons"]),
        mend="" if is_well else "`atoll peers --why` shows what was tried",
    )
    own = [
        Finding(row["check"], ok=row["ok"], evidence=row["evidence"], mend=row["mend"])
        for row in checks
    ]
    return [agent, *own], True


def _plain(finding: Finding) -> dict[str, object]:
    return {
        "check": finding.check,
        "ok": finding.ok,
        "evidence": finding.evidence,
        "mend": finding.mend,
    }
