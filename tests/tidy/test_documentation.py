"""The documentation names everything an operator can set or type."""

import re
import subprocess
import sys
from pathlib import Path

from agent.config.example import documented_keys
from agent.config.reference import reference

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_page_of_settings_is_what_the_settings_say() -> None:
    assert (ROOT / "docs/configuration.md").read_text() == reference(), (
        "run: python -m agent.config.reference > docs/configuration.md"
    )


def test_every_setting_stands_in_its_section() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    sections = dict(re.findall(r"^## \[([\w.]+)\]\n(.*?)(?=^## )", page, re.MULTILINE | re.DOTALL))
    for key in documented_keys():
        section, _, name = key.rpartition(".")
        assert f"| `{name}` |" in sections[section], key


def test_the_page_of_commands_is_what_can_be_typed() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "packaging/commands_page.py"],
        capture_output=True,
        check=True,
        text=True,
    )
    assert (ROOT / "docs/commands.md").read_text() == done.stdout, (
        "run: python packaging/commands_page.py > docs/commands.md"
    )
    assert done.stdout.count("\n## atoll ") > 15


def test_links_between_pages_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        if page.is_file()
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []
