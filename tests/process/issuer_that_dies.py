"""``python issuer_that_dies.py STEP run ...``: the agent, killed at one step of the first join."""

import os
import signal
import sys
from typing import Any, NoReturn

from agent.cli.main import main
from agent.daemon import joining
from agent.identity.tokens import TokenRow, certify

STEPS = ("before-the-row", "after-the-row", "after-the-certificate")


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def arm(step: str) -> None:
    save = joining.Joining._save

    async def save_or_die(self: joining.Joining, row: TokenRow) -> None:
        if row.state == "spent" and step == "before-the-row":
            die()
        await save(self, row)
        if row.state == "spent" and step == "after-the-row":
            die()

    def certify_and_die(*given: Any) -> NoReturn:
        certify(*given)
        die()

    joining.Joining._save = save_or_die  # type: ignore[method-assign]
    if step == "after-the-certificate":
        vars(joining)["certify"] = certify_and_die


if __name__ == "__main__":
    arm(sys.argv.pop(1))
    sys.exit(main(sys.argv[1:]))
