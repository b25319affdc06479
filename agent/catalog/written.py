"""The catalog as a person writes it: TOML to documents' bodies and back.

::

    [deployment.magika]
    version = "2"
    replicas = 3

    [deployment.magika.rollout]
    waves = [5, 25]
    observe_s = 300

    [model."magika:2"]
    digest = "6f3c..."
    bytes = 3145728

    [policy.scans-stay-in-the-union]
    models = ["scan-*"]
    answer_in = ["EU"]

Jobs are not written this way: each is submitted once, with an id of its own (``atoll job submit``).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import MappingProxyType
from typing import Annotated, Literal

from agent.foundation.ids import Digest
from agent.foundation.toml_reading import AtMost, Between, Each, Keys, Matches, read_toml
from agent.serving.access import SCOPE
from agent.wire.documents import (
    GOLDEN_CHARS_MAX,
    Body,
    Deployment,
    Job,
    Key,
    ModelVersion,
    Policy,
    Rollout,
    Scope,
    Unknown,
    key_of,
)
from agent.wire.limits import BLOB_BYTES_MAX

DOCUMENTS_PER_FILE_MAX = 64
"""As many as a site takes in one request (``api.admin.DOCUMENTS_PER_REQUEST_MAX``)."""
_NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
_IS_NAME = Matches(
    re.compile(_NAME), "it must be lower-case letters, digits and . _ - (at most 64)"
)
_IS_NAME_OR_EMPTY = Matches(
    re.compile(f"(?:{_NAME})?"), "it must be lower-case letters, digits and . _ - (at most 64)"
)
_IS_VERSION = Matches(
    re.compile(f"{_NAME}:{_NAME}"), 'it must be a model and its version, such as "magika:2"'
)
_IS_DIGEST = Matches(re.compile("[0-9a-f]{64}"), "it must be 64 hexadecimal digits")
_IS_PLACE = Matches(re.compile(r"[A-Z0-9][A-Z0-9-]{0,31}"), "it must be a jurisdiction, such as DE")
_IS_PATTERN = Matches(
    re.compile(r"[a-z0-9*][a-z0-9._*-]{0,63}"),
    "it must be a name (lower-case letters, digits and . _ -), in which * stands for any letters",
)

_IS_SCOPE = Matches(SCOPE, "it must be infer:MODEL, infer:* (any model), read or repository")


@dataclass(frozen=True, slots=True)
class Golden:
    """The form of a golden question; whether it fits the model, the model's worker finds out."""

    def problem(self, value: object) -> str | None:
        """What is wrong with the text, or None."""
        text = str(value)
        if len(text) > GOLDEN_CHARS_MAX:
            return f"has {len(text)} characters; at most {GOLDEN_CHARS_MAX} are allowed"
        try:
            found = json.loads(text) if text else {"inputs": [], "outputs": []}
        except ValueError as error:
            return f"is not JSON: {error}"
        if isinstance(found, dict) and all(
            isinstance(found.get(part), list) for part in ("inputs", "outputs")
        ):
            return None
        return 'must be {"inputs": [...], "outputs": [...]}, tensors as in a request and its answer'


@dataclass(frozen=True, slots=True)
class Ascending:
    """Numbers that only grow."""

    def problem(self, value: object) -> str | None:
        """None if they do."""
        assert isinstance(value, tuple)
        if list(value) == sorted(set(value)):
            return None
        return f"is {_spelled(value)}; each must be larger than the one before"


@dataclass(frozen=True, slots=True)
class ModelTable:
    """``[model."NAME:VERSION"]``."""

    digest: Annotated[str, _IS_DIGEST]
    bytes: Annotated[int, Between(1, BLOB_BYTES_MAX)]
    format: Literal["onnx"] = "onnx"
    residency: Annotated[tuple[str, ...], AtMost(64), Each(_IS_PLACE)] = ()
    source: str = ""
    golden: Annotated[str, Golden()] = ""
    is_retired: bool = False


