"""The outer optimizers against a dumb reading of their formulas, and that a successor goes on exactly."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from stored_parameters import stored

from agent.foundation.errors import Malformed
from agent.training.contract import Outer
from agent.workers.mean import BLOCK_VALUES
from agent.workers.outer import Stepper, state_outline
from agent.workers.parameters import VALUE_MAX, Floats, Parameters, Stored, make, parse, read, write

RULES = ("momentum", "nesterov", "adam", "yogi")
SIZE = 70_000
"""More than a block."""


def outer(rule: str, **changes: float) -> Outer:
    numbers = {"rate": 0.1, "momentum": 0.9, "second": 0.99, "floor": 1e-3} | changes
    return Outer(rule, **numbers)  # type: ignore[arg-type]


def parameters(values: Floats) -> Stored:
    return stored(Parameters("r/8", {"w": values.reshape(-1, 10)}))


def stepped(
    rule: Outer, base: Floats, mean: Floats, before: Stored | None
) -> tuple[Floats, Stored]:
    like = parameters(base)
    descriptor = os.memfd_create("after")
    after = make(state_outline(rule, like, has_controls=False), descriptor)
    os.close(descriptor)
    made = mean.copy()
    stepper = Stepper(rule, like, before, after)
    for start in range(0, made.size, BLOCK_VALUES):
        at = slice(start, min(start + BLOCK_VALUES, made.size))
        stepper.step(at, made[at])
    return made, after


def means(rounds: int) -> list[Floats]:
    random = np.random.default_rng(3)
    return [random.standard_normal(SIZE).astype(np.float32) for _ in range(rounds)]


def by_the_book(rule: Outer, first: Floats, steps: list[Floats]) -> Floats:
    """In float64, from the formulas. ``steps``: what each round's mean has added."""
    x, m = first.astype(np.float64), np.zeros(SIZE)
    v = np.full(SIZE, rule.floor**2)
    for d in steps:
        if rule.rule in ("momentum", "nesterov"):
            m = rule.momentum * m + d
            x = x + rule.rate * (d + rule.momentum * m if rule.rule == "nesterov" else m)
            continue
        m = rule.momentum * m + (1 - rule.momentum) * d
        sign = np.sign(v - d.astype(np.float64) ** 2)
        grown = rule.second * v + (1 - rule.second) * d.astype(np.float64) ** 2
        v = v - (1 - rule.second) * d**2.0 * sign if rule.rule == "yogi" else grown
        x = x + rule.rate * m / (np.sqrt(v) + rule.floor)
    return x.astype(np.float32)


@pytest.mark.parametrize("name", RULES)
def test_five_rounds_are_as_the_formulas_say(name: str) -> None:
    rule, steps = outer(name), means(5)
    base = first = means(6)[5]
    before: Stored | None = None
    for step in steps:
        base, before = stepped(rule, base, base + step, before)
    assert np.allclose(base, by_the_book(rule, first, steps), atol=2e-5)


@pytest.mark.parametrize("is_nesterov", [False, True])
def test_the_momenta_are_those_of_pytorch(*, is_nesterov: bool) -> None:
    rule, steps = outer("nesterov" if is_nesterov else "momentum"), means(4)
    base = first = means(5)[4]
    before: Stored | None = None
    weight = torch.nn.Parameter(torch.from_numpy(first.copy()))
    sgd = torch.optim.SGD([weight], lr=0.1, momentum=0.9, nesterov=is_nesterov)
    for step in steps:
        weight.grad = -torch.from_numpy(step.copy())
        sgd.step()
        base, before = stepped(rule, base, base + step, before)
    assert np.allclose(base, weight.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_a_successor_that_reads_what_was_left_makes_the_same_bytes(
    name: str, tmp_path: Path
) -> None:
    rule, steps = outer(name), means(2)
    first, left = stepped(rule, steps[0] * 0, steps[0], None)
    with (tmp_path / "left").open("wb") as file:
        write(left, file)
    with (tmp_path / "left").open("rb") as file:
        taken_up = read(file.fileno())
    here, _ = stepped(rule, first, first + steps[1], left)
    there, after = stepped(rule, first, first + steps[1], taken_up)
    assert here.tobytes() == there.tobytes()
    anew, _ = stepped(rule, first, first + steps[1], None)
    assert anew.tobytes() != here.tobytes(), "what was left matters"
    assert set(after.tensors) == set(left.tensors)


def test_a_file_that_is_made_is_written_through_its_tensors(tmp_path: Path) -> None:
    outline = state_outline(
        outer("adam"), parameters(np.zeros(SIZE, np.float32)), has_controls=False
    )
    descriptor = os.open(tmp_path / "made", os.O_RDWR | os.O_CREAT)
    made = make(outline, descriptor)
    os.close(descriptor)
    made.tensors["second/w"].reshape(-1)[7] = 3.5
    found = parse((tmp_path / "made").read_bytes())
    assert found.outline() == outline.outline()
    assert found.label == "r/8"
    assert found.tensors["second/w"].reshape(-1)[7] == 3.5
    assert not found.tensors["momentum/w"].any()


def test_what_another_optimizer_left_or_is_no_number_is_refused() -> None:
    base = np.zeros(SIZE, np.float32)
    _, left = stepped(outer("momentum"), base, base + 1, None)
    with pytest.raises(Malformed, match="'second/w' is missing"):
        stepped(outer("adam"), base, base, left)
    left.tensors["momentum/w"].reshape(-1)[5] = np.inf
    with pytest.raises(Malformed, match="not finite"):
        stepped(outer("momentum"), base, base, left)
    with pytest.raises(Malformed, match="'w' is not finite"):
        stepped(outer("momentum", rate=100.0), base, base + np.float32(3e38), None)


@pytest.mark.parametrize("name", ["adam", "yogi"])
def test_no_round_leaves_what_none_can_go_on_from(name: str) -> None:
    """A step of 1e20 is finite, its square is not; with the largest values that a mean can have it is."""
    base = np.zeros(SIZE, np.float32)
    wild = base.copy()
    wild[7] = 1e20
    with pytest.raises(Malformed, match="not finite"):
        stepped(outer(name), base, wild, None)
    wild[7] = VALUE_MAX
    made, after = stepped(outer(name), base, wild, None)
    assert np.isfinite(after.values).all()
    stepped(outer(name), made, made + np.float32(0.01), after)
