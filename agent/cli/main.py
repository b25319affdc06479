"""The entry point: parse, run one verb, and say what went wrong in terms of what to do.

Exit codes: 0 done; 1 it failed (what, why and how to mend it are on stderr); 2 wrong usage;
3 ``atoll diff`` found differences; 130 interrupted.
"""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import cast

from agent.cli import parser
from agent.foundation.errors import AtollError

Verb = Callable[[argparse.Namespace], int]

INTERRUPTED = 130
"""128 + SIGINT, as shells expect."""


def verb_of(run: str) -> Verb:
    """The function of ``module:function`` in ``agent.cli``."""
    module, _, function = run.partition(":")
    return cast("Verb", getattr(importlib.import_module(f"agent.cli.{module}"), function))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (``sys.argv`` if None) and return its exit code."""
    asked = parser.parse(sys.argv[1:] if arguments is None else arguments)
    try:
        code = verb_of(asked.run)(asked)
        sys.stdout.flush()
    except AtollError as error:
        report(error, as_json=asked.json)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has seen enough; keep the interpreter from flushing into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def report(error: AtollError, *, as_json: bool) -> None:
    """Print an error for a person, or for a script, on stderr."""
    if as_json:
        print(
            json.dumps({"error": {"what": error.what, "why": error.why, "mend": error.mend}}),
            file=sys.stderr,
        )
        return
    print(f"atoll: {error.what}", file=sys.stderr)
    if error.why:
        lines = error.why.replace("\n", "\n       ")  # each below the first
        print(f"  why: {lines}", file=sys.stderr)
    if error.mend:
        print(f"  try: {error.mend}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
