"""No labelled byte is handed to a connection to a site without the label, whatever fails meanwhile.

The gateway's own code (``Inference``, ``Elsewhere``) over generated policies, groups and clusters. The
place of the socket is taken by what writes down each byte that would leave, and answers as badly
as sites do: late, with errors, not at all.
"""

import asyncio
import time
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from agent.foundation.errors import AtollError, Refused, Unreachable
from agent.foundation.ids import SiteId
from agent.gateway.asked import Asked, read_question
from agent.gateway.inference import Inference
from agent.gateway.members import MemberAnswer, NotConnected
from agent.gateway.site import Limits, SiteState
from agent.wire.documents import Policy
from agent.wire.inside import KnownModel, RemoteSite, View, model_key
from agent.wire.records import Served
from agent.wire.residency import Group

POLICIES = 10_000
PLACES = ("", "DE", "FR", "US", "JP", "EU", "zone-a")
NAMES = ("DE", "FR", "US", "EU", "ASIA", "zone-a", "nowhere")
CANARY = b"canary"
KEY = model_key("m", "1")
Groups = dict[str, tuple[str, ...]]


class World:
    """One policy, some sites, and what was sent to each."""

    def __init__(self, rng: Random, *, is_filter_off: bool = False) -> None:
        self.rng, self.is_filter_off = rng, is_filter_off
        self.groups: Groups = {
            name: tuple(rng.sample(PLACES[1:], rng.randrange(1, 4)))
            for name in rng.sample(NAMES, rng.randrange(3))
        }
        self.places = {self.site(n): rng.choice(PLACES) for n in range(1, rng.randrange(2, 8))}
        self.bound = self.label()
        self.asked = self.label()
        self.home = rng.choice(PLACES)
        self.application = rng.choice(("local", "camera", "cash"))
        self.policies = [self.policy(n) for n in range(rng.choice((0, 0, 1, 2, 3)))]
        self.under_way: dict[SiteId, int] = {}
        self.sent: list[tuple[SiteId, bytes]] = []

    def site(self, number: int) -> SiteId:
        return SiteId(number.to_bytes(32, "big"))

    def label(self) -> tuple[str, ...]:
        return tuple(self.rng.sample(NAMES, self.rng.randrange(4)))

    def policy(self, number: int) -> Policy:
        few = self.rng.choice
        return Policy(
            "policy", f"p{number}", self.label(), few(((), ("m",), ("*",), ("x*", "*m"), ("x",))),
            few(((), (), self.label())), few(((), (), ("camera",), ("ca*",))), self.rng.random() < 0.1,
            self.rng.random() < 0.9,
        )  # fmt: skip

    def meant(self, label: tuple[str, ...]) -> set[str]:
        return {name for one in label for name in (one, *self.groups.get(one, ()))}

    def about(self) -> list[Policy]:
        """The policies that the request meets, by nothing that the gateway uses."""
        models = {(), ("m",), ("*",), ("x*", "*m")}
        applications: dict[tuple[str, ...], tuple[str, ...]] = {
            (): ("local", "camera", "cash"), ("camera",): ("camera",), ("ca*",): ("camera", "cash"),
        }  # fmt: skip
        return [
            one
            for one in self.policies
            if one.is_active
            and one.models in models
            and (not one.origins or (self.home and self.home in self.meant(one.origins)))
            and self.application in applications[one.applications]
        ]

    def view(self) -> View:
        bound = () if self.is_filter_off else self.bound
        sites = tuple(
            RemoteSite(
                site, f"s{site[-1]}", "r", "edge", place, "h", 1, self.rng.choice(("alive", "suspect")),
                self.rng.random() < 0.2, self.rng.uniform(1, 50), 0.0, (Served(KEY, 1000),),
            )
            for site, place in self.places.items()
        )  # fmt: skip
        return View(
            site=self.site(0), name="home", jurisdiction=self.home, is_draining=False,
            local=(), known=(KnownModel(KEY, "m", "1", True, bound),), sites=sites, blobs=(),
            revoked=(), groups=tuple(Group(*one) for one in sorted(self.groups.items())),
            policies=() if self.is_filter_off else tuple(self.policies),
        )  # fmt: skip

    def may(self, place: str) -> bool:
        """By sets, and by nothing that the gateway uses."""
        policies = self.about()
        if not self.asked and any(one.needs_label for one in policies):
            return False
        for label in (self.bound, self.asked, *(one.answer_in for one in policies)):
            if label and (not place or place not in self.meant(label)):
                return False
        return True

    def check_passed_on(self, label: tuple[str, ...]) -> None:
        """A receiver that knows no policies must be as strict by the label alone."""
        if not label:
            assert not self.asked
            assert not any(one.answer_in for one in self.about())
        for place in PLACES[1:]:
            if label and place in self.meant(label):
                bound, self.bound = self.bound, ()  # the receiver knows the model's label itself
                assert self.may(place), (label, place)
                self.bound = bound

    async def call(
        self, remote: RemoteSite, *_: Any, headers: dict[str, str], body: bytes, **__: Any
    ) -> MemberAnswer:
        if not self.is_filter_off:
            passed_on = headers.get("Atoll-Residency", "")
            self.check_passed_on(tuple(passed_on.split(",")) if passed_on else ())
        if self.rng.random() < 0.2:
            raise NotConnected("no route")
        self.sent.append((remote.site, body))
        fate = self.rng.random()
        if fate < 0.3:
            raise Unreachable("it broke off")
        if fate < 0.6:
            await asyncio.sleep(0)
            await asyncio.sleep(0.001 if fate < 0.35 else 0)
        return MemberAnswer(self.rng.choice((200, 403, 404, 429, 500, 503)), {}, b"{}")

    async def ask(self) -> None:
        state = SiteState(Limits())
        state.replace_view(self.view())
        audit = Audit()
        inference = Inference(state, self, audit, Keys())  # type: ignore[arg-type]
        headers = {"Atoll-Residency": ",".join(self.asked)} if self.asked else {}
        if self.is_filter_off:
            headers = {}
        try:
            question = read_question(
                state, "m", None, headers, None, self.application, is_data=True
            )
        except Refused:
            needs_label = any(one.needs_label for one in self.about())
            assert needs_label
            assert not self.asked
            return
        deadline = time.monotonic() + 5
        asked = Asked("r", question.model, question, None, CANARY, deadline)
        for once in (None, "k"):
            try:
                await inference.answer(replace(asked, once=once))
            except AtollError:
                continue
        assert len(audit.receivers) >= len(self.sent), "an entry before each effect"


