import os
from pathlib import Path

import pytest

from agent.drivers.holdout import Holdout


def test_the_operator_says_which_models_the_data_may_judge(tmp_path: Path) -> None:
    assert Holdout(tmp_path, ("*",)).may_judge("digits")
    assert not Holdout(tmp_path, ()).may_judge("digits")
    assert not Holdout(tmp_path, ("scan-*",)).may_judge("digits")


@pytest.mark.parametrize("prefix", ["t10k", "test"])
def test_images_and_labels_are_opened_for_reading_only(tmp_path: Path, prefix: str) -> None:
    for kind in ("images-idx3", "labels-idx1"):
        (tmp_path / f"{prefix}-{kind}-ubyte").write_text(kind)
    for descriptor, kind in zip(
        Holdout(tmp_path, ("*",)).opened(), ("images-idx3", "labels-idx1"), strict=True
    ):
        assert os.read(descriptor, 99).decode() == kind
        with pytest.raises(OSError, match="Bad file"):
            os.write(descriptor, b"x")
        os.close(descriptor)


def test_a_folder_without_a_whole_pair_is_none_and_leaves_nothing_open(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="t10k-images"):
        Holdout(tmp_path, ("*",)).opened()
    (tmp_path / "t10k-images-idx3-ubyte").write_text("x")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - its length counts
    with pytest.raises(OSError, match="t10k-labels"):
        Holdout(tmp_path, ("*",)).opened()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "t10k-images-idx3-ubyte").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic"):
        Holdout(tmp_path, ("*",)).opened()
