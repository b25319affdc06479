import struct
from pathlib import Path
from random import Random

import pytest

from agent.cli.demo import data
from agent.cli.demo.cluster import Failed


def images(count: int = 4000, side: int = 2) -> data.Images:
    rng = Random(1)
    labels = bytes(rng.randrange(10) for _ in range(count))
    return data.Images(side, rng.randbytes(count * side * side), labels)


def test_each_image_goes_to_exactly_one_site() -> None:
    shares = data.split(images(), 5, seed=3)
    dealt = sorted(index for share in shares for index in share)
    assert dealt == list(range(4000))
    assert min(map(len, shares)) >= data.SAMPLES_MIN


def test_the_split_is_uneven_and_reproducible() -> None:
    made = images()
    shares = data.split(made, 5, seed=3)
    assert shares == data.split(made, 5, seed=3)
    assert shares != data.split(made, 5, seed=4)
    shares_of_most_common = [
        max(sum(made.labels[i] == label for i in share) for label in range(10)) / len(share)
        for share in shares
    ]
    assert max(shares_of_most_common) > 0.2  # evenly dealt it would be 0.1


def test_a_share_is_a_whole_idx_data_set(tmp_path: Path) -> None:
    made = images(100)
    data.write(tmp_path / "site", made, [5, 7, 9])
    again = data.read(tmp_path / "site", "train")
    assert len(again) == 3
    assert again.labels == bytes([made.labels[5], made.labels[7], made.labels[9]])
    assert again.image(1) == made.image(7)
    assert (tmp_path / "site").stat().st_mode & 0o077 == 0


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    data.write(tmp_path, images(100), range(10))
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1])
    with pytest.raises(Failed, match="damaged"):
        data.read(tmp_path, "train")
    labels.write_bytes(struct.pack(">II", 1, 10) + bytes(10))
    with pytest.raises(Failed, match="damaged"):
        data.read(tmp_path, "train")


def test_missing_data_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"fetch_mnist\.py"):
        data.find(tmp_path)


def test_a_tiny_data_set_is_refused() -> None:
    with pytest.raises(Failed, match="too small"):
        data.split(images(100), 5, seed=1)


def test_the_most_common_labels_are_told() -> None:
    made = data.Images(1, bytes(4), bytes([7, 7, 7, 2]))
    assert data.most_common(made, range(4), 2) == "7 (75%), 2 (25%)"
