"""The work of GOALS "Training", the same for Atoll and for every peer, and the same without any framework.

Real MNIST, 8 sites, label-Dirichlet 0.3 (seed 0: 3,781 to 14,597 images a site), McMahan's 2NN (784-200-200-10), FedAvg,
one local epoch a round, SGD 0.1, batches of 32, one thread a site.
"""

import struct
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SITES, ROUNDS, ALPHA, RATE, BATCH = 8, 10, 0.3, 0.1, 32
ROOT = Path(__file__).resolve().parents[1]
MNIST = ROOT / ".cache" / "mnist"
Bytes = NDArray[np.uint8]


def load(part: str) -> tuple[Bytes, Bytes]:
    """Images (n x 784) and labels of ``train`` or ``t10k``."""
    images = np.frombuffer((MNIST / f"{part}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
    labels = np.frombuffer((MNIST / f"{part}-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    return images.reshape(-1, 784), labels


def split(labels: Bytes) -> list[NDArray[np.int64]]:
    """Which images each site has."""
    rng = np.random.default_rng(0)
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(SITES)]
    for digit in range(10):
        of_digit = rng.permutation(np.where(labels == digit)[0])
        shares = rng.dirichlet([ALPHA] * SITES)
        cuts = (np.cumsum(shares)[:-1] * len(of_digit)).astype(int)
        for site, chunk in enumerate(np.split(of_digit, cuts)):
            parts[site].append(chunk)
    return [np.sort(np.concatenate(part)) for part in parts]


def write_sites(folder: Path) -> list[Path]:
    """One folder a site in the recipes' format; the hold-out is 500 images of MNIST's test set."""
    images, labels = load("train")
    test_images, test_labels = load("t10k")
    made = []
    for number, mine in enumerate(split(labels)):
        place = folder / f"data-{number}"
        place.mkdir(parents=True)
        _write(place, "train", images[mine], labels[mine])
        _write(place, "t10k", test_images[:500], test_labels[:500])
        made.append(place)
    return made


def _write(place: Path, part: str, images: Bytes, labels: Bytes) -> None:
    head = struct.pack(">4I", 0x803, len(images), 28, 28)
    (place / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
    head = struct.pack(">2I", 0x801, len(labels))
    (place / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())


# --- without a framework -------------------------------------------------------------------------
_data: dict[int, Any] = {}


def plain(workers: int = 2) -> tuple[list[float], float]:
    """Seconds of each round in ``workers`` processes, and the accuracy after the last."""
    import torch

    torch.set_num_threads(1)
    state = model().state_dict()
    took = []
    with get_context("fork").Pool(workers) as pool:
        for number in range(1, ROUNDS + 1):
            began = time.perf_counter()
            done = pool.map(local, [(site, number, state) for site in range(SITES)], 1)
            total = sum(count for _, count in done)
            state = {
                key: sum(one[key] * (count / total) for one, count in done) for key in done[0][0]
            }
            took.append(time.perf_counter() - began)
    return took, accuracy(state)


def accuracy(state: Any) -> float:
    """Of a model with these parameters on MNIST's 10,000 test images."""
    import torch

    net = model()
    net.load_state_dict(state)
    images, labels = load("t10k")
    with torch.no_grad():
        answers = net(torch.from_numpy(images.astype(np.float32) / 255.0)).argmax(1)
    return float((answers.numpy() == labels).mean())


def model() -> Any:
    """McMahan's 2NN, the same first parameters for everybody."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)
    )


def local(work: tuple[int, int, Any]) -> tuple[Any, int]:
    """One local epoch: ``work`` is site, round and parameters; the parameters after it, and of how many images."""
    import torch
    from torch.nn import functional

    site, number, state = work
    torch.set_num_threads(1)
    if site not in _data:
        images, labels = load("train")
        mine = split(labels)[site]
        _data[site] = (
            torch.from_numpy(images[mine].astype(np.float32) / 255.0),
            torch.from_numpy(labels[mine].astype(np.int64)),
        )
    images, labels = _data[site]
    net = model()
    net.load_state_dict(state)
    rate = torch.optim.SGD(net.parameters(), lr=RATE)
    order = torch.Generator().manual_seed(number * 100 + site)
    for batch in torch.randperm(len(images), generator=order).split(BATCH):
        rate.zero_grad(set_to_none=True)
        functional.cross_entropy(net(images[batch]), labels[batch]).backward()
        rate.step()
    return net.state_dict(), len(images)
