"""The commented configuration file: every key with its explanation and its default.

``render()`` is what ships as ``example.toml`` (a test compares them); ``render(values)`` is what
``atoll init`` and ``atoll join`` write, with the given keys set and the others left as comments.
"""

import json
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

from agent.config.read import parse
from agent.config.settings import DatasetPart, SiteSettings
from agent.foundation.errors import UsageError
from agent.foundation.toml_reading import keys_of

_WIDTH = 96
_PLACEHOLDERS: Mapping[str, str] = {
    "site.name": '"berlin-1"',
    "site.runtime_dir": '"/run/atoll"',
    "listen.http_certificate": '"/etc/atoll/tls/fullchain.pem"',
    "listen.http_key": '"/etc/atoll/tls/key.pem"',
    "datasets.NAME.path": '"/srv/data/mnist"',
    "hardware.profiles_dir": '"/etc/atoll/firmware_profiles"',
}
"""Examples for keys whose default is "not set"."""

_HEAD = """\
# Configuration of one Atoll site. Every key is here; a commented line shows the default.
# A changed file is read at the next start. Unknown keys are errors.
"""


def render(
    values: Mapping[str, object] | None = None,
    datasets: Mapping[str, tuple[Path, tuple[str, ...]]] | None = None,
) -> str:
    """The whole file with ``values`` (``"listen.http_port": 8100``) set.

    Args:
        values: dotted key to value; str, Path, int, float, bool, or a list of str.
        datasets: dataset name to (folder, names of the jobs that may use it).

    Raises:
        UsageError: a key that does not exist.
        ConfigError: a value that the key does not take.
    """
    given = dict(values or {})
    blocks = [_HEAD]
    hints = get_type_hints(SiteSettings)
    for entry in fields(SiteSettings):
        if entry.name == "datasets":
            blocks.append(_datasets(datasets or {}))
        else:
            blocks.append(_section(entry.name, hints[entry.name], given))
    if given:
        raise UsageError(f"no such setting: {', '.join(sorted(given))}")
    text = "\n".join(blocks)
    parse(text, "the new configuration")
    return text


def documented_keys() -> dict[str, str]:
    """Dotted key to explanation, of every setting; datasets as ``datasets.NAME.path``."""
    found: dict[str, str] = {}
    hints = get_type_hints(SiteSettings)
    for entry in fields(SiteSettings):
        is_datasets = entry.name == "datasets"
        part: type[Any] = DatasetPart if is_datasets else hints[entry.name]
        prefix = "datasets.NAME" if is_datasets else entry.name
        for name, key in keys_of(part).items():
            found[f"{prefix}.{name}"] = key.doc
    return found


def _section(name: str, part: type[Any], given: dict[str, object]) -> str:
    lines = [f"# {heading(part)}", f"[{name}]"]
    for key, declared in keys_of(part).items():
        dotted = f"{name}.{key}"
        lines += _explained(declared.doc)
        if dotted in given:
            lines.append(f"{key} = {toml_value(given.pop(dotted))}")
        else:
            lines.append(f"#{key} = {default_text(dotted, declared.entry.default)}")
    return "\n".join(lines) + "\n"


def _datasets(datasets: Mapping[str, tuple[Path, tuple[str, ...]]]) -> str:
    lines = [f"# {heading(DatasetPart)}", "#[datasets.mnist]"]
    for key, declared in keys_of(DatasetPart).items():
        lines += _explained(declared.doc)
        lines.append(f"#{key} = {default_text(f'datasets.NAME.{key}', declared.entry.default)}")
    for name, (path, jobs) in datasets.items():
        lines += [f"[datasets.{name}]", f"path = {toml_value(path)}", f"jobs = {toml_value(jobs)}"]
    return "\n".join(lines) + "\n"


def heading(part: type[Any]) -> str:
    """What a section is about: the sentence of its docstring."""
    assert part.__doc__ is not None
    sentence = part.__doc__.split(": ", 1)[1].strip()
    return f"{sentence[0].upper()}{sentence[1:]}"


def _explained(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH)]


def default_text(dotted: str, default: object) -> str:
    """The default as TOML, or an example for a key that has none."""
    if default is MISSING or default is None:
        return _PLACEHOLDERS[dotted]
    return toml_value(default)


def toml_value(value: object) -> str:
    """``value`` as TOML writes it."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str() | Path():
            # A JSON string is a TOML basic string, but for DEL (TOML 1.0, section String).
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
        case list() | tuple():
            return "[" + ", ".join(toml_value(one) for one in value) + "]"
        case _:
            raise UsageError(f"a setting cannot be {type(value).__name__}")


if __name__ == "__main__":
    sys.stdout.write(render())
