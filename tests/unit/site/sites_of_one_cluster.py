"""Whole site machines driven against each other in virtual time, with real keys and no network."""

from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from agent.catalog.rollout import Standing
from agent.federation import events as job
from agent.foundation.ids import Digest, SiteId
from agent.foundation.machine import NEVER, Woke
from agent.foundation.writes import Delete, Put
from agent.identity.admin import sign_document
from agent.identity.certificates import (
    cluster_id,
    issue_site,
    make_issuer,
    make_root,
    verify_passport,
)
from agent.identity.claims import Claims
from agent.identity.registry import Roll, SiteNotary
from agent.identity.trust import TrustLog
from agent.identity.trust_entries import Genesis
from agent.identity.trust_signing import sign_entry
from agent.membership.events import Heard, SendGossip
from agent.membership.settings import Settings
from agent.site.events import (
    Answer,
    Ask,
    BlobFailed,
    BlobStored,
    CallEnded,
    CallReceived,
    Discovered,
    FetchBlob,
    LoadModel,
    ModelFailed,
    ModelReady,
    Noted,
    Persist,
    Resolved,
    SiteEffect,
    SiteEvent,
    Submitted,
    WorkerUp,
)
from agent.site.site import Site
from agent.site.stored import SiteSettings, Stored
from agent.wire.documents import Body, Deployment, Document, Job, ModelVersion, Stamp
from agent.wire.mesh import Introduction, Reply
from agent.wire.records import Endpoint, Gate, Passport, Stage

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
OFFSET_S = NOW.timestamp() - 1000.0
"""The machines' clock starts at 1,000 s."""


class Keys:
    """The operator's half of a cluster."""

    def __init__(self, seed: int = 1) -> None:
        self.entropy = Random(seed).randbytes
        self.root = make_root(self.entropy, NOW)
        self.issuer = make_issuer(self.root, self.entropy, NOW)
        self.admin = Ed25519PrivateKey.from_private_bytes(self.entropy(32))
        self.count = 0

    def trust(self) -> TrustLog:
        log = TrustLog(cluster_id(self.root.certificate))
        admin = self.admin.public_key().public_bytes_raw()
        genesis = Genesis(self.root.certificate, self.issuer.certificate, admin, ())
        log.append(sign_entry(log, genesis, self.root.private_key, NOW))
        return log

    def document(self, body: Body, wall_ms: int | None = None) -> Document:
        self.count += 1
        at = int(NOW.timestamp() * 1000) if wall_ms is None else wall_ms
        return sign_document(self.admin, Stamp(at, self.count), body)


def model(version: str = "1", name: str = "m", residency: tuple[str, ...] = ()) -> ModelVersion:
    digest = Digest((f"{name}:{version}".encode() * 32)[:32])
    return ModelVersion(name, version, digest, 10, "onnx", residency)


def deployment(version: str = "1", name: str = "m", sites: tuple[str, ...] = ()) -> Deployment:
    return Deployment(name, version, sites)


def a_job(identifier: str, *committee: SiteId) -> Job:
    from agent.foundation.ids import JobId  # noqa: PLC0415

    return Job(JobId(identifier), "mnist-2nn", "d", committee, 1, 1, 8, 0.1, 1, 1, 60.0, "", ())


@dataclass
class Node:
    """One site with the outside that the test gives it."""

    site: Site
    private: Ed25519PrivateKey
    passport: Passport
    number: int
    persisted: list[Put] = field(default_factory=list)
    forgotten: list[SiteId] = field(default_factory=list)
    """Whose row of the peer book was deleted."""
    resolved: dict[int, tuple[str, ...]] = field(default_factory=dict)
    noted: list[str] = field(default_factory=list)
    fetched: list[FetchBlob] = field(default_factory=list)
    loaded: list[LoadModel] = field(default_factory=list)
    asked: list[Ask] = field(default_factory=list)
    others: list[SiteEffect] = field(default_factory=list)
    refuses: set[str] = field(default_factory=set)
    """Versions that this site's model worker refuses."""

    @property
    def where(self) -> Endpoint:
        return self.site.swim.record.endpoint

    def alive(self) -> set[SiteId]:
        return {s for s, m in self.site.swim.members().items() if m.state == "alive"}

    def stage(self, version: str = "1") -> str:
        items = self.site.shelf.items.values()
        return next((i.stage for i in items if i.version.version == version), "")


