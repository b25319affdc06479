"""What an operator may do to a committee, and what is refused with its reason."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.daemon import committee_desk
from agent.daemon.committee_desk import CommitteeDesk
from agent.daemon.driver import Driver
from agent.drivers.audit_log import AuditLog
from agent.drivers.blobs import BlobStore
from agent.drivers.store import Store
from agent.federation.events import RecoverRegister, ReplaceMember
from agent.foundation.errors import Busy, NotFound, Refused
from agent.foundation.ids import JobId, SiteId
from agent.site.events import JobEnded

NAMES = ("berlin", "paris", "rome", "oslo")
BERLIN, PARIS, ROME, OSLO = SITES = tuple(SiteId(name.encode().ljust(32, b".")) for name in NAMES)
JOB = "digits-00000001"


@dataclass
class Machine:
    """In the place of ``JobMachine``."""

    job: Any = field(default_factory=lambda: SimpleNamespace(id=JobId(JOB)))
    committee: tuple[SiteId, ...] = (BERLIN, PARIS, ROME)
    value: Any = field(
        default_factory=lambda: SimpleNamespace(recoveries=0, round=4, epoch=2, parameters=None)
    )
    swaps: Any = field(default_factory=lambda: SimpleNamespace(trouble="paris does not answer"))
    is_over: bool = False

    @property
    def holders(self) -> tuple[SiteId, ...]:
        return self.committee


class Roll:
    """In the place of ``identity.registry.Roll``."""

    def __init__(self) -> None:
        self.gone: set[SiteId] = set()

    def __iter__(self) -> Any:
        return iter(site for site in SITES[1:] if site not in self.gone)

    def is_gone(self, site: SiteId) -> bool:
        return site in self.gone

    def named(self, name: str) -> tuple[SiteId, ...]:
        return (
            tuple(site for site in self if site == SITES[NAMES.index(name)])
            if name in NAMES
            else ()
        )

    def known(self, site: SiteId) -> Any:
        return SimpleNamespace(claims=SimpleNamespace(name=NAMES[SITES.index(site)]))


class Site:
    """The daemon around the desk; ``react`` is what a change comes to."""

    def __init__(self, react: Callable[[Machine, object], None] = lambda *_: None) -> None:
        self.machine, self.roll, self.react = Machine(), Roll(), react
        self.order: list[object] = []
        self.outlaws: set[SiteId] = set()

        workshop = SimpleNamespace(
            find=self._find, region=lambda _job: None, may_hold=lambda _job, site: site not in self.outlaws,
            substitute=lambda _job, members, _gone: next(
                (site for site in SITES if site not in members), None
            ),
        )  # fmt: skip
        site = SimpleNamespace(
            me=BERLIN, roll=self.roll, workshop=workshop,
            identity=SimpleNamespace(site=BERLIN, claims=SimpleNamespace(name="berlin")),
        )  # fmt: skip
        driver = SimpleNamespace(site=site, feed=self.feed, watch=lambda _: lambda: None)
        self.desk = CommitteeDesk(
            cast("Driver", driver), cast("Store", None), cast("BlobStore", None),
            cast("AuditLog", SimpleNamespace(write=self.write)),
        )  # fmt: skip

    def _find(self, job: str) -> Machine:
        if job != JOB:
            raise NotFound(f"no job {job!r}")
        return self.machine

    def feed(self, event: JobEnded) -> None:
        self.order.append(event.event)
        self.react(self.machine, event.event)

    async def write(self, decision: object, _at_ms: int) -> None:
        self.order.append(decision)


def replaced(machine: Machine, event: object) -> None:
    assert isinstance(event, ReplaceMember)
    machine.committee = tuple(event.by if s == event.gone else s for s in machine.committee)


def recovered(machine: Machine, event: object) -> None:
    assert isinstance(event, RecoverRegister)
    machine.committee = event.members
    machine.value = SimpleNamespace(recoveries=1, round=4, epoch=2 + 2**20)


async def test_a_member_is_replaced_by_the_best_site_or_by_the_one_that_is_named() -> None:
    site = Site(replaced)
    assert await site.desk.replace(JOB, "rome", "") == {"committee": ["berlin", "paris", "oslo"]}
    assert site.order == [ReplaceMember(ROME, OSLO)]
    assert await site.desk.replace(JOB, "oslo", "rome") == {
        "committee": ["berlin", "paris", "rome"]
    }
    again = await site.desk.replace(JOB, "oslo", "rome")
    assert again == {"committee": ["berlin", "paris", "rome"]}, "a repeated command does nothing"
    assert len(site.order) == 2


@pytest.mark.parametrize(
    ("gone", "by", "reason"),
    [("oslo", "", "not in the committee"), ("rome", "paris", "in the committee already")],
)
async def test_a_replacement_that_makes_no_sense_is_refused(
    gone: str, by: str, reason: str
) -> None:
    with pytest.raises(Refused, match=reason):
        await Site().desk.replace(JOB, gone, by)


async def test_residency_and_unknown_names_are_told() -> None:
    site = Site()
    site.outlaws = {OSLO}
    with pytest.raises(Refused, match="does not allow its parameters at oslo"):
        await site.desk.replace(JOB, "rome", "oslo")
    with pytest.raises(NotFound, match="no site 'kiel'"):
        await site.desk.replace(JOB, "rome", "kiel")
    with pytest.raises(NotFound, match="no job"):
        await site.desk.replace("other-00000001", "rome", "")


async def test_a_job_that_is_over_or_unclaimed_changes_no_more() -> None:
    site = Site()
    site.machine.value = None
    with pytest.raises(Refused, match="nobody has claimed"):
        await site.desk.replace(JOB, "rome", "oslo")
    site.machine.is_over = True
    with pytest.raises(Refused, match="is over"):
        await site.desk.recover(JOB, ("berlin",))


async def test_a_change_that_takes_long_is_busy_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(committee_desk, "PATIENCE_S", 0.0)
    with pytest.raises(Busy) as caught:
        await Site().desk.replace(JOB, "rome", "oslo")
    assert caught.value.why == "paris does not answer"


async def test_a_recovery_is_audited_before_it_happens() -> None:
    site = Site(recovered)
    site.roll.gone = {PARIS, ROME}
    answer = await site.desk.recover(JOB, ("berlin",))
    assert answer == {"committee": ["berlin"], "epoch": 2 + 2**20, "round": 4}
    decision, event = site.order
    assert event == RecoverRegister((BERLIN,), (BERLIN,))
    assert "lost: paris, rome" in decision.detail  # type: ignore[attr-defined]


async def test_a_recovery_needs_a_lost_majority_all_of_it_revoked() -> None:
    site = Site()
    with pytest.raises(Refused, match="paris, rome of the committee could come back"):
        await site.desk.recover(JOB, ("berlin",))
    site.roll.gone = {ROME}
    with pytest.raises(Refused, match="paris of the committee could come back"):
        await site.desk.recover(JOB, ("berlin",))
    with pytest.raises(Refused, match="a majority of the committee is left"):
        await site.desk.recover(JOB, ("berlin", "paris", "oslo"))
    with pytest.raises(Refused, match="named twice"):
        await site.desk.recover(JOB, ("berlin", "oslo", "oslo"))
    assert site.order == []