@dataclass(frozen=True, slots=True)
class RolloutTable:
    """``[deployment.MODEL.rollout]``: ``wire.documents.Rollout`` but for what the command line finds out."""

    waves: Annotated[tuple[float, ...], AtMost(8), Each(Between(0.0, 100.0)), Ascending()] = (
        5.0, 25.0, 100.0,
    )  # fmt: skip
    observe_s: Annotated[float, Between(1.0, 604_800.0)] = 60.0
    error_rate_max: Annotated[float, Between(0.0, 1.0)] = 0.01
    p99_ms_max: Annotated[float, Between(0.0, 1e6)] = 0.0
    p99_ratio_max: Annotated[float, Between(0.0, 1000.0)] = 0.0
    requests_min: Annotated[int, Between(0, 2**31)] = 0
    is_paused: bool = False
    accuracy_min: Annotated[float, Between(0.0, 1.0)] = 0.0
    holdout: Annotated[str, _IS_NAME_OR_EMPTY] = ""


@dataclass(frozen=True, slots=True)
class DeploymentTable:
    """``[deployment.MODEL]``."""

    version: Annotated[str, _IS_NAME]
    sites: Annotated[tuple[str, ...], AtMost(1024), Each(_IS_NAME)] = ()
    tiers: Annotated[tuple[Literal["edge", "regional", "core"], ...], AtMost(3)] = ()
    regions: Annotated[tuple[str, ...], AtMost(64), Each(_IS_NAME)] = ()
    jurisdictions: Annotated[tuple[str, ...], AtMost(64), Each(_IS_PLACE)] = ()
    replicas: Annotated[int, Between(0, 10_000)] = 0
    accelerator: Literal["", "gpu"] = ""
    memory_bytes_min: Annotated[int, Between(0, 2**62)] = 0
    power_free_w_min: Annotated[float, Between(0.0, 1e6)] = 0.0
    is_active: bool = True
    rollout: RolloutTable | None = None


@dataclass(frozen=True, slots=True)
class PolicyTable:
    """``[policy.NAME]``."""

    answer_in: Annotated[tuple[str, ...], AtMost(64), Each(_IS_PLACE)] = ()
    models: Annotated[tuple[str, ...], AtMost(64), Each(_IS_PATTERN)] = ()
    origins: Annotated[tuple[str, ...], AtMost(64), Each(_IS_PLACE)] = ()
    applications: Annotated[tuple[str, ...], AtMost(64), Each(_IS_PATTERN)] = ()
    needs_label: bool = False
    is_active: bool = True


@dataclass(frozen=True, slots=True)
class ScopeTable:
    """``[scope.APPLICATION]``; ``atoll app token create --fleet`` makes the first."""

    tokens: Annotated[tuple[str, ...], AtMost(4), Each(_IS_DIGEST)]
    scopes: Annotated[tuple[str, ...], AtMost(64), Each(_IS_SCOPE)]
    expires_at_s: Annotated[int, Between(0, 2**62)] = 0
    jurisdictions: Annotated[tuple[str, ...], AtMost(64), Each(_IS_PLACE)] = ()
    is_active: bool = True


Policies = Annotated[Mapping[str, PolicyTable], AtMost(DOCUMENTS_PER_FILE_MAX), Keys(_IS_NAME)]


@dataclass(frozen=True, slots=True)
class CatalogFile:
    """The whole file."""

    model: Annotated[
        Mapping[str, ModelTable], AtMost(DOCUMENTS_PER_FILE_MAX), Keys(_IS_VERSION)
    ] = field(default_factory=lambda: MappingProxyType({}))
    deployment: Annotated[
        Mapping[str, DeploymentTable], AtMost(DOCUMENTS_PER_FILE_MAX), Keys(_IS_NAME)
    ] = field(default_factory=lambda: MappingProxyType({}))
    policy: Policies = field(default_factory=lambda: MappingProxyType({}))
    scope: Annotated[Mapping[str, ScopeTable], AtMost(DOCUMENTS_PER_FILE_MAX), Keys(_IS_NAME)] = (
        field(default_factory=lambda: MappingProxyType({}))
    )


