import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("body", "code"),
    [("pass", 0), ("pytest.skip('no GPU')", 1)],
)
def test_a_skipped_test_fails_the_run(tmp_path: Path, body: str, code: int) -> None:
    (tmp_path / "test_it.py").write_text(f"import pytest\ndef test_it():\n    {body}\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.tidy.no_skips",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*command, f"--rootdir={tmp_path}", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert done.returncode == code, done.stdout.decode()
