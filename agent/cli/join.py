"""``atoll join``: a machine with a token becomes a site.

The conversation is that of ``agent.identity.tokens``: one TLS connection to a seed, on which the
seed proves to be the token's issuer before anything of the token is used; then one request. The
proof and the request travel on the same connection, which is never silently opened anew: what was
proven of one connection says nothing of the next.

Where no address of the token answers, multicast DNS on this network says where else the issuer may
be: a hint like any other. Nobody else is asked anything, and nothing outside this network is.

A join that was cut off is simply repeated: the keys are kept, and the issuer knows them.
"""

import argparse
import asyncio
import http.client
import ssl
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from agent.cli.client import whole
from agent.cli.lifecycle import write_settings
from agent.cli.new_site import adopt, make_state_dir, settings_to_be
from agent.cli.output import clean, print_json
from agent.cli.site_files import config_option, config_path
from agent.config.settings import SiteSettings
from agent.drivers.clock import wall
from agent.drivers.keystore import JoinKeys, complete_join, prepare_join
from agent.drivers.store import Store
from agent.drivers.tls import join_context, peer_leaf
from agent.foundation.errors import (
    Malformed,
    OutcomeUnknown,
    Refused,
    Unreachable,
    UsageError,
)
from agent.foundation.writes import Put
from agent.identity.tokens import (
    TOKEN_CHARS_MAX,
    IssuerProof,
    JoinReply,
    JoinRequest,
    Token,
    accept_reply,
    check_issuer,
    decode_token,
    make_request,
)
from agent.wire.limits import MESH_BODY_BYTES_MAX
from agent.wire.schema import pack, unpack

CHAIN_PATH = "/join/1/chain"
JOIN_PATH = "/join/1"
REFUSAL_BYTES_MAX = 4096
SEEDS_KEY = "token_seeds"
"""Row of the store's ``meta`` table: ``host:port`` of each seed, blanks between; the agent tries
them as discovery source ``token``."""
SEEDS_KEPT_MAX = 16
LOOK_S = 3.0
"""A site on the network answers within a second, unless it is asked under a flood."""
REFUSED = "the issuer refuses the join"
HINT_TIMEOUT_S = 5.0
"""For an announced address: it is on this network, or false."""
CANDIDATES_MAX = 64
"""Announced addresses of the issuer that are tried; anybody can announce more."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What an issuer answered, proven."""

    reply: JoinReply
    region: str
    seeds: tuple[str, ...]
    """``host:port`` of members, the token's own first."""


def join(asked: argparse.Namespace) -> int:
    """Join the token's cluster and write what this site needs to run."""
    token = decode_token(_text(asked.token))
    settings = settings_to_be(asked)
    make_state_dir(settings)
    keys = prepare_join(settings.identity_dir)
    admission = admit(token, keys, asked.timeout, lambda: announced(token, settings))
    reply = admission.reply
    done = complete_join(
        settings.identity_dir, chain=reply.chain, root=reply.root, trust=reply.trust
    )
    asyncio.run(_keep_seeds(settings, admission.seeds))
    is_written = write_settings(
        asked,
        {
            "site.name": token.name,
            "site.state_dir": settings.state_dir,
            "discovery.seeds": list(admission.seeds),
        },
    )
    adopt(settings)
    claims = done.identity.claims
    if asked.json:
        print_json(
            {
                "site": done.site.hex(),
                "name": claims.name,
                "cluster": done.cluster.hex(),
                "region": claims.region,
                "tier": claims.tier,
                "jurisdiction": claims.jurisdiction,
                "seeds": list(admission.seeds),
                "config": str(config_path(asked)),
            }
        )
        return 0
    print(
        f"{claims.name} ({done.site.hex()[:8]}) is a site of cluster {done.cluster.hex()[:16]}:"
        f" {claims.region}, {claims.tier}, {claims.jurisdiction}"
    )
    if is_written:
        print(f"settings   {config_path(asked)}")
    print(f"next       atoll run{config_option(asked)}   (or: systemctl enable --now atoll)")
    return 0


