"""Files that commands are given."""

from pathlib import Path

import pytest

from agent.cli.text_files import read_text
from agent.foundation.errors import UsageError


def test_a_file_that_is_not_there_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml cannot be read") as caught:
        read_text(tmp_path / "none.toml", 100)
    assert caught.value.why == "No such file or directory"
    assert "name a file that is there" in caught.value.mend
