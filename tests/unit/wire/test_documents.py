"""Documents of a newer version: what an older one makes of them."""

from dataclasses import dataclass

import pytest

from agent.foundation.errors import Malformed
from agent.wire.documents import BODIES, KINDS, Deployment, Key, Unknown, key_of
from agent.wire.schema import Tagged, pack


@dataclass(frozen=True)
class Rule:
    """As a newer version might have it: kind and name first."""

    kind: str
    name: str
    rules: tuple[str, ...]


@dataclass(frozen=True)
class NewerDeployment:
    """With a field more than this version knows."""

    model: str
    version: str
    sites: tuple[str, ...]
    tiers: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    is_active: bool = True
    replicas: int = 0
    jurisdictions: tuple[str, ...] = ()
    accelerator: str = ""
    memory_bytes_min: int = 0
    rollout: None = None
    power_free_w_min: float = 0.0
    colour: str = "green"


NEWER = Tagged({2: NewerDeployment, 99: Rule})


def test_a_document_of_an_unknown_kind_has_the_key_that_its_maker_gives_it() -> None:
    body = BODIES.unpack(NEWER.pack(Rule("rule", "eu-only", ("a", "b"))))
    assert body == Unknown("rule", "eu-only")
    assert key_of(body) == Key("rule", "eu-only")
    assert "rule" not in KINDS


def test_a_field_more_does_no_harm() -> None:
    packed = NEWER.pack(NewerDeployment("m", "2", ("berlin",)))
    assert BODIES.unpack(packed) == Deployment("m", "2", ("berlin",))


def test_a_newer_kind_without_kind_and_name_is_refused() -> None:
    for wrong in (Rule("rule", "x" * 65, ()), Rule("k" * 17, "x", ())):
        with pytest.raises(Malformed):
            BODIES.unpack(NEWER.pack(wrong))
    with pytest.raises(Malformed):
        BODIES.unpack(pack(Key("4", "no tag")))
