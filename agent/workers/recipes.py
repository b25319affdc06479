"""The shipped recipes: a model, its loss, local training and evaluation.

``mnist-2nn`` is the multilayer perceptron of McMahan et al. 2017 section 3 (two hidden layers of
200, 199,210 parameters at 28 x 28); ``mnist-cnn`` a small convolutional network. Both take images
of any side as rows of side * side values from 0 to 1 and give ten logits.

Equal seed, round, site and thread count give equal parameters, bit for bit, on one kind of machine:
what is random comes from one generator of its own. The optimiser is plain SGD as two lines here:
``torch.optim`` would load PyTorch's compiler on its first step (1.5 s, 130 MiB).
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from agent.foundation.errors import Malformed, UsageError
from agent.training.contract import AttemptFailed
from agent.wire.documents import Job
from agent.workers.parameters import Parameters, check_like, largest
from agent.workers.recipes_idx import CLASSES, SIDE_MAX, Dataset

DEFAULT_SIDE = 28
"""MNIST's, for first parameters drawn at a site that has no data of its own."""
HIDDEN = 200
POOLED = 4
"""Two poolings halve an image twice."""
BLOCK_BATCHES = 64
"""Scaled to floats together: 6 MiB at batch 32 of 28 x 28, not a whole dataset."""
EVALUATION_BATCH = 2048
FULL = 255.0


def _two_layers(side: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(side * side, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, CLASSES),
    )


def _convolutions(side: int) -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, side, side)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (side // POOLED) ** 2, 64),
        nn.ReLU(),
        nn.Linear(64, CLASSES),
    )


RECIPES: Mapping[str, Callable[[int], nn.Module]] = MappingProxyType(
    {"mnist-2nn": _two_layers, "mnist-cnn": _convolutions}
)


def label_of(recipe: str, side: int) -> str:
    """What parameters of this recipe at this image side are labelled with."""
    return f"{recipe}/{side}"


def side_of(label: str, recipe: str) -> int:
    """The image side of parameters labelled ``label``, which must be of ``recipe``.

    Raises:
        Malformed: they are of another recipe, or the label is none.
    """
    found, _, side = label.rpartition("/")
    if found != recipe or not side.isascii() or not side.isdigit():
        raise Malformed(f"parameters of {label!r}", why=f"the job's recipe is {recipe!r}")
    return int(side)


def build(recipe: str, side: int, seed: int) -> nn.Module:
    """A model with first parameters drawn from ``seed``.

    Raises:
        UsageError: no such recipe, or it cannot take images of this side.
    """
    if recipe not in RECIPES:
        raise UsageError(
            f"no recipe {recipe!r}", why=f"shipped are {', '.join(RECIPES)}", mend="correct the job"
        )
    if not POOLED <= side <= SIDE_MAX:
        raise UsageError(
            f"{recipe!r} cannot take images of side {side}", why=f"{POOLED} to {SIDE_MAX} work"
        )
    torch.manual_seed(_seed("initial", seed))
    return RECIPES[recipe](side)


def taken_from(model: nn.Module, label: str) -> Parameters:
    """The model's parameters, copied."""
    return Parameters(
        label, {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}
    )


def put_into(model: nn.Module, parameters: Parameters, label: str) -> None:
    """Give the model these parameters.

    Raises:
        Malformed: they are not like the model's, or not finite.
    """
    check_like(parameters, taken_from(model, label))
    largest(parameters)
    with torch.no_grad():
        for name, place in model.state_dict().items():
            place.copy_(torch.from_numpy(parameters.tensors[name].copy()))


def train_locally(
    model: nn.Module,
    dataset: Dataset,
    job: Job,
    round_: int,
    site_seed: int,
    correction: Sequence[Tensor] = (),
) -> tuple[float, int]:
    """Run the job's local epochs of SGD on the model in place; the seconds it took, and how many steps.

    ``correction``: added to each step's gradients, in the order of the model's parameters.

    Raises:
        AttemptFailed: the loss or a parameter is no longer finite.

    Source: McMahan et al. 2017, Algorithm 1, ClientUpdate.
    """
    began = time.monotonic()
    generator = torch.Generator().manual_seed(_seed("round", job.seed, round_, site_seed))
    images, labels = torch.from_numpy(dataset.images), torch.from_numpy(dataset.labels)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train()
    steps = 0
    for _ in range(job.epochs):
        order = torch.randperm(len(images), generator=generator)
        for block in torch.split(order, BLOCK_BATCHES * job.batch):
            inputs = torch.split(images[block].float().div_(FULL), job.batch)
            wanted = torch.split(labels[block].long(), job.batch)
            for batch, answers in zip(inputs, wanted, strict=True):
                _descend(model, trained, batch, answers, job.learning_rate, correction)
            steps += len(inputs)
    if not all(bool(torch.isfinite(parameter).all()) for parameter in trained):
        raise AttemptFailed(
            "training diverged", why="parameters are not finite", mend="lower learning_rate"
        )
    return time.monotonic() - began, steps


def evaluate(model: nn.Module, dataset: Dataset) -> tuple[float, float]:
    """Accuracy (0 to 1) and mean cross-entropy loss on the hold-out.

    Raises:
        AttemptFailed: the loss is not finite: the parameters are useless here.
    """
    images = torch.split(torch.from_numpy(dataset.holdout_images), EVALUATION_BATCH)
    labels = torch.split(torch.from_numpy(dataset.holdout_labels), EVALUATION_BATCH)
    right, loss = 0, 0.0
    model.eval()
    with torch.inference_mode():
        for some, answers in zip(images, labels, strict=True):
            logits, wanted = model(some.float().div_(FULL)), answers.long()
            right += int((logits.argmax(1) == wanted).sum())
            loss += float(nn.functional.cross_entropy(logits, wanted, reduction="sum"))
    if not math.isfinite(loss):
        raise AttemptFailed("the round's parameters give no finite loss on the hold-out")
    count = len(dataset.holdout_labels)
    return right / count, loss / count


def _descend(
    model: nn.Module, trained: list[nn.Parameter], batch: Tensor, answers: Tensor, rate: float,
    correction: Sequence[Tensor],
) -> None:  # fmt: skip
    loss = nn.functional.cross_entropy(model(batch), answers)
    gradients = torch.autograd.grad(loss, trained)
    with torch.no_grad():
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.add_(gradient, alpha=-rate)
        for parameter, more in zip(trained, correction, strict=False):  # none without a correction
            parameter.add_(more, alpha=-rate)


def _seed(*parts: object) -> int:
    """63 bits from all of ``parts``: sites, rounds and jobs share no stream."""
    text = ":".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
