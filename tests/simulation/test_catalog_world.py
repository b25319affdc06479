"""Catalogs under loss, duplicates, reordering and cuts: equal at every site once all can talk again."""

from collections import deque
from random import Random

import pytest

from agent.catalog.catalog import Catalog
from agent.foundation.ids import Digest
from agent.wire.documents import BODIES, Deployment, Document, ModelVersion, Stamp, key_of

SEEDS = 500
SITES = 5
STEPS = 60
Message = tuple[int, int, str, tuple[object, ...]]
"""From, to, ``heads`` | ``documents`` | ``wanted``, and what it carries."""


class World:
    """Five sites that only have the messages of a state sync between them, and a bad network."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.sites = [Catalog() for _ in range(SITES)]
        self.written: list[Document] = []
        self.side = [0] * SITES
        self.loss = self.rng.choice([0.0, 0.1, 0.5])
        self.waiting: deque[Message] = deque()

    def take(self, site: int, document: Document) -> None:
        body = BODIES.unpack(document.body)
        self.sites[site].merge(document, body)

    def write(self) -> None:
        """An admin's change at any site: stamps collide on purpose, authors and bodies too."""
        rng = self.rng
        name = rng.choice("abc")
        body: ModelVersion | Deployment = Deployment(name, rng.choice("12"), ())
        if rng.random() < 0.5:
            body = ModelVersion(name, "1", Digest(bytes(32)), rng.randint(1, 3), "onnx", ())
        stamp = Stamp(rng.randint(0, 4), rng.randint(0, 2))
        document = Document(stamp, bytes([rng.randint(0, 1)]) * 32, BODIES.pack(body), bytes(64))
        self.written.append(document)
        self.take(rng.randrange(SITES), document)

    def send(self, message: Message) -> None:
        source, target, *_ = message
        if self.side[source] != self.side[target] or self.rng.random() < self.loss:
            return
        for _ in range(self.rng.choice([1, 1, 2])):
            self.waiting.insert(self.rng.randint(0, len(self.waiting)), message)

    def deliver(self) -> None:
        source, target, kind, content = self.waiting.popleft()
        here = self.sites[target]
        if kind == "heads":
            difference = here.missing(content)  # type: ignore[arg-type]
            self.send((target, source, "documents", difference.newer_here))
            self.send((target, source, "wanted", difference.wanted))
        elif kind == "wanted":
            self.send((target, source, "documents", here.of_keys(content)))  # type: ignore[arg-type]
        else:
            for document in content:
                assert isinstance(document, Document)
                self.take(target, document)

    def greet(self, source: int, target: int) -> None:
        self.send((source, target, "heads", self.sites[source].heads()))

    def trouble(self) -> None:
        for _ in range(STEPS):
            dice = self.rng.random()
            if dice < 0.25:
                self.write()
            elif dice < 0.32:
                self.side = [self.rng.randint(0, 1) for _ in range(SITES)]
            elif dice < 0.37:
                self.waiting.clear()  # everything under way is lost
            elif dice < 0.6:
                self.greet(*self.rng.sample(range(SITES), 2))
            elif self.waiting:
                self.deliver()

    def heal(self) -> None:
        """Each with each, once, in any order; then once more over everybody for what came meanwhile."""
        self.side, self.loss = [0] * SITES, 0.0
        pairs = [(a, b) for a in range(SITES) for b in range(SITES) if a != b]
        for _ in range(2):
            self.rng.shuffle(pairs)
            for pair in pairs:
                self.greet(*pair)
                while self.waiting:
                    self.deliver()


@pytest.mark.parametrize("first", range(0, SEEDS, 100))
def test_whatever_was_lost_doubled_or_cut_off_all_sites_agree_after_healing(first: int) -> None:
    for seed in range(first, first + 100):
        world = World(seed)
        world.trouble()
        world.heal()
        documents = [[entry.document for entry in one] for one in world.sites]
        assert all(one == documents[0] for one in documents), f"seed {seed}"
        assert len({one.digest8 for one in world.sites}) == 1, f"seed {seed}"
        alone = Catalog((one, BODIES.unpack(one.body)) for one in world.written)
        assert documents[0] == [entry.document for entry in alone], f"seed {seed}: another winner"
        for entry in world.sites[0]:
            assert key_of(entry.body) == entry.head.key


def test_the_network_is_bad_enough_to_leave_sites_apart_before_it_heals() -> None:
    apart = 0
    for seed in range(50):
        world = World(seed)
        world.trouble()
        apart += len({one.digest8 for one in world.sites}) > 1
    assert apart > 40
