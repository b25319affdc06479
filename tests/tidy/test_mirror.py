"""Unit tests mirror the sources: a person finds the test of a module without searching.

``tests/unit/<package>/test_<module>.py`` tests ``agent/<package>/<module>.py``; a longer name
(``test_<module>_<aspect>.py``) tests an aspect of it. Since test files need names of their own, the
package may stand before the module (``test_identity_admin.py``).
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "tests/unit"
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
AGENT = sorted((ROOT / "agent").rglob("*.py"))

UNTESTED: frozenset[str] = frozenset()
"""Modules that no test imports or starts, not even through another module of theirs. Only shrinks."""


def test_every_unit_test_belongs_to_a_module() -> None:
    strays = []
    for path in sorted(UNIT.rglob("test_*.py")):
        package = ROOT / "agent" / path.parent.relative_to(UNIT)
        stem = path.stem.removeprefix("test_").removeprefix(f"{package.name}_")
        words = stem.split("_")
        names = {"_".join(words[:length]) for length in range(1, len(words) + 1)}
        if not any(
            (package / f"{name}.py").is_file() or (package / name).is_dir() for name in names
        ):
            strays.append(str(path.relative_to(ROOT)))
    assert strays == [], "name these test files after the module that they test"


def test_every_module_is_used_by_a_test() -> None:
    wanted = {_dotted(path) for path in AGENT if path.name not in {"__init__.py", "__main__.py"}}
    imports = {_dotted(path): _imports(path) for path in AGENT}
    reached: set[str] = set()
    waiting = [name for path in TESTS for name in _imports(path)]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting.extend(imports.get(name, ()))
            waiting.extend(imports.get(f"{name}.__main__", ()))
    assert wanted - reached == UNTESTED


def _dotted(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def _imports(path: Path) -> set[str]:
    """Modules that a file imports or names: ``agent.workers.model``, ``join:join`` of the CLI."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            name, _, function = node.value.partition(":")
            if name.startswith("agent."):
                found.add(name)
            elif function.isidentifier() and name.isidentifier():
                found.add(f"agent.cli.{name}")
    return found