class World:
    """Sites, the calls between them, and time."""

    def __init__(self, seed: int = 1) -> None:
        self.keys, self.now, self.rng = Keys(seed), 1000.0, Random(seed)
        self.nodes: list[Node] = []
        self.down: set[SiteId] = set()
        self._queue: deque[tuple[Node, SiteEvent]] = deque()
        self._calls: dict[tuple[SiteId, int], tuple[Node, int]] = {}
        self._call = 1_000_000

    def add(
        self,
        jurisdiction: str = "DE",
        stored: Stored | None = None,
        again: Node | None = None,
        offset_s: float = OFFSET_S,
    ) -> Node:
        """A new site, or ``again`` with its keys and what it had ``stored``."""
        entropy, keys = self.keys.entropy, self.keys
        number = again.number if again else len(self.nodes) + 1
        if again is None:
            private = Ed25519PrivateKey.from_private_bytes(entropy(32))
            gossip = X25519PrivateKey.from_private_bytes(entropy(32)).public_key()
            claims = Claims(
                cluster_id(keys.root.certificate), f"site-{number}", "north", "edge", jurisdiction,
                ("member",), gossip.public_bytes_raw(),
            )  # fmt: skip
            leaf = issue_site(keys.issuer, private.public_key(), claims, NOW)
            passport = Passport((leaf, keys.issuer.certificate))
        else:
            private, passport = again.private, again.passport
        trust = keys.trust()
        roll = Roll(keys.root.certificate, trust)
        identity = verify_passport(passport, keys.root.certificate, NOW, frozenset())
        site = Site(
            identity=identity, passport=passport,
            endpoint=Endpoint(f"127.0.0.{number}", 7411, 7412),
            boot_epoch=len(self.nodes) + 1, settings=SiteSettings({"d": ("*",)}, True, "", 1.0),
            swim_settings=Settings.lan(3), notary=SiteNotary(private, roll), roll=roll,
            trust=trust, stored=stored or Stored(), rng=self.rng, now=self.now,
            wall_offset_s=offset_s,
        )  # fmt: skip
        node = Node(site, private, passport, number)
        if again is not None:
            self.nodes.remove(again)
        self.nodes.append(node)
        self.feed(node, WorkerUp())
        return node

    def meet(self, one: Node, other: Node) -> None:
        self.feed(one, Discovered(other.where, "seed"))

    def submit(self, node: Node, *bodies: Body) -> tuple[str, ...]:
        """What the site says of each."""
        self._call += 1
        documents = tuple(self.keys.document(body) for body in bodies)
        token = self._call
        self.feed(node, Submitted(token, documents))
        return node.resolved[token]

    def feed(self, node: Node, event: SiteEvent) -> None:
        """One event and everything that follows from it now."""
        self._queue.append((node, event))
        while self._queue:
            target, news = self._queue.popleft()
            if target in self.nodes and target.site.me not in self.down:
                for effect in target.site.step(news, self.now):
                    self._carry_out(target, effect)

    def run(self, seconds: float) -> None:
        """Wake every site when it wants to be."""
        until = self.now + seconds
        while True:
            live = [n for n in self.nodes if n.site.me not in self.down]
            node = min(live, key=lambda n: n.site.wake_at())
            at = node.site.wake_at()
            if at == NEVER or at > until:
                break
            self.now = max(self.now + 1e-6, at)
            self.feed(node, Woke())
        self.now = until

    def _at(self, where: Endpoint) -> Node | None:
        for node in self.nodes:
            if node.where == where and node.site.me not in self.down:
                return node
        return None

    def _carry_out(self, node: Node, effect: SiteEffect) -> None:  # noqa: C901, PLR0912
        match effect:
            case SendGossip(target, endpoint, message):
                other = self._at(endpoint)
                if other is not None and other.site.me == target:
                    self._queue.append((other, Heard(node.site.me, message)))
            case Ask():
                node.asked.append(effect)
                other = self._at(effect.endpoint)
                if other is None or effect.site not in (None, other.site.me):
                    self._queue.append((node, CallEnded(effect.call, effect.site, None, "down")))
                    return
                self._call += 1
                self._calls[other.site.me, self._call] = (node, effect.call)
                self._queue.append((other, CallReceived(self._call, node.site.me, effect.message)))
            case Answer(call, reply):
                self._answered(node, call, reply)
            case Persist(writes, token):
                node.persisted += [write for write in writes if isinstance(write, Put)]
                gone = [one for one in writes if isinstance(one, Delete) and one.table == "peers"]
                node.forgotten += [SiteId(bytes(one.key[0])) for one in gone]  # type: ignore[arg-type]
                if token is not None:
                    self._queue.append((node, job.Persisted(token)))
            case FetchBlob(digest, sources):
                node.fetched.append(effect)
                holders = [n for _, e in sources if (n := self._at(e)) and digest in n.site.held]
                is_had = bool(holders) or digest in node.site.held
                news = BlobStored(digest) if is_had else BlobFailed(digest, "nobody has it")
                self._queue.append((node, news))
            case LoadModel(key, version):
                node.loaded.append(effect)
                if version.version in node.refuses:
                    self._queue.append((node, ModelFailed(key, "it is broken")))
                else:
                    self._queue.append((node, ModelReady(key, ("CPU",), "{}", 100)))
            case Resolved(token, errors):
                node.resolved[token] = errors
            case Noted(text, _):
                node.noted.append(text)
            case _:
                node.others.append(effect)

    def _answered(self, node: Node, call: int, reply: Reply) -> None:
        asked = self._calls.pop((node.site.me, call), None)
        if asked is None:
            return  # the test made this call by hand
        asker, number = asked
        self._queue.append((asker, CallEnded(number, node.site.me, reply)))


