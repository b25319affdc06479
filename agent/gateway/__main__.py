"""``python -m agent.gateway``: started by the control process with one end of a socket pair."""

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from agent.drivers import keystore, memory, tls, uvloop_library
from agent.drivers.channel import Channel, exit_with_parent
from agent.drivers.served_certificate import ServedCertificate
from agent.foundation.errors import AtollError
from agent.gateway.about import About
from agent.gateway.applications import Porter
from agent.gateway.blob_endpoints import BlobEndpoints
from agent.gateway.bodies import Bodies
from agent.gateway.control import Control
from agent.gateway.endpoints import Endpoints
from agent.gateway.inference import Inference
from agent.gateway.listeners import Door, open_door, open_members_door
from agent.gateway.members import Callers, Members
from agent.gateway.openapi import METRICS
from agent.gateway.repository import Repository
from agent.gateway.site import Limits, SiteState
from agent.serving.fair import read_share
from agent.wire.inside import View

if TYPE_CHECKING:
    from agent.gateway.grpc_door import GrpcDoor

KEPT_FREE_BYTES = 4 << 20
"""Bodies up to this size come and go on the heap, which keeps their memory; larger ones are given back
to the system at once. glibc's defaults gave back and fetched, page by page, for every request."""


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    defaults = Limits()
    parser = argparse.ArgumentParser(prog="python -m agent.gateway")
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--http-host", default="127.0.0.1")
    parser.add_argument("--http-port", type=int, default=8000, help="0 = any free one")
    parser.add_argument(
        "--http-name", action="append", default=[], help="answered besides addresses"
    )
    parser.add_argument("--http-certificate", type=Path, help="with --http-key: TLS")
    parser.add_argument("--http-key", type=Path)
    parser.add_argument("--metrics-port", type=int, default=-1, help="as --grpc-port")
    parser.add_argument("--grpc-port", type=int, default=-1, help="0 = any free one, -1 = none")
    parser.add_argument(
        "--tokens", choices=("required", "optional"), default="required", help="of applications"
    )
    parser.add_argument("--data-host", required=True)
    parser.add_argument("--data-port", type=int, default=7412, help="0 = any free one")
    parser.add_argument("--identity-dir", type=Path, required=True)
    parser.add_argument("--blob-dir", type=Path, required=True)
    parser.add_argument("--blob-bytes-per-s", type=float, default=0.0)
    parser.add_argument("--request-bytes-max", type=int, default=defaults.request_bytes_max)
    parser.add_argument("--queue-max-s", type=float, default=defaults.queue_max_s)
    parser.add_argument(
        "--share",
        action="append",
        default=[],
        type=read_share,
        help="NAME=WEIGHT of an application",
    )
    parser.add_argument("--deadline-max-s", type=float, default=defaults.deadline_max_s)
    return parser.parse_args(arguments)


async def serve(given: argparse.Namespace) -> None:
    """Serve until the control process is gone.

    Raises:
        ConfigError: the identity folder is damaged.
        OSError: an address cannot be bound.
    """
    state = SiteState(
        Limits(
            given.request_bytes_max,
            given.queue_max_s,
            given.deadline_max_s,
            dict(given.share),
            is_token_required=given.tokens == "required",
        )
    )
    porter = Porter(state)
    keys = keystore.load(given.identity_dir)
    callers = Callers(keys)
    members = Members(keys, callers, given.request_bytes_max)
    channel = Channel.from_descriptor(given.channel_fd)
    control = Control(channel, state)
    inference = Inference(state, members, control, control)
    about = About(state, inference)
    repository = Repository(state, control)
    bodies = Bodies(given.request_bytes_max)
    endpoints = Endpoints(state, inference, bodies, about, repository)
    blobs = BlobEndpoints(state, callers, given.blob_dir, control, given.blob_bytes_per_s)
    context = tls.server_context(keys)

    def follow(view: View) -> None:
        revoked = frozenset(view.revoked)
        if revoked == callers.revoked:
            return
        callers.revoked = revoked
        count = members.close_refused() + (data.close_refused(callers.verify) if data else 0)
        if count:
            logging.getLogger("gateway").info("closed %d sessions of revoked sites", count)

    def show_renewed() -> None:
        renewed = keystore.reload_chain(keys)
        tls.reload_certificate(context, renewed)
        members.renew(renewed)

    data: Door | None = None
    control.on_view, control.on_renewed = follow, show_renewed
    state.figures_of_control = control.figures
    shown = _certificate(given)
    http, metrics = await _open_http(given, shown, endpoints, porter)
    data = await open_members_door(
        given.data_host,
        given.data_port,
        [*endpoints.routes(None), *blobs.routes()],
        context,
        callers,
        state.members_hosts,
    )
    grpc = await _open_grpc(given, shown, state, porter, inference, about, repository)
    others = (door.port if door is not None else 0 for door in (grpc, metrics))
    await control.say_ready(http.port, data.port, *others)
    tasks = [asyncio.create_task(control.report())]
    if shown is not None:
        tasks.append(asyncio.create_task(shown.follow()))
    state.lag.start()
    try:
        await control.serve()
    finally:
        for task in tasks:
            task.cancel()
        state.lag.stop()
        doors = [door.close() for door in (http, data, grpc, metrics) if door is not None]
        await asyncio.gather(*tasks, *doors, return_exceptions=True)
        for index in tuple(state.workers):
            state.detach(index)
        await members.close()
        channel.close()


def _certificate(given: argparse.Namespace) -> ServedCertificate | None:
    if given.http_certificate is None:
        return None
    return ServedCertificate(given.http_certificate, given.http_key)


async def _open_http(
    given: argparse.Namespace, shown: ServedCertificate | None, endpoints: Endpoints, porter: Porter
) -> tuple[Door, Door | None]:
    """The doors of the protocol and, if it is to have one of its own, of the counters."""
    how = {"names": given.http_name, "context": None if shown is None else shown.context}
    http = await open_door(given.http_host, given.http_port, endpoints.routes(porter), **how)
    if given.metrics_port < 0:
        return http, None
    routes = endpoints.routes(porter, METRICS)
    return http, await open_door(given.http_host, given.metrics_port, routes, **how)


async def _open_grpc(
    given: argparse.Namespace,
    shown: ServedCertificate | None,
    state: SiteState,
    porter: Porter,
    inference: Inference,
    about: About,
    repository: Repository,
) -> "GrpcDoor | None":
    if given.grpc_port < 0:
        return None
    from agent.gateway.grpc_door import GrpcDoor  # noqa: PLC0415 - 12 MiB that not every site needs

    door = GrpcDoor(state, porter, inference, about, repository)
    await door.open(given.http_host, given.grpc_port, shown)
    return door


def main(arguments: list[str] | None = None) -> int:
    """Run until the control process is gone; 0 then, 1 if the gateway cannot start."""
    given = _parse(arguments)
    exit_with_parent()
    memory.keep_free(KEPT_FREE_BYTES)
    logging.basicConfig(level=logging.INFO, format="gateway: %(levelname)s: %(message)s")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.get_loop().set_exception_handler(uvloop_library.heed)
            runner.run(serve(given))
    except (AtollError, OSError) as error:
        sys.stderr.write(f"gateway: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # no thread of a blob read may hold up the end
