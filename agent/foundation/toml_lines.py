"""Where a key stands in a TOML file: tomllib tells values, an operator wants lines.

A scan by lines, not a second parser: it follows headers, ``key =`` lines, multi-line strings and
brackets of files that tomllib has accepted. A key that it cannot place (inside an inline table) gets
the line of the nearest table around it.
"""

import re
import tomllib
from collections.abc import Mapping

Path = tuple[str, ...]

_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
_DOTTED = rf"{_PART}(?:\s*\.\s*{_PART})*"
_HEADER = re.compile(rf"\s*\[\[?\s*({_DOTTED})\s*\]\]?")
_KEY = re.compile(rf"\s*({_DOTTED})\s*=")
_SKIP = re.compile(  # what may hide a bracket: strings and comments
    r'"""(?:[^\\]|\\.)*?"""|' + r"'''.*?'''|" + r'"(?:[^"\\\n]|\\.)*"|' + r"'[^'\n]*'|#[^\n]*",
    re.DOTALL,
)


def line_of(lines: Mapping[Path, int], path: Path) -> int | None:
    """The line of ``path``, or of the nearest table around it; None if not even that is known."""
    for length in range(len(path), 0, -1):
        found = lines.get(path[:length])
        if found is not None:
            return found
    return None


def positions(text: str) -> dict[Path, int]:
    """The line (from 1) of every header and key that stands at the start of a line."""
    inside: set[int] = set()  # lines that begin in the middle of a multi-line string
    for match in _SKIP.finditer(text):
        first = text.count("\n", 0, match.start()) + 1
        inside.update(range(first + 1, first + 1 + match[0].count("\n")))
    # Strings and comments become blanks of the same number of lines, so that only real brackets
    # count; keys are read from the original line, since they may be quoted.
    blank = _SKIP.sub(lambda match: "\n" * match[0].count("\n"), text)
    lines: dict[Path, int] = {}
    table: Path = ()
    depth = 0
    pairs = zip(blank.split("\n"), text.split("\n"), strict=True)
    for number, (plain, line) in enumerate(pairs, start=1):
        if depth == 0 and number not in inside:
            header, key = _HEADER.match(line), _KEY.match(line)
            if header:
                table = _parts(header[1])
                lines.setdefault(table, number)
                continue
            if key:
                lines.setdefault(table + _parts(key[1]), number)
        depth += sum(map(plain.count, "[{")) - sum(map(plain.count, "]}"))
    return lines


def _parts(dotted: str) -> Path:
    """The parts of a dotted key, unquoted by tomllib itself."""
    node: object = tomllib.loads(f"{dotted} = 0")
    parts: list[str] = []
    while isinstance(node, dict):
        name, node = next(iter(node.items()))
        parts.append(name)
    return tuple(parts)
