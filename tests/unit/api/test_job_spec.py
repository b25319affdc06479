"""``agent.api.job_spec``: what an operator may ask for."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.api.job_spec import JobSpec, parse_job_spec
from agent.foundation.errors import UsageError
from agent.foundation.ids import JobId, SiteId
from agent.wire.documents import BODIES, Job, Region

LEAST = {"name": "digits", "recipe": "mnist-2nn", "dataset": "mnist"}
FULL: dict[str, Any] = {
    **LEAST,
    "rounds": 3,
    "epochs": 2,
    "batch": 10,
    "learning_rate": 0.1,
    "sites_min": 2,
    "publish": "digits",
    "residency": ["DE", "FR"],
    "deploy_sites": ["berlin"],
    "seed": 7,
    "round_timeout_s": 60,
}


def test_three_keys_are_enough() -> None:
    spec = parse_job_spec(LEAST)
    assert (spec.name, spec.recipe, spec.dataset) == ("digits", "mnist-2nn", "mnist")
    assert spec.residency == ()


def test_every_key_reaches_the_job() -> None:
    spec = parse_job_spec(FULL)
    job = spec.job(identifier=JobId("digits-00000001"), committee=(SiteId(bytes(32)),))
    assert (job.rounds, job.epochs, job.batch, job.learning_rate) == (3, 2, 10, 0.1)
    assert (job.sites_min, job.publish, job.seed, job.round_timeout_s) == (2, "digits", 7, 60.0)
    assert (job.residency, job.deploy_sites) == (("DE", "FR"), ("berlin",))
    assert BODIES.unpack(BODIES.pack(job)) == job


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        parse_job_spec({"recipe": "x", "learning_rat": 0.1, "rounds": 0, "residency": "DE"})
    why = caught.value.why
    assert "did you mean 'learning_rate'?" in why
    assert "rounds = 0: expected a whole number from 1 to 10000" in why
    assert "residency" in why
    assert "name is missing" in why
    assert "dataset is missing" in why
    assert "5 problems" in caught.value.what


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "../etc"),
        ("name", "a" * 49),
        ("rounds", True),
        ("rounds", 2.5),
        ("learning_rate", float("nan")),
        ("learning_rate", True),
        ("seed", -1),
        ("seed", 2**63),
        ("publish", "A"),
        ("deploy_sites", ["a b"]),
        ("deploy_sites", ["x"] * 1025),
        ("residency", ["D E"]),
        ("round_timeout_s", 0.5),
    ],
)
def test_a_wrong_value_is_refused(key: str, value: object) -> None:
    with pytest.raises(UsageError, match="1 problem"):
        parse_job_spec({**LEAST, key: value})


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.text(), max_size=3)
)


@given(st.dictionaries(st.one_of(st.sampled_from(sorted(FULL)), st.text(max_size=9)), VALUES))
def test_whatever_is_asked_becomes_a_valid_job_or_a_usage_error(raw: dict[str, Any]) -> None:
    try:
        spec: JobSpec = parse_job_spec({**LEAST, **raw})
    except UsageError:
        return
    job = spec.job(identifier=JobId("j-00000000"), committee=())
    assert isinstance(BODIES.unpack(BODIES.pack(job)), Job)


def test_an_outer_optimizer_reaches_the_job_and_idle_numbers_are_told() -> None:
    asked = {**LEAST, "outer": "adam", "outer_rate": 0.03, "staleness_max": 2}
    job = parse_job_spec(asked).job(identifier=JobId("d-00000001"), committee=())
    assert (job.outer, job.outer_rate, job.outer_momentum, job.staleness_max) == (
        "adam",
        0.03,
        0.9,
        2,
    )
    assert BODIES.unpack(BODIES.pack(job)) == job
    with pytest.raises(UsageError) as caught:
        parse_job_spec({**LEAST, "outer_rate": 0.03})
    assert "outer_rate does nothing without outer" in caught.value.why
    with pytest.raises(UsageError, match="problem") as caught:
        parse_job_spec({**LEAST, "outer": "adamw"})
    assert "one of none, momentum, nesterov, adam, yogi" in caught.value.why


def test_regions_reach_the_job_and_what_needs_them_is_told() -> None:
    asked = {
        **LEAST, "regions": ["north", "*"], "region_sites_min": 2, "local_rounds_max": 3,
        "staleness_max": 4,
    }  # fmt: skip
    spec = parse_job_spec(asked)
    assert spec.regions == ("north", "*")
    north = Region("north", (SiteId(bytes(32)),))
    job = spec.job(identifier=JobId("d-00000001"), committee=(), regions=(north,))
    assert (job.regions, job.region_sites_min, job.local_rounds_max) == ((north,), 2, 3)
    assert BODIES.unpack(BODIES.pack(job)) == job
    with pytest.raises(UsageError) as caught:
        parse_job_spec({**LEAST, "local_rounds_max": 3, "regions": []})
    assert "local_rounds_max does nothing without regions" in caught.value.why
    assert "local_rounds_max needs staleness_max" in caught.value.why
    with pytest.raises(UsageError) as caught:
        parse_job_spec({**LEAST, "regions": ["../etc"]})
    assert "a list of at most 64 regions" in caught.value.why


def test_ranges_reach_the_job() -> None:
    job = parse_job_spec({**LEAST, "ranges": 4}).job(identifier=JobId("d-00000001"), committee=())
    assert job.ranges == 4
    assert BODIES.unpack(BODIES.pack(job)) == job
    with pytest.raises(UsageError) as caught:
        parse_job_spec({**LEAST, "ranges": 0})
    assert "a whole number from 1 to 64" in caught.value.why
