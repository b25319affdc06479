import errno
import os
from pathlib import Path

import pytest

from agent.drivers.disk import fault_of, synced


@pytest.mark.parametrize(
    ("number", "mend"),
    [
        (errno.ENOSPC, "free space"),
        (errno.EDQUOT, "free space"),
        (errno.EROFS, "read-only"),
        (errno.EMFILE, "LimitNOFILE"),
        (errno.EACCES, "give the state_dir"),
        (errno.EIO, "check the disk"),
    ],
)
def test_each_error_says_how_to_mend_it(number: int, mend: str) -> None:
    fault = fault_of(OSError(number, os.strerror(number)), "a blob cannot be stored")
    assert mend in fault.mend
    assert os.strerror(number) in str(fault)


def test_only_a_directory_can_be_synced(tmp_path: Path) -> None:
    synced(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        synced(tmp_path / "file")