def announced(token: Token, settings: SiteSettings) -> tuple[tuple[str, int], ...]:
    """Where this network says that the token's issuer is; at most ``CANDIDATES_MAX`` addresses."""
    if not settings.discovery.mdns:
        return ()
    from agent.drivers.mdns import browse_once  # noqa: PLC0415 - most joins need no multicast

    part = settings.discovery
    interfaces = part.interfaces
    if not interfaces and _is_loopback(settings.listen.mesh_host):
        interfaces = ("127.0.0.1",)
    try:
        found = asyncio.run(browse_once(token.root, interfaces, LOOK_S, part.deny_interfaces))
    except OSError:
        return ()
    addresses = ((one.host, one.mesh_port) for one, site in found if site == token.issuer)
    return tuple(dict.fromkeys(addresses))[:CANDIDATES_MAX]


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def admit(
    token: Token,
    keys: JoinKeys,
    timeout_s: float,
    look: Callable[[], tuple[tuple[str, int], ...]] = tuple,
) -> Admission:
    """Ask the token's seeds in turn until one has decided; then whoever ``look`` finds.

    Raises:
        Refused: the issuer said no, or whoever answered is not the issuer.
        Unreachable: no seed answered; each is named with its reason.
    """
    request = make_request(token, keys.site_private, keys.gossip_private)
    troubles = []
    for host, port in _places(token, look):
        is_hint = (host, port) not in token.seeds
        try:
            reply = ask_seed(token, request, host, port, HINT_TIMEOUT_S if is_hint else timeout_s)
        except (Unreachable, OutcomeUnknown) as error:
            troubles.append(f"{_address(host, port)}: {error.why}")
            continue
        except (Refused, Malformed) as error:
            if not is_hint or error.what == REFUSED:
                raise  # the operator's own address, or the issuer's word
            troubles.append(f"{_address(host, port)} (announced): {error}")
            continue
        identity, _ = accept_reply(token, request, reply, wall())
        addresses = (*token.seeds, *reply.seeds)
        seeds = tuple(dict.fromkeys(_address(host, port) for host, port in addresses))
        return Admission(reply, identity.claims.region, seeds[:SEEDS_KEPT_MAX])
    raise Unreachable(
        "no issuer in the token answered",
        why="\n".join(troubles) or "it names no address, and none is announced on this network",
        mend="check that the issuer runs (`atoll status` there) and that its mesh port is open to"
        " this machine; then run the same command again",
    )


def _places(
    token: Token, look: Callable[[], tuple[tuple[str, int], ...]]
) -> Iterator[tuple[str, int]]:
    """The token's addresses; only when they are used up, what is announced on this network."""
    yield from token.seeds
    yield from (place for place in look() if place not in token.seeds)


def ask_seed(
    token: Token, request: JoinRequest, host: str, port: int, timeout_s: float
) -> JoinReply:
    """One conversation with one seed.

    Raises:
        Unreachable: no connection or no answer; nothing was asked.
        OutcomeUnknown: the request was sent and no answer came; asking again is harmless.
        Refused: it is not the issuer, or the issuer refuses.
        Malformed: it does not speak this protocol.
    """
    connection = http.client.HTTPSConnection(host, port, timeout=timeout_s, context=join_context())
    try:
        try:
            connection.connect()
            connection.auto_open = 0  # the proof holds for this connection only
            shown = unpack(IssuerProof, _exchange(connection, "GET", CHAIN_PATH, None))
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{host}:{port} does not answer", why=_reason(error)) from error
        if not isinstance(connection.sock, ssl.SSLSocket):
            raise Unreachable(f"{host}:{port} hung up", why="it closed the connection")
        check_issuer(token, shown, peer_leaf(connection.sock), wall())
        try:
            answer = _exchange(connection, "POST", JOIN_PATH, pack(request))
        except (OSError, http.client.HTTPException) as error:
            raise OutcomeUnknown(
                f"{host}:{port} did not answer the join request",
                why=_reason(error),
                mend="run the same command again: the keys are kept",
            ) from error
        return unpack(JoinReply, answer)
    finally:
        connection.close()


def _exchange(
    connection: http.client.HTTPSConnection, method: str, path: str, body: bytes | None
) -> bytes:
    connection.request(method, path, body, {"Content-Type": "application/msgpack"})
    response = connection.getresponse()
    data = whole(response, MESH_BODY_BYTES_MAX)
    if response.status == http.client.OK:
        return data
    said = clean(data[:REFUSAL_BYTES_MAX].decode("utf-8", "replace"))
    if response.status == http.client.FORBIDDEN:
        raise Refused(REFUSED, why=said)
    raise Malformed(
        f"{connection.host}:{connection.port} answers {response.status} to {method} {path}",
        why=said,
        mend="is it an Atoll site of this version?",
    )


async def _keep_seeds(settings: SiteSettings, seeds: tuple[str, ...]) -> None:
    store = await Store.open(settings.store_path)
    try:
        await store.commit((Put("meta", {"key": SEEDS_KEY, "value": " ".join(seeds)}),))
    finally:
        await store.close()


def _text(given: str) -> str:
    if given != "-":
        return given
    if sys.stdin.isatty():
        print("Token: ", end="", file=sys.stderr, flush=True)
    text = sys.stdin.readline(TOKEN_CHARS_MAX + 2)
    if not text.strip():
        raise UsageError("no token came in", mend="copy what `atoll token create` printed")
    return text


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reason(error: BaseException) -> str:
    match error:
        case TimeoutError():
            return "no answer in time"
        case ssl.SSLError():
            return f"TLS failed: {error.reason or error}"
        case OSError():
            return error.strerror or str(error)
        case _:
            return str(error) or type(error).__name__
