"""One real membership machine among scripted members."""

from random import Random
from typing import TypeVar

from mesh_of_statements import Notary, record, signed, site

from agent.foundation.ids import SiteId
from agent.foundation.machine import Woke
from agent.membership.events import (
    Heard,
    Introduced,
    SendGossip,
    SwimEffect,
    SwimEvent,
    SyncEnded,
    SyncWith,
)
from agent.membership.settings import Settings
from agent.membership.swim import Swim
from agent.wire.gossip import Ack, Gossip, Ping
from agent.wire.records import STATEMENTS, Accusation, Signed, SiteRecord

T = TypeVar("T")


class OneSite:
    """Steps the machine of site 'me'; members answer pings unless they are listed as silent."""

    settings = Settings.lan()

    def __init__(
        self,
        members: str = "abcd",
        *,
        joined: bool = True,
        strangers: str = "",
        silent: str = "",
    ) -> None:
        self.now = 100.0
        self.names = {site(name): name for name in members}
        self.silent = set(silent)
        self.mute: set[str] = set()
        """Members that answer calls over TCP, but whose datagrams do not come back."""
        self.effects: list[SwimEffect] = []
        self.notary = Notary(site("me"), tuple(site(name) for name in strangers))
        self.swim = Swim(
            record=record("me"),
            notary=self.notary,
            settings=self.settings,
            rng=Random(5),
            now=self.now,
        )
        if members:
            self.step(Introduced(tuple(signed(record(name)) for name in members)))
        if joined and members:
            self.step(SyncEnded(site(members[0]), succeeded=True))

    def step(self, event: SwimEvent) -> list[SwimEffect]:
        waiting: list[SwimEvent] = [event]
        made: list[SwimEffect] = []
        while waiting:
            effects = self.swim.step(waiting.pop(0), self.now)
            assert self.swim.wake_at() > self.now
            made += effects
            waiting += [answer for e in effects if (answer := self._answer(e)) is not None]
        self.effects += made
        return made

    def _answer(self, effect: SwimEffect) -> SwimEvent | None:
        if isinstance(effect, SyncWith):
            is_silent = self.names.get(effect.site) in self.silent
            return SyncEnded(effect.site, succeeded=not is_silent)
        if not isinstance(effect, SendGossip) or not isinstance(effect.message, Ping):
            return None
        name = self.names.get(effect.target)
        if name is None or name in self.silent | self.mute:
            return None
        return Heard(effect.target, Ack(effect.message.number, effect.target))

    def run(self, for_s: float) -> None:
        """Let virtual time pass, waking the machine whenever it asks."""
        until = self.now + for_s
        while (at := self.swim.wake_at()) <= until:
            self.now = at
            self.step(Woke())
        self.now = until

    def hear(self, sender: str, *statements: SiteRecord | Accusation) -> list[SwimEffect]:
        return self.step(Heard(site(sender), Gossip(tuple(map(signed, statements)))))

    def state(self, name: str) -> str:
        return self.swim.members()[site(name)].state

    def made(self, kind: type[T]) -> list[T]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def told(self, target: SiteId | None = None) -> list[SiteRecord | Accusation]:
        """Statements that went out (to one member), oldest first."""
        return [
            STATEMENTS.unpack(one.body)
            for effect in self.made(SendGossip)
            if target is None or effect.target == target
            for one in effect.message.rumors
        ]


def opened(statements: tuple[Signed, ...]) -> list[SiteRecord | Accusation]:
    return [STATEMENTS.unpack(one.body) for one in statements]
