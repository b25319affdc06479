"""``python tls_secrets.py FOLDER run ...``: the agent, whose TLS secrets a test writes down.

Nothing of the product can be told to do this: the class ``ssl.SSLContext`` is changed in the processes
of this one site before the agent is imported. ``--lie KEY`` (hex) also lets the site claim, each time
it says what it serves, that it serves the model with this key, and faster than anybody.
"""

import ssl
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

SECRETS = "secrets"
"""The file in the folder, in the format of NSS key logs, which Wireshark reads too."""


def write_down(path: str) -> None:
    """From now on each TLS context of this process appends its secrets to ``path``."""
    made = ssl.SSLContext.__new__

    def noted(cls: type[ssl.SSLContext], *given: Any, **named: Any) -> ssl.SSLContext:
        context = made(cls, *given, **named)
        context.keylog_filename = path
        return context

    ssl.SSLContext.__new__ = staticmethod(noted)  # type: ignore[assignment]


def note_children_too(folder: Path) -> None:
    """The gateway has sessions of its own: its interpreter begins with ``write_down``."""
    from agent.daemon import child  # noqa: PLC0415 - after the class is changed

    (folder / "sitecustomize.py").write_text(
        f"import sys\nsys.path.append({str(Path(__file__).parent)!r})\n"
        f"import tls_secrets\ntls_secrets.write_down({str(folder / SECRETS)!r})\n"
    )
    bare = child.bare_environment
    path = f"{folder}:{Path(__file__).parents[2]}"
    vars(child)["bare_environment"] = lambda: {**bare(), "PYTHONPATH": path}


def lie(keys: list[bytes]) -> None:
    """Claim to serve these models, whatever the site has."""
    from agent.membership import own_record  # noqa: PLC0415
    from agent.membership.events import LocalChanged  # noqa: PLC0415
    from agent.wire.records import Served  # noqa: PLC0415

    change = own_record.OwnRecord.change

    def lying(self: own_record.OwnRecord, said: LocalChanged, now: float) -> None:
        if said.serving is not None:
            claimed = [one for one in said.serving if one.key not in keys]
            claimed += [Served(key, 1) for key in keys]
            said = replace(said, serving=tuple(sorted(claimed, key=lambda one: one.key)))
        change(self, said, now)

    vars(own_record)["OwnRecord"].change = lying


def run() -> int:
    folder = Path(sys.argv.pop(1))
    folder.mkdir(exist_ok=True)
    write_down(str(folder / SECRETS))
    note_children_too(folder)
    keys = []
    while sys.argv[1] == "--lie":
        keys.append(bytes.fromhex(sys.argv[2]))
        del sys.argv[1:3]
    if keys:
        lie(keys)
    from agent.cli.main import main  # noqa: PLC0415

    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(run())
