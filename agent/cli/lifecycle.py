"""A site's life: found a cluster, run, admit others, drain, leave."""

import argparse
import getpass
import sys
from pathlib import Path

from agent import __version__
from agent.cli.output import print_json, span
from agent.cli.site_files import admin_client, config_path, settings
from agent.cli.text_files import unreadable
from agent.foundation.errors import AtollError, UsageError

PASSPHRASE_CHARS_MIN = 8
"""It protects a key that must never be on line; scrypt slows guessing down."""
PASSPHRASE_CHARS_MAX = 1024
LOAD_TIMEOUT_S = 90.0
"""The agent waits less than a minute for a model, and says then how it is."""


def init(asked: argparse.Namespace) -> int:
    """Found a cluster whose first site is this machine."""
    from agent.cli.founding import found  # noqa: PLC0415 - cryptography and the store

    found(asked, passphrase(asked.passphrase_file))
    return 0


def create_token(asked: argparse.Namespace) -> int:
    """Print a token that admits one site, once."""
    client = admin_client(asked)
    living = [
        row["site"][:8]
        for row in client.get("/1/members")["members"]
        if row["name"] == asked.name and row["status"] in ("alive", "draining", "suspect")
    ]
    answer = client.post(
        "/1/tokens",
        {
            "name": asked.name,
            "region": asked.region,
            "tier": asked.tier,
            "jurisdiction": asked.jurisdiction,
            "roles": asked.roles,
            "ttl_s": asked.ttl,
            "life_s": int(asked.life),
        },
    )
    if asked.json:
        print_json(answer)
        return 0
    print(answer["token"])
    if living:
        print(
            f"note: {asked.name} ({', '.join(living)}) is alive now; whoever joins with this token"
            " takes its place, and it is retired",
            file=sys.stderr,
        )
    if sys.stdout.isatty():
        print(
            f"Within {span(asked.ttl)}, on the machine that is to be {asked.name}:\n"
            "  atoll join TOKEN\n"
            "Whoever has the token can take that name; it works once.",
            file=sys.stderr,
        )
    return 0


def run(asked: argparse.Namespace) -> int:
    """Run the agent until it is told to stop."""
    from agent.drivers import memory  # noqa: PLC0415 - not for the other verbs

    with memory.importing():
        from agent.daemon.run import main as run_agent  # noqa: PLC0415 - the whole agent

    return run_agent(settings(asked))


def drain(asked: argparse.Namespace) -> int:
    """Take no more work from other sites; this site's own applications are served as before."""
    return _set_draining(asked, draining=True)


def undrain(asked: argparse.Namespace) -> int:
    """Take work from other sites again."""
    return _set_draining(asked, draining=False)


def release_model(asked: argparse.Namespace) -> int:
    """Try a model again that this site refused or quarantined."""
    before = admin_client(asked).post("/1/models/release", {"model": asked.model})
    if asked.json:
        print_json(before)
    elif before["state"] == "refused":
        print(f"{asked.model} is tried again; it was refused: {before['reason']}")
    else:
        print(f"{asked.model} is {before['state']}: nothing held it back")
    return 0


def load_model(asked: argparse.Namespace) -> int:
    """Serve a model at this site, also against the catalog's plan."""
    return _control(asked, "load", f"{asked.model} is ready here")


def unload_model(asked: argparse.Namespace) -> int:
    """Serve a model at this site no more, whatever the catalog's plan is."""
    return _control(
        asked,
        "unload",
        f"{asked.model} is not served here any more, until atoll model load {asked.model}",
    )


def _control(asked: argparse.Namespace, word: str, done: str) -> int:
    answer = admin_client(asked).post(
        f"/1/models/{word}", {"model": asked.model}, timeout_s=LOAD_TIMEOUT_S
    )
    if asked.json:
        print_json(answer)
    else:
        print(done)
    return 0


def _set_draining(asked: argparse.Namespace, *, draining: bool) -> int:
    answer = admin_client(asked).post("/1/draining", {"draining": draining})
    if asked.json:
        print_json(answer)
    else:
        print("draining: no new work from other sites" if draining else "taking work again")
    return 0


def leave(asked: argparse.Namespace) -> int:
    """Say goodbye and stop; `atoll run` brings the site back under the same identity."""
    admin_client(asked).post("/1/leave")
    if not asked.json:
        print("left: the other sites know; the agent stops")
    return 0


def stop(asked: argparse.Namespace) -> int:
    """Stop the agent without goodbye, as a reboot would."""
    admin_client(asked).post("/1/stop")
    if not asked.json:
        print("the agent stops")
    return 0


def version(asked: argparse.Namespace) -> int:
    """Print the version."""
    if asked.json:
        print_json({"version": __version__})
    else:
        print(f"atoll {__version__}")
    return 0


def demo(asked: argparse.Namespace) -> int:
    """Run a small cluster on this machine."""
    from agent.cli.demo import main as run_demo  # noqa: PLC0415 - starts a whole cluster

    return int(run_demo(asked.arguments))


def passphrase(source: Path | None) -> str:
    """The passphrase of the root key: the first line of ``source``, else asked for twice.

    Raises:
        UsageError: there is no terminal to ask on, the two differ, or it is too short.
    """
    if source is None:
        if not sys.stdin.isatty():
            raise UsageError(
                "the cluster's root key needs a passphrase",
                why="there is no terminal to ask for one on",
                mend="give --passphrase-file FILE",
            )
        text = getpass.getpass("Passphrase for the cluster's root key: ")
        if getpass.getpass("Again: ") != text:
            raise UsageError("the two passphrases differ")
    else:
        try:
            with source.open(encoding="utf-8") as file:
                text = file.readline(PASSPHRASE_CHARS_MAX).rstrip("\r\n")
        except OSError as error:
            raise unreadable(source, error) from None
        except UnicodeDecodeError:
            raise UsageError(f"{source} is not text in UTF-8") from None
    if len(text) < PASSPHRASE_CHARS_MIN:
        raise UsageError(
            f"the passphrase has {len(text)} characters",
            why=f"at least {PASSPHRASE_CHARS_MIN} are needed: it protects the whole cluster",
        )
    return text


def write_settings(asked: argparse.Namespace, values: dict[str, object]) -> bool:
    """Write a commented settings file with ``values`` set, unless there is one already.

    Returns:
        Whether it was written.
    """
    from agent.config.example import render  # noqa: PLC0415 - only founding and joining need it

    path = config_path(asked)
    if path.exists():
        return False
    text = render(values)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise AtollError(
            f"{path} cannot be written",
            why=str(error.strerror),
            mend="run this as root, or name another file with --config",
        ) from error
    return True