class Audit:
    def __init__(self) -> None:
        self.receivers: list[SiteId] = []

    async def forward(self, _: str, __: KnownModel, receiver: SiteId, *___: object) -> None:
        self.receivers.append(receiver)

    def outcome(self, *_: object) -> None:
        pass


class Keys:
    async def claim(self, _: bytes) -> bool:
        return True

    def release(self, _: bytes) -> None:
        pass


async def leaks(policies: int, *, is_filter_off: bool = False) -> tuple[int, int]:
    """Requests that were sent, and those of them to a site that the labels forbid."""
    sent = wrong = 0
    for seed in range(policies):
        world = World(Random(seed), is_filter_off=is_filter_off)
        await world.ask()
        assert all(body == CANARY for _, body in world.sent)
        sent += len(world.sent)
        wrong += sum(not world.may(world.places[site]) for site, _ in world.sent)
    return sent, wrong


async def test_no_labelled_byte_leaves_for_a_site_without_the_label(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agent.routing.outlook.PATIENCE_UNKNOWN_MS", 0.0)
    monkeypatch.setattr("agent.routing.outlook.HEDGE_MS_MIN", 0.0)
    sent, wrong = await leaks(POLICIES)
    assert sent > POLICIES / 2
    assert wrong == 0


async def test_a_gateway_that_ignored_labels_would_be_found_out() -> None:
    sent, wrong = await leaks(200, is_filter_off=True)
    assert wrong > sent / 10
