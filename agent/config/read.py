"""The configuration file to ``SiteSettings``: strict, all problems at once, each with its line."""

from collections.abc import Iterator
from pathlib import Path

from agent.config.settings import SiteSettings
from agent.foundation.errors import ConfigError
from agent.foundation.toml_reading import Problem, read_toml

DEFAULT_PATH = Path("/etc/atoll/atoll.toml")
FILE_BYTES_MAX = 1 << 20
"""A thousand times a usual file; refuses a device or a log given by mistake."""
SOCKET_PATH_BYTES_MAX = 107
"""``sun_path`` of Linux without its final zero (unix(7))."""


def load(path: Path = DEFAULT_PATH) -> SiteSettings:
    """Read and check the configuration file.

    Raises:
        ConfigError: the file is missing, unreadable, not TOML, or any key of it is wrong; the
            message holds every problem with its line.
    """
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no configuration at {path}",
            mend="found a cluster with 'atoll init', enter one with 'atoll join TOKEN', or name the"
            " file with --config",
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read",
            why=error.strerror or type(error).__name__,
            mend="check that it is a file and that this user may read it",
        ) from None
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"{path} is too long", why=f"the bound is {FILE_BYTES_MAX} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path} line {line} is not UTF-8", mend="save it as UTF-8") from None
    return parse(text, str(path))


def parse(text: str, source: str = "atoll.toml") -> SiteSettings:
    """Check the text of a configuration; ``source`` names it in errors.

    Raises:
        ConfigError: as ``load``.
    """
    return read_toml(SiteSettings, text, source, _problems_together)


def _problems_together(settings: SiteSettings) -> Iterator[Problem]:
    """What only several keys together can get wrong."""
    listen = settings.listen
    if listen.mesh_port == listen.data_port:
        yield Problem(
            ("listen", "data_port"),
            f"listen.data_port and listen.mesh_port are both {listen.data_port}; give each its own",
        )
    if listen.http_port in {listen.mesh_port, listen.data_port} and (
        listen.mesh_host in {listen.http_host, "auto"}
    ):
        yield Problem(
            ("listen", "http_port"),
            f"listen.http_port {listen.http_port} is a port of the mesh too; give each its own",
        )
    if (listen.http_certificate is None) != (listen.http_key is None):
        lacking, given = "http_key", "http_certificate"
        if listen.http_key is not None:
            lacking, given = given, lacking
        yield Problem(("listen", given), f"listen.{given} needs listen.{lacking} beside it")
    taken = {listen.http_port, listen.mesh_port, listen.data_port}
    for key in ("grpc_port", "metrics_port"):
        port = getattr(listen, key)
        if port in taken:
            yield Problem(
                ("listen", key),
                f"listen.{key} {port} is another port of this site; give each its own (0: none)",
            )
        taken.add(port or -1)
    if listen.mesh_host in {"0.0.0.0", "::"}:  # noqa: S104 - refused here, not bound
        yield Problem(
            ("listen", "mesh_host"),
            f"listen.mesh_host {listen.mesh_host!r} is no address that can be announced; write the"
            " one at which other sites reach this one, or 'auto'",
        )
    names = [share.rpartition("=")[0] for share in settings.serving.shares]
    for name in sorted({one for one in names if names.count(one) > 1}):
        yield Problem(("serving", "shares"), f"serving.shares has {name!r} twice; give it once")
    socket_bytes = len(bytes(settings.admin_socket))
    if socket_bytes > SOCKET_PATH_BYTES_MAX:
        yield Problem(
            ("site", "runtime_dir" if settings.site.runtime_dir else "state_dir"),
            f"the admin socket {settings.admin_socket} is {socket_bytes} bytes long; Linux takes"
            f" {SOCKET_PATH_BYTES_MAX}: set a shorter site.runtime_dir",
        )
