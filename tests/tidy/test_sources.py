"""What holds for every source file; the tools in pyproject.toml judge the rest."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AGENT = sorted((ROOT / "agent").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
LINES_MAX = 600
"""STYLE 1: due for a second look at 400 lines, split by 600."""

BANNED_NAME_PARTS = {"manager", "handler", "helper", "util", "utils", "misc"}
"""STYLE 3: words that say nothing about what a thing does."""
BORROWED = {"ThreadPoolExecutor"}
"""Names that are not ours to choose."""
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")
BANNED_MODULES = {"pickle", "cPickle", "dill", "shelve", "marshal", "joblib"}
INDEX = re.compile(
    r"(?:pypi|npmjs)\.(?:org|com)|--index-url|--extra-index-url|--registry", re.IGNORECASE
)


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(), str(path)) for path in [*AGENT, *TESTS]}


def test_no_file_is_too_long() -> None:
    long = {short(path): lines for path in [*AGENT, *TESTS] if (lines := _lines(path)) > LINES_MAX}
    assert long == {}


def _lines(path: Path) -> int:
    return path.read_text().count("\n")


def test_every_module_says_what_it_is(trees: dict[Path, ast.Module]) -> None:
    assert [short(path) for path in AGENT if not ast.get_docstring(trees[path])] == []


def test_no_name_says_nothing(trees: dict[Path, ast.Module]) -> None:
    found = []
    for path in AGENT:
        if set(path.stem.split("_")) & BANNED_NAME_PARTS:
            found.append(short(path))
        for node in ast.walk(trees[path]):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                words = re.findall(r"[A-Z]?[a-z]+", node.name)
                if {
                    word.lower() for word in words
                } & BANNED_NAME_PARTS and node.name not in BORROWED:
                    found.append(f"{short(path)}:{node.lineno} {node.name}")
    assert found == []


def test_nothing_is_left_unfinished() -> None:
    found = [
        f"{short(path)}:{number}"
        for path in AGENT
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if UNFINISHED.search(line)
    ]
    assert found == []


def test_nothing_reads_pickled_data(trees: dict[Path, ast.Module]) -> None:
    found = []
    for path in AGENT:
        for node in ast.walk(trees[path]):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names = [f"{node.value.id}.{node.attr}"]
            if any(name.split(".")[0] in BANNED_MODULES or name == "torch.load" for name in names):
                found.append(f"{short(path)}:{getattr(node, 'lineno', 0)}")
    assert found == []


def test_no_shell_is_started(trees: dict[Path, ast.Module]) -> None:
    found = [
        f"{short(path)}:{node.lineno}"
        for path in AGENT
        for node in ast.walk(trees[path])
        if isinstance(node, ast.Call)
        and any(
            keyword.arg == "shell"
            and not (isinstance(keyword.value, ast.Constant) and not keyword.value.value)
            for keyword in node.keywords
        )
    ]
    assert found == []


def test_no_unit_test_sleeps(trees: dict[Path, ast.Module]) -> None:
    found = [
        f"{short(path)}:{node.lineno}"
        for path in TESTS
        if path.is_relative_to(ROOT / "tests/unit")
        for node in ast.walk(trees[path])
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "time.sleep"
    ]
    assert found == []


def test_no_file_names_a_package_index() -> None:
    looked_at = [
        *AGENT,
        ROOT / "Makefile",
        ROOT / "constraints.txt",
        ROOT / "pyproject.toml",
        *(
            path
            for folder in ("packaging", ".ci", "systemd")
            for path in (ROOT / folder).rglob("*")
        ),
    ]
    found = [short(path) for path in looked_at if path.is_file() and INDEX.search(_text(path))]
    assert found == []


def _text(path: Path) -> str:
    return path.read_text(errors="replace")


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in TESTS if path.name != "conftest.py"]
    assert sorted({name for name in names if names.count(name) > 1}) == []