def read(text: str, source: str) -> dict[Key, Body]:
    """The bodies that a file asks for, models first.

    Args:
        text: TOML.
        source: its name, for errors.

    Raises:
        ConfigError: with every problem and its line.
    """
    file = read_toml(CatalogFile, text, source)
    bodies: list[Body] = []
    for named, model in file.model.items():
        name, _, version = named.partition(":")
        digest = Digest(bytes.fromhex(model.digest))
        bodies.append(
            ModelVersion(
                name,
                version,
                digest,
                model.bytes,
                model.format,
                model.residency,
                model.source,
                model.golden,
                model.is_retired,
            )
        )
    for name, one in file.deployment.items():
        values = {each.name: getattr(one, each.name) for each in fields(one)}
        if one.rollout is not None:
            terms = {each.name: getattr(one.rollout, each.name) for each in fields(one.rollout)}
            values["rollout"] = Rollout(**terms)
        bodies.append(Deployment(model=name, **values))
    bodies += policies_of(file.policy)
    for name, scope in file.scope.items():
        values = {each.name: getattr(scope, each.name) for each in fields(scope)}
        values["tokens"] = tuple(map(bytes.fromhex, scope.tokens))
        bodies.append(Scope("scope", name, **values))
    return {key_of(body): body for body in bodies}


def policies_of(tables: Mapping[str, PolicyTable]) -> list[Policy]:
    """The bodies of ``[policy.NAME]`` tables."""
    return [
        Policy("policy", name, **{each.name: getattr(one, each.name) for each in fields(one)})
        for name, one in tables.items()
    ]


def write(body: Body) -> str:
    """One document as ``read`` takes it; a job as a comment says it.

    Keys that have their default are left out.
    """
    key, table = key_of(body), table_of(body)
    lines = [f"[{key.kind}.{_spelled_key(key.name)}]"]
    inner = [name for name, value in table.items() if isinstance(value, dict)]
    lines += [f"{name} = {_spelled(value)}" for name, value in table.items() if name not in inner]
    for name in inner:
        lines += ["", f"[{key.kind}.{_spelled_key(key.name)}.{name}]"]
        lines += [f"{part} = {_spelled(value)}" for part, value in _parts(table[name])]
    return "\n".join(lines) + "\n"


def table_of(body: Body) -> dict[str, object]:
    """The keys of a document's table that differ from their default; none of a kind not known here."""
    if isinstance(body, ModelVersion):
        plain = {
            "digest": body.manifest.hex(), "bytes": body.bytes, "format": body.format,
            "residency": body.residency, "source": body.source,
            "golden": body.golden, "is_retired": body.is_retired,
        }  # fmt: skip
        return _without_defaults(plain, ModelTable)
    if isinstance(body, Deployment):
        plain = {one.name: getattr(body, one.name) for one in fields(DeploymentTable)}
        if body.rollout is not None:
            terms = {one.name: getattr(body.rollout, one.name) for one in fields(RolloutTable)}
            plain["rollout"] = _without_defaults(terms, RolloutTable)
        return _without_defaults(plain, DeploymentTable)
    if isinstance(body, Policy):
        plain = {one.name: getattr(body, one.name) for one in fields(PolicyTable)}
        return _without_defaults(plain, PolicyTable)
    if isinstance(body, Scope):
        plain = {one.name: getattr(body, one.name) for one in fields(ScopeTable)}
        plain["tokens"] = tuple(one.hex() for one in body.tokens)
        return _without_defaults(plain, ScopeTable)
    if isinstance(body, Unknown):
        return {}
    assert isinstance(body, Job)
    found: dict[str, object] = {}
    for one in fields(body):
        value = getattr(body, one.name)
        if one.name == "committee":
            value = tuple(site.hex() for site in value)
        found[one.name] = value
    return found


def changes(former: Body | None, body: Body) -> list[str]:
    """What is different, a line each; empty if nothing is."""
    before = {} if former is None else table_of(former)
    after = table_of(body)
    names = [*after, *(name for name in before if name not in after)]
    return [
        f"{name}: {_shown(before.get(name))} -> {_shown(after.get(name))}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _without_defaults(plain: dict[str, object], table: type) -> dict[str, object]:
    defaults = {one.name: one.default for one in fields(table) if one.default is not MISSING}
    return {
        name: value
        for name, value in plain.items()
        if name not in defaults or value != defaults[name]
    }


def _shown(value: object) -> str:
    return "-" if value is None else _spelled(value)


def _spelled(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        inner = ", ".join(f"{name} = {_spelled(one)}" for name, one in value.items())
        return f"{{{inner}}}"
    if isinstance(value, tuple):
        return f"[{', '.join(_spelled(one) for one in value)}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)


def _parts(value: object) -> list[tuple[str, object]]:
    assert isinstance(value, dict)
    return list(value.items())


def _spelled_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)
