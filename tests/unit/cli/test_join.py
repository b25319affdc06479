"""``agent.cli.join`` against the real mesh listener and the real issuer's decisions."""

import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.cli import join as joining
from agent.config.read import load
from agent.drivers import keystore, tls
from agent.drivers.keystore import SiteKeys
from agent.drivers.mesh import MeshServer
from agent.drivers.store import Store
from agent.foundation.errors import Refused, Unreachable
from agent.identity.tokens import (
    IssuerProof,
    JoinReply,
    JoinRequest,
    TokenRow,
    certify,
    decode_token,
    make_request,
    mint,
    redeem,
)
from agent.wire.schema import pack, unpack

if TYPE_CHECKING:
    from conftest import Atoll, LoopThread

NOW = datetime.now(UTC)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Issuer:
    """A founded site that admits others; its token row is the only state."""

    def __init__(self, keys: SiteKeys) -> None:
        self.keys = keys
        self.port = free_port()
        self.row: TokenRow | None = None
        self.requests = 0
        self.answers = 1_000_000
        """How many requests are answered before it fails to."""

    def token(
        self, name: str = "paris", *, seeds: tuple[tuple[str, int], ...] | None = None
    ) -> str:
        text, self.row = mint(
            cluster=self.keys.cluster,
            issuer=self.keys.site,
            name=name,
            region="eu-west",
            tier="edge",
            jurisdiction="FR",
            roles=(),
            seeds=seeds or (("127.0.0.1", self.port),),
            entropy=os.urandom,
            now=NOW,
        )
        return text

    async def join(self, data: bytes) -> bytes:
        request = unpack(JoinRequest, data)
        self.requests += 1
        self.row, outcome = redeem(self.row, request, datetime.now(UTC))
        if isinstance(outcome, Refused):
            raise outcome
        if self.requests > self.answers:
            raise ZeroDivisionError  # after the row is written, before the answer
        assert self.keys.issuer is not None
        chain = certify(self.keys.issuer, request, outcome, datetime.now(UTC))
        return pack(JoinReply(chain, self.keys.root, (("10.1.2.3", 7411),), self.keys.trust))

    def proof(self) -> bytes:
        return pack(IssuerProof(self.keys.chain, self.keys.root))

    async def nobody(self, *_: object) -> None:
        raise AssertionError

    async def start(self, proof: bytes | None = None) -> MeshServer:
        verify = tls.verifier(self.keys, frozenset, lambda: datetime.now(UTC))
        server = MeshServer(self.keys, verify, self.nobody, proof or self.proof(), self.join)  # type: ignore[arg-type]
        await server.start("127.0.0.1", self.port)
        return server


@pytest.fixture
def issuer(founded: Path) -> Issuer:
    return Issuer(keystore.load(load(founded).identity_dir))


@pytest.fixture
def listening(issuer: Issuer, loop_thread: "LoopThread") -> Iterator[Issuer]:
    server = loop_thread.run(issuer.start())
    yield issuer
    loop_thread.run(server.stop())


Join = Callable[..., "Outcome"]
if TYPE_CHECKING:
    from conftest import Outcome


@pytest.fixture
def join(bare: "Atoll", tmp_path: Path) -> Join:
    return lambda token, *more: bare(
        *("join", token, "--config", tmp_path / "atoll.toml"),
        *("--state-dir", tmp_path / "state", "--timeout", "5"),
        *more,
    )


def test_a_token_makes_a_machine_a_site(
    listening: Issuer, join: Join, tmp_path: Path, loop_thread: "LoopThread"
) -> None:
    found = join(listening.token())
    assert (found.code, found.err) == (0, "")
    assert "eu-west, edge, FR" in found.out
    settings = load(tmp_path / "atoll.toml")
    keys = keystore.load(settings.identity_dir)
    assert keys.cluster == listening.keys.cluster
    assert keys.identity.claims.name == settings.site.name == "paris"
    assert keys.issuer is None
    assert keys.trust == listening.keys.trust
    assert settings.seeds == (("127.0.0.1", listening.port), ("10.1.2.3", 7411))

    async def kept() -> str:
        store = await Store.open(settings.store_path)
        try:
            return await store.read(
                lambda database: next(
                    str(row["value"])
                    for row in database["meta"].rows
                    if row["key"] == joining.SEEDS_KEY
                )
            )
        finally:
            await store.close()

    assert loop_thread.run(kept()) == f"127.0.0.1:{listening.port} 10.1.2.3:7411"


