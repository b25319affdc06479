import subprocess
import sys

LOADED = """
import sys
from agent.drivers.sqlite_library import Database, Migrations

print(*sorted({"numpy", "pandas", "click", "dateutil", "dateutil.parser"} & set(sys.modules)))
database = Database(memory=True, execute_plugins=False)
database["sites"].insert({"name": "hamburg", "at": 1.5}, pk="name")
print(*(row["name"] for row in database["sites"].rows))
import dateutil.parser, click
print(dateutil.parser.parse("2026-05-01").day, click.Group.__module__)
"""


def test_what_sqlite_utils_imports_for_others_is_not_loaded_nor_in_the_way_of_others() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED], check=True, capture_output=True, text=True, timeout=30
    )
    assert done.stdout.splitlines() == ["", "hamburg", "1 click.core"]
