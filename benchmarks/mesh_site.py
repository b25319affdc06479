"""A site's real control process without its gateway and model worker, told what to do on stdin.

Forty whole sites on two cores would measure how fast Python starts 120 processes. This runs the daemon
of ``atoll run`` itself (identity, SQLite with fsync, gossip socket, TLS server, mDNS, machine, admin
socket); only the two children are left out. Commands, one a line:

    seed HOST     a seed address becomes known now
    watch         from now on write "rumor NAME STATUS" when another site's record says so, and
                  "catalog DIGEST COUNT" when this site's catalog has changed
    drain 0|1     change this site's own record
    profile       record with cProfile from now on; written beside the state folder at SIGTERM

Run: python benchmarks/mesh_site.py CONFIG     (benchmarks/bench_mesh.py does)
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.drivers import memory

with memory.importing():
    import agent.daemon.run as daemon
    from agent.cli.main import main as atoll
    from agent.daemon.driver import Driver
    from agent.daemon.inference import Inference
    from agent.foundation.ids import Digest, SiteId
    from agent.site.events import Discovered, DrainRequested, LoadModel, UnloadModel
    from agent.wire.records import Endpoint

if TYPE_CHECKING:
    import cProfile

COMMAND_BYTES_MAX = 4096


def say(text: str) -> None:
    """One line, at once, to where the log goes."""
    os.write(2, f"{text}\n".encode())


class NoChildren(Inference):
    """Starts nothing; what would go to the gateway is where rumors are seen to arrive."""

    watched: "Childless | None" = None

    def start(self) -> None:
        self.gateway_ready.set()

    async def stop(self) -> None:
        pass

    def model(self, effect: LoadModel | UnloadModel) -> None:
        pass

    def label(self, digest: Digest, residency: tuple[str, ...]) -> None:
        pass

    def view_changed(self) -> None:
        if self.watched is not None:
            self.watched.look()


class Childless(daemon._Daemon):  # noqa: SLF001 - the daemon itself, with one part replaced
    """One run."""

    _last: dict[SiteId, str]
    _is_watching = False
    _catalog = b""
    profiler: "cProfile.Profile | None" = None

    async def _become_ready(self, *parts: Any) -> None:
        self._last = {}
        NoChildren.watched = self
        asyncio.get_running_loop().add_reader(0, self._command)
        await super()._become_ready(*parts)

    def look(self) -> None:
        """Write what the records of other sites say now, where that is new."""
        if not self._is_watching:
            return
        site = self._driver.site
        if (digest := site.catalog.digest8) != self._catalog:
            self._catalog = digest
            say(f"catalog {digest.hex()} {len(site.catalog)}")
        for member in site.swim.members().values():
            status = member.record.status
            if self._last.get(member.site) != status:
                self._last[member.site] = status
                identity = site.roll.get(member.site)
                if identity is not None:
                    say(f"rumor {identity.claims.name} {status}")

    def _command(self) -> None:
        data = os.read(0, COMMAND_BYTES_MAX)
        if not data:
            asyncio.get_running_loop().remove_reader(0)
        for line in data.decode().splitlines():
            self._obey(self._driver, *line.split())

    def _obey(self, driver: Driver, verb: str, *more: str) -> None:
        if verb == "seed":
            driver.feed(Discovered(Endpoint(more[0], 7411, 7412), "seed"))
        elif verb == "watch":
            self._is_watching = True
            self.look()
        elif verb == "drain":
            driver.feed(DrainRequested(more[0] == "1"))
        elif verb == "profile":
            import cProfile

            Childless.profiler = cProfile.Profile()
            Childless.profiler.enable()


def main() -> int:
    """As ``atoll run --config CONFIG``."""
    vars(daemon)["Inference"] = NoChildren
    vars(daemon)["_Daemon"] = Childless
    config = Path(sys.argv[1])
    try:
        return atoll(["run", "--config", str(config)])
    finally:
        if Childless.profiler is not None:
            Childless.profiler.dump_stats(config.with_suffix(".profile"))


if __name__ == "__main__":
    sys.exit(main())
