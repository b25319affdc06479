"""What the operator sees of a rollout, and its metric."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from agent.catalog.rollout import Part, Peer, Standing, rollout_id
from agent.daemon.rollout_desk import RolloutDesk
from agent.foundation.ids import SiteId
from agent.site.site import Site
from agent.wire.documents import Deployment, Rollout
from agent.wire.records import Gate, Stage, Trial

ME, OTHER = SiteId(b"m" * 32), SiteId(b"o" * 32)
WANTED = Deployment("m", "2", (), rollout=Rollout("1", 1, (50.0,), observe_s=5.0))
ID = rollout_id(WANTED)


@dataclass
class Known:
    """In the place of ``site.rollouts.Rollouts``."""

    parts: dict[str, Part] = field(default_factory=dict)
    peers: dict[SiteId, Peer] = field(default_factory=dict)

    def running(self) -> list[Deployment]:
        return [WANTED]

    def others(self, _: Deployment) -> dict[SiteId, Peer]:
        return self.peers

    def planned(self, _: Deployment) -> list[list[SiteId]]:
        return [[OTHER], [ME]] if self.parts else [[OTHER]]


def desk(stage: Stage | None, told: Trial | None, reason: str = "") -> RolloutDesk:
    known = Known(peers={OTHER: Peer(OTHER, "paris", "alive", told)})
    if stage is not None:
        known.parts["m"] = Part(ME, ID, "m:2", Standing(stage, reason=reason))
    claims = SimpleNamespace(claims=SimpleNamespace(name="berlin"))
    site = SimpleNamespace(holdings=SimpleNamespace(rollouts=known), identity=claims)
    return RolloutDesk(cast("Site", site))


def row(of: RolloutDesk) -> dict[str, Any]:
    (found,) = of.rollouts("m")
    return found


def test_each_wave_shows_what_its_sites_tell() -> None:
    found = row(desk(Stage.WAITING, Trial(ID, Stage.TRYING, 64, 2, 16)))
    assert found["waves"] == [
        [
            {
                "name": "paris", "presence": "alive", "stage": "trying", "requests": 64,
                "errors": 2, "p99_ms": 16, "gate": "",
            }
        ],
        [
            {
                "name": "berlin", "presence": "this site", "stage": "waiting", "requests": 0,
                "errors": 0, "p99_ms": 0, "gate": "",
            }
        ],
    ]  # fmt: skip
    assert found["terms"]["observe_s"] == 5.0
    assert (found["established"], found["is_stopped"]) == ("1", False)


def test_a_version_is_established_once_its_rollout_has_ended() -> None:
    assert row(desk(Stage.ENDED, None))["established"] == "2"
    assert row(desk(None, Trial(ID, Stage.ENDED)))["established"] == "2"
    assert row(desk(Stage.ENDED, Trial(ID, Stage.FAILED)))["established"] == "1"


def test_a_failure_is_told_with_its_gate_and_reason() -> None:
    found = row(desk(Stage.STOPPED, Trial(ID, Stage.FAILED, gate=Gate.ERRORS), "at paris ..."))
    assert found["is_stopped"]
    assert found["waves"][0][0]["gate"] == "errors"
    assert found["here"] == {
        "stage": "stopped", "reason": "at paris ...", "waiting": "", "requests": 0, "errors": 0,
        "p99_ms": 0.0,
    }  # fmt: skip


def test_a_site_that_is_not_meant_says_so_and_other_models_are_left_out() -> None:
    assert row(desk(None, None))["here"]["stage"] == "outside"
    assert desk(None, None).rollouts("another") == []


def test_the_metric_names_the_stage() -> None:
    assert (
        'atoll_rollout_stage{model="m",version="2",stage="passed"} 1'
        in desk(Stage.PASSED, None).metrics().splitlines()
    )
