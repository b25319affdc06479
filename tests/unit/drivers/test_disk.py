import errno
import os
from pathlib import Path

import pytest

from agent.drivers.disk import fault_of, files_in, synced


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


def test_a_file_that_goes_while_a_folder_is_read_is_left_out(tmp_path: Path) -> None:
    """It ended a site: a fetch looked through the blobs while a job forgot one of them."""
    for number in range(5):
        (tmp_path / f"{number}").write_bytes(b"x" * number)
    (tmp_path / "folder").mkdir()
    found = {}
    for name, facts in files_in(tmp_path):
        found[name] = facts.st_size
        for other in tmp_path.iterdir():
            if other.name != name and other.is_file():
                other.unlink()
    ((name, size),) = found.items()
    assert size == int(name)
    assert list(files_in(tmp_path / "absent")) == []
