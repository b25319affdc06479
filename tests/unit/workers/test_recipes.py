from dataclasses import replace

import numpy as np
import pytest
import torch
from recipes_bench import JOB, bars

from agent.foundation.errors import Malformed, UsageError
from agent.training.contract import AttemptFailed
from agent.wire.documents import Job
from agent.workers import recipes


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def trained(job: Job = JOB, round_: int = 1, site_seed: int = 1) -> bytes:
    model = recipes.build(job.recipe, 8, job.seed)
    recipes.train_locally(model, bars(200, 1), job, round_, site_seed)
    return b"".join(t.tobytes() for t in recipes.taken_from(model, "x").tensors.values())


def test_the_2nn_has_the_papers_number_of_parameters() -> None:
    model = recipes.build("mnist-2nn", 28, 1)
    assert sum(parameter.numel() for parameter in model.parameters()) == 199_210


@pytest.mark.parametrize("recipe", recipes.RECIPES)
@pytest.mark.parametrize("side", [8, 28, 29])
def test_every_recipe_takes_any_side_and_gives_ten_logits(recipe: str, side: int) -> None:
    model = recipes.build(recipe, side, 1)
    assert model(torch.zeros(3, side * side)).shape == (3, 10)


@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_training_learns(recipe: str) -> None:
    dataset, job = bars(2000, 2), replace(JOB, recipe=recipe, epochs=8)
    model = recipes.build(recipe, dataset.side, job.seed)
    before, loss_before = recipes.evaluate(model, dataset)
    took_s, steps = recipes.train_locally(model, dataset, job, 1, 1)
    assert took_s > 0
    assert steps == job.epochs * -(-len(dataset.labels) // job.batch)
    after, loss_after = recipes.evaluate(model, dataset)
    assert before < 0.5
    assert after > 0.95
    assert loss_after < loss_before


def test_local_training_is_the_same_again_and_different_for_round_site_and_job() -> None:
    assert trained() == trained()
    others = [trained(round_=2), trained(site_seed=2), trained(replace(JOB, seed=8))]
    assert trained() not in others
    assert len(set(others)) == 3


def test_first_parameters_depend_on_the_seed_alone() -> None:
    first = recipes.taken_from(recipes.build("mnist-2nn", 8, 7), "x").tensors["0.weight"]
    again = recipes.taken_from(recipes.build("mnist-2nn", 8, 7), "x").tensors["0.weight"]
    other = recipes.taken_from(recipes.build("mnist-2nn", 8, 8), "x").tensors["0.weight"]
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_training_that_diverges_is_a_failed_attempt_with_its_mend() -> None:
    model = recipes.build("mnist-2nn", 8, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1e38)
    with pytest.raises(AttemptFailed, match="lower learning_rate"):
        recipes.train_locally(model, bars(200, 1), JOB, 1, 1)
    with pytest.raises(AttemptFailed, match="no finite loss"):
        recipes.evaluate(model, bars(200, 1))


def test_parameters_of_another_size_are_not_put_into_a_model() -> None:
    small, large = recipes.build("mnist-2nn", 8, 1), recipes.build("mnist-2nn", 28, 1)
    given = recipes.taken_from(large, recipes.label_of("mnist-2nn", 28))
    with pytest.raises(Malformed, match=r"mnist-2nn/28.*mnist-2nn/8"):
        recipes.put_into(small, given, recipes.label_of("mnist-2nn", 8))


def test_parameters_come_out_as_they_went_in() -> None:
    one, other = recipes.build("mnist-cnn", 8, 1), recipes.build("mnist-cnn", 8, 2)
    recipes.put_into(other, recipes.taken_from(one, "x"), "x")
    for name, tensor in recipes.taken_from(one, "x").tensors.items():
        assert np.array_equal(recipes.taken_from(other, "x").tensors[name], tensor)


@pytest.mark.parametrize("label", ["mnist-cnn/28", "mnist-2nn", "mnist-2nn/", "mnist-2nn/-1", "/8"])
def test_a_label_of_another_recipe_is_refused(label: str) -> None:
    assert recipes.side_of("mnist-2nn/28", "mnist-2nn") == 28
    with pytest.raises(Malformed, match="the job's recipe"):
        recipes.side_of(label, "mnist-2nn")


def test_an_unknown_recipe_and_an_impossible_side_are_told() -> None:
    with pytest.raises(UsageError, match="shipped are mnist-2nn, mnist-cnn"):
        recipes.build("resnet", 28, 1)
    with pytest.raises(UsageError, match="side 3"):
        recipes.build("mnist-cnn", 3, 1)
