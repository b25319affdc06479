"""MNIST dealt out to the sites, unevenly, as in federated life: plain IDX files, one folder a site.

Each label's images are dealt by proportions drawn from a Dirichlet distribution (Hsu et al. 2019,
"Measuring the effects of non-identical data distribution", section 3): with 0.3, most sites see
much of a few digits and little of the others.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import agent
from agent.cli.demo.cluster import Failed

ALPHA = 0.3
SAMPLES_MIN = 200
"""A site with fewer would show nothing; the draw is repeated."""
LABELS = 10
IMAGES_MAGIC, LABELS_MAGIC = 0x803, 0x801
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte",
         "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Images:
    """Some labelled images, 8 bits a pixel."""

    side: int
    pixels: bytes
    labels: bytes

    def __len__(self) -> int:
        """How many."""
        return len(self.labels)

    def image(self, index: int) -> bytes:
        """The pixels of one image, row by row."""
        size = self.side * self.side
        return self.pixels[index * size : (index + 1) * size]


def find(asked: Path | None) -> Path:
    """The folder with the four files.

    Raises:
        Failed: it is nowhere.
    """
    places = [asked] if asked else [
        Path.cwd() / ".cache" / "mnist", Path(agent.__file__).parents[1] / ".cache" / "mnist",
    ]  # fmt: skip
    for place in places:
        if all((place / name).is_file() for name in FILES):
            return place
    where = " or ".join(str(place) for place in places)
    raise Failed(
        f"no MNIST in {where}; fetch it with `python packaging/fetch_mnist.py` (make demo does), or "
        "name a folder with the four IDX files: --data FOLDER"
    )


def read(folder: Path, prefix: str) -> Images:
    """The images and labels of ``prefix`` (train or t10k).

    Raises:
        Failed: the files are not IDX files that belong together.
    """
    images = (folder / f"{prefix}-images-idx3-ubyte").read_bytes()
    labels = (folder / f"{prefix}-labels-idx1-ubyte").read_bytes()
    magic, count, rows, columns = struct.unpack_from(">IIII", images)
    label_magic, label_count = struct.unpack_from(">II", labels)
    is_sound = (
        (magic, label_magic) == (IMAGES_MAGIC, LABELS_MAGIC)
        and count == label_count == len(labels) - 8
        and rows == columns
        and len(images) == 16 + count * rows * columns
    )
    if not is_sound:
        raise Failed(f"the {prefix} files in {folder} are damaged: fetch them again")
    return Images(rows, images[16:], labels[8:])


def split(images: Images, sites: int, seed: int) -> list[list[int]]:
    """Indices for each site, Dirichlet by label, each image at exactly one site."""
    rng = Random(seed)  # noqa: S311 - a reproducible draw
    for _ in range(1000):
        shares: list[list[int]] = [[] for _ in range(sites)]
        for label in range(LABELS):
            indices = [index for index, mark in enumerate(images.labels) if mark == label]
            rng.shuffle(indices)
            weights = [rng.gammavariate(ALPHA, 1.0) for _ in range(sites)]
            total = sum(weights)
            start = 0
            for site, weight in enumerate(weights):
                count = round(weight / total * len(indices))
                stop = len(indices) if site == sites - 1 else min(start + count, len(indices))
                shares[site] += indices[start:stop]
                start = stop
        if min(map(len, shares)) >= SAMPLES_MIN:
            for share in shares:
                rng.shuffle(share)
            return shares
    raise Failed("the data set is too small for five sites")


def write(folder: Path, images: Images, indices: Sequence[int]) -> None:
    """One site's share as IDX files that only its owner can read."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    header = struct.pack(">IIII", IMAGES_MAGIC, len(indices), images.side, images.side)
    pixels = b"".join(images.image(index) for index in indices)
    (folder / FILES[0]).write_bytes(header + pixels)
    marks = bytes(images.labels[index] for index in indices)
    (folder / FILES[1]).write_bytes(struct.pack(">II", LABELS_MAGIC, len(indices)) + marks)


def most_common(images: Images, indices: Sequence[int], count: int = 3) -> str:
    """The labels a share has most of, for a person."""
    tally = [0] * LABELS
    for index in indices:
        tally[images.labels[index]] += 1
    order = sorted(range(LABELS), key=lambda label: -tally[label])[:count]
    return ", ".join(f"{label} ({100 * tally[label] // max(len(indices), 1)}%)" for label in order)
