"""SCAFFOLD: each step of local training is corrected by what the site's data asks for more than all others' do.

Karimireddy et al. 2020, Algorithm 1 with option II. A site with the parameters x, its control variate c_i (what its
own data asks for) and the mean c of all sites' makes K steps of rate e, ``y = y - e (g(y) - c_i + c)``, and then
its new control variate is ``c_i - c + (x - y) / (K e)``. At first c and c_i are 0.

Two things are different here. What a site sends is its new control variate, not the change; c is the mean of
those that the round has counted, weighted as their parameters are. With every site counted in every round that is
the same; else nothing that was lost on the way (an update, a site's disk) can leave c wrong for ever. A site without
a control variate takes c for it, so that its first steps are plain SGD.

The mean c is committed with the round (``agent.workers.outer``); c_i never leaves the site but in its update.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from agent.foundation.errors import Malformed
from agent.workers.parameters import CONTROL, Parameters, check_like, largest, parse, write

KEPT = 2
"""Control variates of so many rounds: an attempt that is made again starts from the same one as before."""

Controls = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Correction:
    """What local training of one round is corrected by."""

    own: Controls
    mean: Controls

    def of(self, model: nn.Module) -> list[Tensor]:
        """What is added to each gradient, in the order of the model's parameters."""
        return [self.mean[name] - self.own[name] for name, _ in model.named_parameters()]

    def after(
        self, before: Controls, model: nn.Module, steps: int, rate: float
    ) -> dict[str, Tensor]:
        """The site's control variate after ``steps`` steps of ``rate`` from the parameters ``before``."""
        return {
            name: self.own[name] - self.mean[name] + (before[name] - now.detach()) / (steps * rate)
            for name, now in model.state_dict().items()
        }


def correction(like: Parameters, carried: Parameters | None, own: Parameters | None) -> Correction:
    """For a site that trains parameters such as ``like``.

    Args:
        like: the parameters.
        carried: what the round before has left; None in the first.
        own: the site's control variate, if it has one; of other parameters is as good as none.

    Raises:
        Malformed: what was left is of other parameters, or no number.
    """
    mean = _zeros(like) if carried is None else _controls(carried, like)
    if own is not None and own.outline() == like.outline():
        return Correction({n: torch.from_numpy(one.copy()) for n, one in own.tensors.items()}, mean)
    return Correction(mean, mean)


def with_own(parameters: Parameters, controls: Controls) -> Parameters:
    """An update: parameters, and the site's control variate."""
    found = {CONTROL + name: control.numpy() for name, control in controls.items()}
    return Parameters(parameters.label, {**parameters.tensors, **found})


def newest(folder: Path, round_: int) -> Parameters | None:
    """The site's control variate of the last round before ``round_`` that it has trained for."""
    kept = [number for number in _rounds(folder) if number < round_]
    if not kept:
        return None
    try:
        found = parse((folder / _name(max(kept))).read_bytes())
        largest(found)
    except Malformed:
        return None  # torn by a crash, or of a round that went astray: as good as lost
    return found


def keep(folder: Path, round_: int, label: str, controls: Controls) -> None:
    """Keep the site's control variate for the rounds to come.

    Those of later rounds are of before a recovery.
    """
    for number in _rounds(folder):
        if number > round_:
            (folder / _name(number)).unlink(missing_ok=True)
    unfinished = folder / f"{_name(round_)}.part"
    with unfinished.open("wb") as file:
        write(Parameters(label, {name: one.numpy() for name, one in controls.items()}), file)
    unfinished.rename(folder / _name(round_))
    for number in sorted(_rounds(folder))[:-KEPT]:
        (folder / _name(number)).unlink(missing_ok=True)


def _name(round_: int) -> str:
    return f"control-{round_}"


def _rounds(folder: Path) -> Sequence[int]:
    names = (path.name.removeprefix("control-") for path in folder.glob("control-*"))
    return [int(name) for name in names if name.isdigit()]


def _zeros(like: Parameters) -> Controls:
    return {name: torch.zeros(tensor.shape) for name, tensor in like.tensors.items()}


def _controls(carried: Parameters, like: Parameters) -> Controls:
    """The mean control variate in what a round has left, which may hold an outer optimizer's state, too."""
    found = {
        name.removeprefix(CONTROL): tensor
        for name, tensor in carried.tensors.items()
        if name.startswith(CONTROL)
    }
    return _checked(Parameters(carried.label, found), like)


def _checked(controls: Parameters, like: Parameters) -> Controls:
    check_like(controls, like)
    largest(controls)
    return {name: torch.from_numpy(one.copy()) for name, one in controls.tensors.items()}
