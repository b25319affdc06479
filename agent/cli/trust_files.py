"""What a change of the trust log starts from, and where it goes: this site's agent, or files.

Files are for a machine that has the root key and this command line and nothing else: the log comes on
one (``atoll trust export``, ``atoll issuer request``), the signed entry goes back on another
(``atoll trust import``). Neither holds a secret.
"""

import base64
import binascii
import getpass
import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.cli.client import AdminClient
from agent.cli.lifecycle import PASSPHRASE_CHARS_MAX
from agent.cli.site_files import settings
from agent.drivers import keystore
from agent.foundation.errors import AtollError, ConfigError, Malformed, NotFound, UsageError
from agent.foundation.ids import SiteId, short
from agent.identity.certificates import RootKey, cluster_id
from agent.identity.trust import TrustLog
from agent.identity.trust_entries import Genesis, read_entry

Json = dict[str, Any]

LOG_KIND, ENTRIES_KIND = "atoll trust log 1", "atoll trust entries 1"
FILE_BYTES_MAX = 16 << 20
"""The largest trust log is about 3 MB."""


@dataclass(frozen=True, slots=True)
class Known:
    """The trust log, proven again here, and what a site knows of names."""

    log: TrustLog = field(repr=False)
    sites: tuple[Json, ...]
    """id, name, issuer and self of each member."""
    issuers: tuple[Json, ...]
    """See ``agent.api.trust.report``."""
    revoked: tuple[Json, ...] = ()
    """See ``agent.api.trust.report``."""
    request: bytes = b""
    """A packed ``IssuerRequest`` that came with it."""

    def find(self, text: str) -> tuple[SiteId, str]:
        """The id and name of a member, by name or by the beginning of its id.

        Raises:
            NotFound: no member is called so. UsageError: several are.
        """
        found: list[Json] = []
        gone = [row for row in self.revoked if row["kind"] == "site"]
        for rows in (self.sites, gone):  # a reinstalled site's name means the present one
            found = found or [row for row in rows if row["name"] == text]
        for rows in (self.sites, gone):
            found = found or [row for row in rows if str(row["id"]).startswith(text)]
        if len(found) > 1:
            which = ", ".join(f"{row['name']} {str(row['id'])[:16]}" for row in found)
            raise UsageError(f"{text} names several sites: {which}", mend="give more of the id")
        if found:
            return SiteId(bytes.fromhex(str(found[0]["id"]))), str(found[0]["name"])
        if len(text) == 64:  # noqa: PLR2004 - SHA-256 in hex: somebody knows better than this site
            return SiteId(bytes.fromhex(text)), ""
        raise NotFound(
            f"no site {text} is known here",
            mend="`atoll members` lists them; a site never met here can be given by its whole id",
        )


def from_agent(client: AdminClient) -> Known:
    """As this site's agent knows it.

    Raises:
        Malformed: what it says does not hold together.
    """
    told = client.get("/1/trust")
    entries = _decoded(client.get("/1/trust/entries")["entries"])
    sites, issuers, revoked = (tuple(told[key]) for key in ("sites", "issuers", "revoked"))
    return Known(_proven(entries), sites, issuers, revoked)


def from_file(path: Path) -> Known:
    """As a file of ``atoll trust export`` or ``atoll issuer request`` has it.

    Raises:
        UsageError: it is no such file.
    """
    value = _read(path, LOG_KIND)
    request = _decoded([value["request"]])[0] if value.get("request") else b""
    sites, issuers = value.get("sites", []), value.get("issuers", [])
    log = _proven(_decoded(value["entries"]))
    return Known(log, tuple(sites), tuple(issuers), request=request)


def source(asked: Namespace, client: AdminClient) -> Known:
    """From ``--log``, else from the agent."""
    return from_agent(client) if asked.log is None else from_file(asked.log)


def write_log(client: AdminClient, out: Path | None, request: bytes = b"") -> None:
    """Write what ``from_file`` reads."""
    told = client.get("/1/trust")
    value = {
        "kind": LOG_KIND,
        "entries": client.get("/1/trust/entries")["entries"],
        "sites": told["sites"],
        "issuers": told["issuers"],
    }
    if request:
        value["request"] = base64.b64encode(request).decode()
    _write(value, out)


def write_entries(entries: Sequence[bytes], out: Path | None) -> None:
    """Write what ``read_entries`` reads."""
    encoded = [base64.b64encode(entry).decode() for entry in entries]
    _write({"kind": ENTRIES_KIND, "entries": encoded}, out)


def read_entries(path: Path) -> list[bytes]:
    """Signed entries from a file.

    Raises:
        UsageError: it is no such file.
    """
    return _decoded(_read(path, ENTRIES_KIND)["entries"])


def submit(client: AdminClient, entries: Sequence[bytes]) -> str:
    """Give entries to this site's agent; why the first that it did not take was not (empty: all were)."""
    encoded = [base64.b64encode(entry).decode() for entry in entries]
    results = client.post("/1/trust/entries", {"entries": encoded})["results"]
    return next((str(row["reason"]) for row in results if not row["accepted"]), "")


def open_root(asked: Namespace) -> RootKey:
    """The root key of ``--root-key``, else where ``atoll init`` has put it; read, never copied.

    Raises:
        ConfigError: it is not there, or does not open.
        UsageError: there is no passphrase.
    """
    path: Path | None = asked.root_key
    if path is None:
        path = settings(asked).identity_dir / "operator" / "root.key"
    if not path.exists():
        raise ConfigError(
            f"there is no root key at {path}",
            why="only the cluster's root may change its issuers or mend its trust log",
            mend="bring it and name it with --root-key FILE; or sign where it is: see"
            " `atoll trust export` and `atoll trust import`",
        )
    return keystore.load_root(path, _passphrase(asked.passphrase_file))


def _passphrase(given: Path | None) -> str:
    if given is None:
        if not sys.stdin.isatty():
            raise UsageError(
                "the root key needs its passphrase",
                why="there is no terminal to ask for it on",
                mend="give --passphrase-file FILE",
            )
        return getpass.getpass("Passphrase of the cluster's root key: ")
    try:
        with given.open(encoding="utf-8") as file:
            return file.readline(PASSPHRASE_CHARS_MAX).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{given} cannot be read", why=str(error)) from error


def _proven(entries: Sequence[bytes]) -> TrustLog:
    """The log of these entries, every signature checked from the root's on."""
    for data in entries:
        action = read_entry(data)[1]
        if isinstance(action, Genesis):
            log = TrustLog(cluster_id(action.root))
            break
    else:
        raise Malformed("the trust log has no genesis", mend="is this site's agent in order?")
    try:
        log.learn(entries)
    except AtollError as error:
        raise Malformed(
            f"the trust log of cluster {short(log.cluster)} does not hold together",
            why=str(error),
            mend="`atoll doctor` at the site it came from",
        ) from error
    return log


def _decoded(texts: Sequence[str]) -> list[bytes]:
    try:
        return [base64.b64decode(text, validate=True) for text in texts]
    except (binascii.Error, TypeError, ValueError):
        raise Malformed("an entry of the trust log is not base64") from None


def _read(path: Path, kind: str) -> Json:
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(FILE_BYTES_MAX))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read", why=str(error)) from error
    if not isinstance(value, dict) or value.get("kind") != kind:
        raise UsageError(f"{path} is not a file of kind {kind!r}", mend="give the other one")
    return value


def _write(value: Json, out: Path | None) -> None:
    text = json.dumps(value, indent=1) + "\n"
    if out is None:
        sys.stdout.write(text)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{out} cannot be written", why=str(error.strerror)) from error
