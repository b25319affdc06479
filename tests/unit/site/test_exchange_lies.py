"""An admitted site calls and answers with well-formed nonsense: nothing breaks, nobody else suffers.

The messages are made from their own types, so a new call or field is lied about as soon as it exists.
"""

import types
from dataclasses import fields, is_dataclass
from enum import Enum
from random import Random
from typing import Annotated, Any, Literal, NewType, Union, get_args, get_origin, get_type_hints

import pytest
from sites_of_one_cluster import Node, World, a_job, deployment, model

from agent.foundation.errors import Malformed
from agent.site.events import Answer, Ask, CallEnded, CallReceived, SiteEffect
from agent.wire.documents import Document
from agent.wire.mesh import CALLS, REPLIES, Introduction, Reply
from agent.wire.records import STATEMENTS, Accusation, Passport, Signed, SiteRecord
from agent.wire.schema import AtMost, Length, Range

CALLS_MADE = 400


class Liar:
    """Makes values of any wire type: often plausible ones, signed with its own key."""

    def __init__(self, world: World, me: Node, seed: int) -> None:
        self.random, self._me, self._world = Random(seed), me, world
        self._sites = [node.site.me for node in world.nodes]
        self._documents = [world.keys.document(model("1")), world.keys.document(a_job("j-1"))]

    def call(self) -> Any:
        return self._make(self.random.choice([*CALLS._types.values()]))

    def reply(self) -> Any:
        return self._make(self.random.choice([*REPLIES._types.values()]))

    def _make(self, kind: Any, bounds: tuple[Any, ...] = ()) -> Any:  # noqa: C901, PLR0911
        random = self.random
        while isinstance(kind, NewType):
            kind = kind.__supertype__
        origin = get_origin(kind)
        if origin is Annotated:
            base, *more = get_args(kind)
            return self._make(base, tuple(more))
        if origin in (Union, types.UnionType):
            inner = next(one for one in get_args(kind) if one is not type(None))
            return None if random.random() < 0.3 else self._make(inner, bounds)
        if origin is Literal:
            return random.choice(get_args(kind))
        if origin is tuple:
            return self._tuple(get_args(kind), bounds)
        if is_dataclass(kind):
            return self._dataclass(kind)
        if kind is bool:
            return random.random() < 0.5
        if issubclass(kind, Enum):
            return random.choice(list(kind))
        if kind in (int, float):
            return self._number(kind, bounds)
        if kind is bytes:
            return self._bytes(bounds)
        assert kind is str, kind
        return random.choice(("", "j-1", "j-2", "m", "1", "x" * 40, "../..", "\x00"))

    def _tuple(self, parts: tuple[Any, ...], bounds: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(parts) == 2 and parts[1] is Ellipsis:
            exact = next((one.exact for one in bounds if isinstance(one, Length)), None)
            most = min([3, *(one.most for one in bounds if isinstance(one, AtMost))])
            count = self.random.randint(0, most) if exact is None else exact
            return tuple(self._make(parts[0]) for _ in range(count))
        return tuple(self._make(part) for part in parts)

    def _dataclass(self, kind: Any) -> Any:
        random = self.random
        if kind is Signed and random.random() < 0.8:
            return self._signed()
        if kind is Passport and random.random() < 0.9:
            return random.choice(self._world.nodes).passport
        if kind is Introduction and random.random() < 0.3:
            return Introduction(self._me.passport, self._signed())
        if kind is Document and random.random() < 0.7:
            return random.choice(self._documents)
        hints = get_type_hints(kind, include_extras=True)
        return kind(*(self._make(hints[column.name]) for column in fields(kind)))

    def _signed(self) -> Signed:
        statement = self._make(self.random.choice((SiteRecord, Accusation)))
        body = STATEMENTS.pack(statement)[:900]
        return Signed(body, self._me.private.sign(body))

    def _number(self, kind: type, bounds: tuple[Any, ...]) -> Any:
        low = next((one.low for one in bounds if isinstance(one, Range)), -(2**40))
        high = next((one.high for one in bounds if isinstance(one, Range)), 2**40)
        chosen = self.random.choice((low, high, min(high, low + 1), min(high, low + 2)))
        return kind(chosen)

    def _bytes(self, bounds: tuple[Any, ...]) -> bytes:
        exact = next((one.exact for one in bounds if isinstance(one, Length)), None)
        if exact == 32 and self.random.random() < 0.7:
            return bytes(self.random.choice(self._sites))
        most = min([64, *(one.most for one in bounds if isinstance(one, AtMost))])
        return self.random.randbytes(self.random.randint(0, most) if exact is None else exact)


class LyingWorld(World):
    """One of the sites answers every call with a lie."""

    liar: Liar | None = None
    lying: Node | None = None

    def _carry_out(self, node: Node, effect: SiteEffect) -> None:
        if self.liar is None or self.lying is None or node is self.lying:
            if not isinstance(effect, Ask | Answer) or self.liar is None:
                super()._carry_out(node, effect)
            return
        if isinstance(effect, Ask) and effect.endpoint == self.lying.where:
            answer = self.lie(reply=True)
            if answer is not None:
                self._queue.append((node, CallEnded(effect.call, self.lying.site.me, answer)))
        elif not isinstance(effect, Answer) or (node.site.me, effect.call) in self._calls:
            super()._carry_out(node, effect)

    def lie(self, *, reply: bool) -> Any:
        """As it comes out of the codec; None if the codec already refuses it."""
        assert self.liar is not None
        codec = REPLIES if reply else CALLS
        made = self.liar.reply() if reply else self.liar.call()
        try:
            return codec.unpack(codec.pack(made))
        except Malformed:
            return None


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_lying_member_breaks_nothing(seed: int) -> None:
    world = LyingWorld(seed)
    one, two, three = (world.add() for _ in range(3))
    for node in (two, three):
        world.meet(node, one)
    world.run(3)
    committee = tuple(node.site.me for node in (one, two, three))
    world.submit(one, model("1"), deployment("1"), a_job("j-1", *committee))
    world.run(3)
    world.lying, world.liar = three, Liar(world, three, seed)
    honest = {one.site.me, two.site.me}
    for number in range(CALLS_MADE):
        if (message := world.lie(reply=False)) is not None:
            world.feed(one, CallReceived(5_000_000 + number, three.site.me, message))
        if number % 10 == 0:
            world.run(0.1)
    world.run(20)
    for node, other in ((one, two), (two, one)):
        assert node.alive() & honest == {other.site.me}
        record = node.site.swim.members()[other.site.me].record
        assert record.endpoint == other.where
        assert record.sequence <= other.site.swim.record.sequence
        assert len(node.site.swim.members()) == 2, "nobody was invented"
    assert len(one.site.catalog) == 3, "nothing that no admin signed"


def test_the_lies_reach_the_machine() -> None:
    """Most of them pass the codec: else nothing would have been tried."""
    world = LyingWorld(9)
    world.lying = world.add()
    world.liar = Liar(world, world.lying, 9)
    said: list[Reply | None] = [world.lie(reply=number % 2 == 0) for number in range(200)]
    assert sum(one is not None for one in said) > 150
