"""What founding and joining share: where a new site's files go, and whose they are."""

import argparse
import os
import pwd
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from agent.cli.site_files import config_path
from agent.config.read import load
from agent.config.settings import STATE_DIR, SiteSettings
from agent.foundation.errors import ConfigError, UsageError

SERVICE_USER = "atoll"
"""The packaged unit's user."""


def settings_to_be(asked: argparse.Namespace) -> SiteSettings:
    """The settings in the file, if there is one; else the defaults with ``--state-dir``.

    Raises:
        ConfigError: the file is there and wrong.
        UsageError: the file says another state folder than the command line.
    """
    path = config_path(asked)
    wanted: Path | None = asked.state_dir
    if path.exists():
        settings = load(path)
        if wanted not in (None, settings.state_dir):
            raise UsageError(
                f"--state-dir {wanted} contradicts {path}",
                why=f"it says {settings.state_dir}",
                mend="change the file, or leave the option out",
            )
        return settings
    defaults = SiteSettings()
    return replace(defaults, site=replace(defaults.site, state_dir=wanted or STATE_DIR))


def make_state_dir(settings: SiteSettings) -> None:
    """Make the state folder, which nobody but its owner may look into.

    Raises:
        ConfigError: it cannot be made.
    """
    folder = settings.state_dir
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the state folder {folder} cannot be made",
            why=error.strerror or str(error),
            mend="run this as root, or name another folder with --state-dir",
        ) from error


def adopt(settings: SiteSettings) -> None:
    """Give what root has made to the user that will run the agent.

    That is the owner of the state folder, or the packaged user for the packaged folder. Does
    nothing when not root: then the files are the right user's already.
    """
    if os.geteuid() != 0:
        return
    folder = settings.state_dir
    owner = folder.stat()
    uid, gid = owner.st_uid, owner.st_gid
    if uid == 0 and folder == STATE_DIR:
        try:
            user = pwd.getpwnam(SERVICE_USER)
        except KeyError:
            return
        uid, gid = user.pw_uid, user.pw_gid
    if uid == 0:
        return
    for path in _made(settings):
        os.chown(path, uid, gid, follow_symlinks=False)


def _made(settings: SiteSettings) -> Iterator[Path]:
    yield settings.state_dir
    yield from settings.store_path.parent.glob(f"{settings.store_path.name}*")
    if settings.identity_dir.is_dir():
        yield settings.identity_dir
        yield from settings.identity_dir.rglob("*")
