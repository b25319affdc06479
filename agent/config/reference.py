"""The page docs/configuration.md: every setting with its default and meaning, from the declarations.

``python -m agent.config.reference > docs/configuration.md`` writes it anew; a test compares them.
"""

import sys
from dataclasses import fields
from typing import Any, get_type_hints

from agent.config.example import default_text, heading
from agent.config.settings import DatasetPart, SiteSettings
from agent.foundation.toml_reading import Between, keys_of

_HEAD = """\
# Configuration

A site reads one TOML file when it starts: `/etc/atoll/atoll.toml`, or the file given with `--config`.
`atoll init` and `atoll join` write it. Every key has a default, so an empty file is a valid one. The file
`agent/config/example.toml` holds every key with its meaning, ready to be copied.

Reading is strict: an unknown key, a value of the wrong type or out of its range stops the start, and **all** problems
of the file are told at once, each with its line and, for a mistyped key, the nearest known one:

    atoll.toml has 2 problems;
      line 2: unknown key 'site.nme'; did you mean 'name'?
      line 6: listen.mesh_port is 70000; it must be from 1 to 65535

A changed file takes effect at the next start. Sizes are in bytes, times in seconds. The jurisdiction, region, tier and
roles of a site are not here: they are in its certificate, which an issuer of the cluster signed.
"""

_TAIL = """\
## Where things are

| what | path |
|---|---|
| keys and certificates (mode 0700) | `<state_dir>/identity` |
| database | `<state_dir>/atoll.db` |
| models, parameters, updates | `<state_dir>/blobs` |
| files of training jobs | `<state_dir>/jobs` |
| admin socket | `<runtime_dir>/agent.sock` |

## Hardware profiles

A profile is a TOML file that says how a kind of machine is recognised and how the agent treats it. The shipped ones are
in `firmware_profiles`; files in `hardware.profiles_dir` are added to them. All given conditions of `[match]` must hold;
the profile with the weightiest conditions wins (a board's own name counts more than a GPU, a GPU more than a vendor, a
vendor more than an amount of memory). Two that match equally well are an error that names both: set `hardware.profile`.
A machine that no profile describes is `generic`: it serves on the CPU.
"""


def reference() -> str:
    """The whole page."""
    blocks = [_HEAD]
    hints = get_type_hints(SiteSettings)
    for entry in fields(SiteSettings):
        is_datasets = entry.name == "datasets"
        part: type[Any] = DatasetPart if is_datasets else hints[entry.name]
        blocks.append(_section("datasets.NAME" if is_datasets else entry.name, part))
    return "\n".join([*blocks, _TAIL])


def _section(name: str, part: type[Any]) -> str:
    lines = [f"## [{name}]", "", heading(part), "", "| key | default | meaning |", "|---|---|---|"]
    for key, declared in keys_of(part).items():
        bounds = next((note for note in declared.notes if isinstance(note, Between)), None)
        told = f" From {_number(bounds.low)} to {_number(bounds.high)}." if bounds else ""
        is_unset = declared.is_required or declared.entry.default is None
        default = "" if is_unset else f"`{default_text(f'{name}.{key}', declared.entry.default)}`"
        lines.append(f"| `{key}` | {default} | {declared.doc}{told} |")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


if __name__ == "__main__":
    sys.stdout.write(reference())