def remembered(node: Node) -> Stored:
    """What a restart of ``node`` reads back: the last row of each key that it persisted."""
    from agent.wire.schema import unpack  # noqa: PLC0415

    peers, documents = {}, {}
    rollouts: dict[str, tuple[bytes, Standing]] = {}
    registers: dict[str, Put] = {}
    for put in node.persisted:
        if put.table == "peers":
            passport = unpack(Passport, bytes(put.row["passport"]))  # type: ignore[arg-type]
            peers[put.row["site"]] = (passport, put.row["record"], put.row["signature"])
        elif put.table == "documents":
            documents[put.row["kind"], put.row["name"]] = put.row["document"]
        elif put.table == "rollouts":
            stage, gate = Stage(int(str(put.row["stage"]))), Gate(int(str(put.row["gate"])))
            standing = Standing(stage, gate, str(put.row["reason"]))
            rollouts[str(put.row["model"])] = (bytes(put.row["rollout"]), standing)  # type: ignore[arg-type]
        elif put.table == "register":
            registers[str(put.row["job"])] = put
    from agent.federation.restored import Restored  # noqa: PLC0415
    from agent.foundation.ids import JobId  # noqa: PLC0415
    from agent.wire.records import Signed  # noqa: PLC0415

    return Stored(
        peers=tuple(
            Introduction(passport, Signed(bytes(record), bytes(signature)))  # type: ignore[arg-type]
            for passport, record, signature in peers.values()
        ),
        documents=tuple(unpack(Document, bytes(one)) for one in documents.values()),  # type: ignore[arg-type]
        jobs={JobId(name): Restored(register=put.row) for name, put in registers.items()},
        rollouts=rollouts,
        blobs=frozenset(node.site.held),
    )
