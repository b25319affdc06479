"""The catalog as a file: read strictly, written so that reading gives the same again."""

import pytest

from agent.catalog.written import changes, read, write
from agent.foundation.errors import ConfigError
from agent.foundation.ids import Digest, JobId, SiteId
from agent.wire.documents import Deployment, Job, ModelVersion, Policy, Rollout, Scope, key_of

MODEL = ModelVersion("m", "1.2", Digest(b"\7" * 32), 10, "onnx", ("DE", "FR"), 'a "file"\x7f')
DEPLOYMENT = Deployment(
    "m", "1.2", ("a", "b"), ("edge",), ("north",), is_active=False, replicas=2,
    jurisdictions=("DE",), accelerator="gpu", memory_bytes_min=1 << 30, power_free_w_min=12.5,
)  # fmt: skip
JOB = Job(
    JobId("j-12345678"), "mnist-2nn", "d", (SiteId(b"s" * 32),), 1, 1, 8, 0.1, 1, 1, 60.0, "", ()
)


IN_WAVES = Deployment(
    "m",
    "1",
    (),
    rollout=Rollout(
        "",
        0,
        (1.5, 50.0),
        9.0,
        0.5,
        10.0,
        2.0,
        100,
        is_paused=True,
        accuracy_min=0.9,
        holdout="digits",
    ),
)
POLICY = Policy(
    "policy",
    "p",
    ("EU", "CH"),
    ("scan-*",),
    ("DE",),
    ("camera",),
    needs_label=True,
    is_active=False,
)
SCOPE = Scope("scope", "shop", (b"t" * 32,), ("infer:m", "read"), 99, ("DE",), is_active=False)
ASKED = ModelVersion("m", "1", Digest(bytes(32)), 1, "onnx", (), "", '{"inputs":[],"outputs":[]}')


@pytest.mark.parametrize(
    "body",
    [
        MODEL, DEPLOYMENT, Deployment("m", "1", ()), IN_WAVES, ASKED,
        Deployment("m.x", "1", (), rollout=Rollout()), POLICY, SCOPE,
        ModelVersion("m", "1", Digest(bytes(32)), 1, "onnx", (), is_retired=True),
    ],
)  # fmt: skip
def test_what_is_written_is_read_as_the_same(body: ModelVersion | Deployment) -> None:
    assert read(write(body), "x") == {key_of(body): body}


def test_defaults_are_not_written() -> None:
    assert write(Deployment("m", "1", ())) == '[deployment.m]\nversion = "1"\n'


def test_models_come_before_the_deployments_that_name_them() -> None:
    text = write(DEPLOYMENT) + write(MODEL)
    assert [key.kind for key in read(text, "x")] == ["model", "deployment"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[deployment.m]\nversion = 1", "must be text in quotes"),
        ('[deployment.M]\nversion = "1"', "must be lower-case letters"),
        ('[deployment.m]\nversion = "1"\nreplicas = -1', "must be from 0 to 10000"),
        ('[deployment.m]\nversion = "1"\ntiers = ["moon"]', "'edge' or 'regional' or 'core'"),
        ('[deployment.m]\nversion = "1"\njurisdictions = ["de"]', "must be a jurisdiction"),
        ('[model."m"]\nbytes = 1', 'such as "magika:2"'),
        ('[policy.p]\nmodels = ["M"]', "must be a name"),
        ('[scope.s]\ntokens = ["x"]\nscopes = ["read"]', "64 hexadecimal digits"),
        ('[scope.s]\ntokens = []\nscopes = ["all"]', "it must be infer:MODEL"),
        ('[policy.p]\nanswer_in = ["eu"]', "must be a jurisdiction"),
        ('[model."m:1"]\nbytes = 1\ndigest = "xyz"', "64 hexadecimal digits"),
        ('[model."m:1"]\nbytes = 1\ndigest = "00"\ngolden = "{"', "golden is not JSON"),
        ('[model."m:1"]\nbytes = 1\ndigest = "00"\ngolden = "[]"', "golden must be"),
        (
            '[deployment.m]\nversion = "1"\n[deployment.m.rollout]\nwaves = [50, 5]',
            "each must be larger than the one before",
        ),
        (
            '[deployment.m]\nversion = "1"\n[deployment.m.rollout]\nobserve_s = 0',
            "must be from 1 to 604800",
        ),
        ("[job.j]\nrounds = 1", "unknown section 'job'"),
        ("[deployment.m", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_the_line(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read(text, "x.toml")


def test_a_change_is_told_by_what_differs() -> None:
    assert changes(DEPLOYMENT, DEPLOYMENT) == []
    assert changes(None, Deployment("m", "1", ())) == ['version: - -> "1"']
    assert changes(Deployment("m", "1", ("a",)), Deployment("m", "2", (), replicas=1)) == [
        'version: "1" -> "2"', "replicas: - -> 1", 'sites: ["a"] -> -',
    ]  # fmt: skip
    assert changes(Deployment("m", "1", ()), IN_WAVES)[0].startswith(
        "rollout: - -> {waves = [1.5, 50.0], observe_s = 9.0,"
    )


def test_a_job_can_be_shown() -> None:
    text = write(JOB)
    assert 'recipe = "mnist-2nn"' in text
    assert f'committee = ["{(b"s" * 32).hex()}"]' in text
