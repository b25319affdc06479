"""Where this site's settings, socket and keys are."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cli.client import AdminClient
from agent.cli.parser import DEFAULT_CONFIG

if TYPE_CHECKING:
    from agent.config.settings import SiteSettings

DEFAULT_SOCKET = Path("/run/atoll/agent.sock")
"""Where the packaged unit puts it; a test compares it with the settings' own default."""


def config_path(asked: argparse.Namespace) -> Path:
    """The settings file: as given, else the packaged one."""
    given: Path | None = asked.config
    return DEFAULT_CONFIG if given is None else given


def config_option(asked: argparse.Namespace) -> str:
    """What the next command must be given to mean the same site; empty for the packaged one."""
    return "" if asked.config is None else f" --config {asked.config}"


def settings(asked: argparse.Namespace) -> "SiteSettings":
    """This site's settings.

    Raises:
        ConfigError: there are none, or they are wrong.
    """
    from agent.config.read import load  # noqa: PLC0415 - verbs with --socket do not need it

    return load(config_path(asked))


def admin_client(asked: argparse.Namespace) -> AdminClient:
    """A client of this site's agent: at ``--socket``, else where its settings say.

    Without ``--config`` a missing file is no error: an unpackaged agent may run with defaults.
    """
    given: Path | None = asked.socket
    if given is not None:
        return AdminClient(given)
    if asked.config is None and not DEFAULT_CONFIG.exists():
        return AdminClient(DEFAULT_SOCKET)
    return AdminClient(settings(asked).admin_socket)