def test_scripts_learn_who_they_became(
    listening: Issuer, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = listening.token()
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    monkeypatch.setattr(sys.stdin, "readline", lambda _: token + "\n", raising=False)
    answer = json.loads(join("-", "--json").out)
    assert (answer["name"], answer["tier"]) == ("paris", "edge")
    assert answer["cluster"] == listening.keys.cluster.hex()


def test_a_used_token_is_refused_with_the_issuers_words(
    listening: Issuer, join: Join, tmp_path: Path
) -> None:
    token = listening.token()
    assert join(token).code == 0
    (tmp_path / "atoll.toml").unlink()
    found = join(token, "--state-dir", tmp_path / "second")
    assert found.code == 1
    assert "the issuer refuses the join" in found.err
    assert "the token was used already" in found.err
    assert not (tmp_path / "second" / "identity" / "chain.pem").exists()
    assert not (tmp_path / "atoll.toml").exists()


def test_a_join_whose_answer_was_lost_succeeds_when_repeated(listening: Issuer, join: Join) -> None:
    token = listening.token()
    listening.answers = 0
    assert join(token).code == 1
    listening.answers = 9
    found = join(token)
    assert (found.code, found.err) == (0, "")
    assert listening.requests == 2


def test_a_seed_that_is_down_is_passed_over(listening: Issuer, join: Join) -> None:
    token = listening.token(seeds=(("127.0.0.1", free_port()), ("127.0.0.1", listening.port)))
    assert join(token).code == 0


def test_when_no_seed_answers_each_is_named_with_its_reason(
    issuer: Issuer, join: Join, tmp_path: Path
) -> None:
    ports = free_port(), free_port()
    found = join(issuer.token(seeds=tuple(("127.0.0.1", port) for port in ports)))
    assert found.code == 1
    for port in ports:
        assert f"127.0.0.1:{port}: Connection refused" in found.err
    assert not (tmp_path / "state" / "identity" / "chain.pem").exists()


def test_a_server_without_tls_is_told(issuer: Issuer, join: Join) -> None:
    with socket.create_server(("127.0.0.1", issuer.port)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 no TLS here\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        found = join(issuer.token())
        thread.join()
    assert found.code == 1
    assert "TLS failed" in found.err


def test_a_seed_that_shows_another_sites_chain_gets_no_request(
    issuer: Issuer, join: Join, loop_thread: "LoopThread", tmp_path: Path
) -> None:
    """Somebody in between passes the issuer's chain on, but cannot hold its key."""
    false = keystore.found_cluster(
        tmp_path / "false",
        name="false",
        region="r",
        tier="edge",
        jurisdiction="DE",
        roles=(),
        passphrase="long enough",
        now=NOW,
    )
    token = issuer.token()
    between = Issuer(false.keys)
    between.port, between.row = issuer.port, issuer.row
    server = loop_thread.run(between.start(issuer.proof()))
    found = join(token)
    loop_thread.run(server.stop())
    assert found.code == 1
    assert "somebody may stand between" in found.err
    assert between.requests == 0


def test_a_seed_of_another_cluster_gets_no_request(
    listening: Issuer, join: Join, tmp_path: Path
) -> None:
    other = keystore.found_cluster(
        tmp_path / "other",
        name="other",
        region="r",
        tier="edge",
        jurisdiction="DE",
        roles=(),
        passphrase="long enough",
        now=NOW,
    )
    elsewhere = Issuer(other.keys)
    found = join(elsewhere.token(seeds=(("127.0.0.1", listening.port),)))
    assert found.code == 1
    assert "another cluster than the token" in found.err
    assert listening.requests == 0


def test_the_request_never_travels_on_a_connection_that_was_not_proven(
    listening: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seed hangs up after its proof: another one must not get the request in its place."""
    token = decode_token(listening.token())
    keys = keystore.prepare_join(tmp_path / "identity")
    request = make_request(token, keys.site_private, keys.gossip_private)
    real = joining._exchange

    def hang_up(connection: "object", method: str, path: str, body: bytes | None) -> bytes:
        answer = real(connection, method, path, body)  # type: ignore[arg-type]
        if method == "GET":
            connection.close()  # type: ignore[attr-defined]
        return answer

    monkeypatch.setattr(joining, "_exchange", hang_up)
    with pytest.raises(Unreachable):
        joining.ask_seed(token, request, "127.0.0.1", listening.port, 5.0)
    assert listening.requests == 0


@pytest.mark.parametrize("mangle", [lambda t: t[:-5], lambda t: "x" + t, lambda _: ""])
def test_a_mangled_token_is_told_before_anything_is_made(
    issuer: Issuer, join: Join, tmp_path: Path, mangle: Callable[[str], str]
) -> None:
    found = join(mangle(issuer.token()))
    assert found.code == 1
    assert "token" in found.err
    assert not (tmp_path / "state").exists()


def test_a_site_does_not_join_twice(listening: Issuer, join: Join) -> None:
    assert join(listening.token()).code == 0
    found = join(listening.token("lyon"))
    assert found.code == 1
    assert "already holds an identity" in found.err


def test_an_answer_for_another_site_is_not_stored(
    listening: Issuer, join: Join, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = JoinReply(listening.keys.chain, listening.keys.root, (), listening.keys.trust)

    monkeypatch.setattr(joining, "ask_seed", lambda *_: own)
    found = join(listening.token())
    assert found.code == 1
    assert "certified another site than asked for" in found.err
    assert not (tmp_path / "state" / "identity" / "chain.pem").exists()


# --- found on this network -----------------------------------------------------------------------
Places = tuple[tuple[str, int], ...]


def admitted(
    issuer: Issuer, folder: Path, seeds: Places, found: Places
) -> tuple[joining.Admission | Exception, int]:
    """What came of joining, and how often this network was asked."""
    token = decode_token(issuer.token(seeds=seeds))
    looks = 0

    def look() -> Places:
        nonlocal looks
        looks += 1
        return found

    keys = keystore.prepare_join(folder / "identity")
    try:
        return joining.admit(token, keys, 5.0, look), looks
    except (Refused, Unreachable) as error:
        return error, looks


def test_the_network_is_asked_only_when_the_tokens_addresses_are_dead(
    listening: Issuer, tmp_path: Path
) -> None:
    here, dead = ("127.0.0.1", listening.port), ("127.0.0.1", free_port())
    admission, looks = admitted(listening, tmp_path / "one", (here,), (dead,))
    assert isinstance(admission, joining.Admission)
    assert looks == 0
    admission, looks = admitted(listening, tmp_path / "two", (dead,), (dead, here))
    assert isinstance(admission, joining.Admission)
    assert looks == 1


def test_false_announcements_cost_a_little_time_and_nothing_else(
    listening: Issuer, tmp_path: Path, loop_thread: "LoopThread"
) -> None:
    """Another cluster's site and a dead port announce themselves as the issuer."""
    false = keystore.found_cluster(
        tmp_path / "false", name="false", region="r", tier="edge", jurisdiction="DE", roles=(),
        passphrase="long enough", now=NOW,
    )  # fmt: skip
    liar = Issuer(false.keys)
    server = loop_thread.run(liar.start())
    dead, here = ("127.0.0.1", free_port()), ("127.0.0.1", listening.port)
    found = (("127.0.0.1", liar.port), dead, here)
    admission, _ = admitted(listening, tmp_path, (dead,), found)
    loop_thread.run(server.stop())
    assert isinstance(admission, joining.Admission)
    assert liar.requests == 0


def test_the_issuers_own_refusal_ends_the_search(listening: Issuer, tmp_path: Path) -> None:
    dead, here = ("127.0.0.1", free_port()), ("127.0.0.1", listening.port)
    token = decode_token(listening.token(seeds=(dead,)))
    first = keystore.prepare_join(tmp_path / "first")
    joining.admit(token, first, 5.0, lambda: (here,))
    second = keystore.prepare_join(tmp_path / "second")
    with pytest.raises(Refused, match="the token was used already"):
        joining.admit(token, second, 5.0, lambda: (here, here))
    assert listening.requests == 2


def test_without_multicast_nothing_is_looked_for(issuer: Issuer, tmp_path: Path) -> None:
    path = tmp_path / "atoll.toml"
    path.write_text(f'[site]\nstate_dir = "{tmp_path}"\n[discovery]\nmdns = false\n')
    assert joining.announced(decode_token(issuer.token()), load(path)) == ()
