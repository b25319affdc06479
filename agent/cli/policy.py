"""``atoll policy test``: what an operator expects of residency labels, tried without a cluster."""

import argparse
from dataclasses import asdict

from agent.catalog.written import read as read_catalog
from agent.cli.output import print_json, print_table
from agent.cli.text_files import read_text
from agent.foundation.errors import UsageError
from agent.routing.policy_cases import outcome, read
from agent.wire.documents import Policy

FILE_BYTES_MAX = 4 << 20
"""As much as the most cases take; refuses a device given by mistake."""


def test(asked: argparse.Namespace) -> int:
    """Print what the filter says of each case; 1 if any is not as expected."""
    file = read(read_text(asked.cases, FILE_BYTES_MAX), str(asked.cases))
    policies = []
    if asked.policies is not None:
        bodies = read_catalog(read_text(asked.policies, FILE_BYTES_MAX), str(asked.policies))
        policies = [body for body in bodies.values() if isinstance(body, Policy)]
        if not policies:
            raise UsageError(
                f"{asked.policies} has no policies", mend="write [policy.NAME] with answer_in"
            )
    outcomes = [outcome(name, case, file.groups, policies) for name, case in file.case.items()]
    if not outcomes:
        raise UsageError(
            f"{asked.cases} has no cases", mend='write [case."NAME"] with site and expect'
        )
    wrong = [one for one in outcomes if not one.is_as_expected]
    if asked.json:
        print_json({"cases": [asdict(one) for one in outcomes], "wrong": len(wrong)})
        return 1 if wrong else 0
    print_table(
        ("case", "expected", "answer", "rule"),
        [(one.name, one.expected, one.answer, one.rule) for one in wrong],
        nothing=f"All {len(outcomes)} cases are as expected.",
    )
    if wrong:
        print(f"{len(wrong)} of {len(outcomes)} cases are not as expected.")
    return 1 if wrong else 0
