"""The identity folder: a site's keys and certificates on disk.

Rule: a private key is in a file that only its owner can read, it is never copied or logged, and a
folder is either whole or not there: founding builds a sibling folder and renames it, and joining
writes ``chain.pem`` last, so that a site without it has not joined.

=========================  =========================================================================
file                       holds
=========================  =========================================================================
``site.key``               the site's Ed25519 key (PKCS8 PEM); its hash is the site's id
``gossip.key``             the site's X25519 key (PKCS8 PEM)
``chain.pem``              the site's certificate, then its issuer's
``root.pem``               the cluster's root certificate
``trust.log``              the trust log as of founding or joining; the store's table takes over
``issuer.key, .pem``       on sites that admit others
``issuer.new.key``         made here, and not certified by the root yet
``admin.key``              where an operator works: signs documents and revocations
``operator/root.key``      encrypted; move it (with ``operator/root.pem``) off the site
=========================  =========================================================================
"""

import contextlib
import hashlib
import os
import shutil
import stat
from base64 import b64encode
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from agent.foundation.errors import AtollError, ConfigError
from agent.foundation.ids import SiteId
from agent.foundation.randomness import Entropy
from agent.identity.certificates import (
    Identity,
    IssuerKey,
    RootKey,
    cluster_id,
    issue_site,
    key_id,
    make_issuer,
    make_root,
    read_issuer,
    read_passport,
    site_id,
)
from agent.identity.claims import Claims, check_place
from agent.identity.trust import TrustLog
from agent.identity.trust_entries import ENTRY_BYTES_MAX, HEIGHT_MAX, Genesis
from agent.identity.trust_signing import sign_entry
from agent.wire.records import Passport
from agent.wire.schema import AtMost, pack, unpack

PASSPHRASE_CHARS_MIN = 8
"""NIST SP 800-63B 5.1.1.2; scrypt below makes each guess cost 32 MiB and about 0.1 s."""
FILE_BYTES_MAX = 16 << 20
"""The largest file here is the trust log."""

_ISSUER_TO_BE = "issuer.new.key"
_PRIVATE = 0o600
_FOLDER = 0o700
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 2**15, 8, 1


@dataclass(frozen=True, slots=True)
class SiteKeys:
    """Everything in one identity folder, proven to fit together; says nothing about expiry."""

    directory: Path
    identity: Identity
    site_private: Ed25519PrivateKey = field(repr=False)
    gossip_private: X25519PrivateKey = field(repr=False)
    chain: tuple[bytes, ...] = field(repr=False)
    """Leaf, then issuer; DER."""
    root: bytes = field(repr=False)
    """DER."""
    trust: tuple[bytes, ...] = field(repr=False)
    """Packed trust log entries as of founding or joining."""
    issuer: IssuerKey | None = field(repr=False)
    admin: Ed25519PrivateKey | None = field(repr=False)

    @property
    def site(self) -> SiteId:
        """This site's id."""
        return self.identity.site

    @property
    def cluster(self) -> bytes:
        """The cluster's id (SHA-256 of the root's SPKI)."""
        return self.identity.claims.cluster

    @property
    def passport(self) -> Passport:
        """What this site shows to others."""
        return Passport(self.chain)


@dataclass(frozen=True, slots=True)
class FoundingResult:
    """A new cluster of one site."""

    keys: SiteKeys
    genesis: bytes
    """The first trust log entry, packed (also ``keys.trust[0]``)."""
    root_key: Path
    """The encrypted root key; to be moved off the site."""
    admin_key: Path


@dataclass(frozen=True, slots=True)
class JoinKeys:
    """The keys of a site that has not joined yet."""

    directory: Path
    site_private: Ed25519PrivateKey = field(repr=False)
    gossip_private: X25519PrivateKey = field(repr=False)


@dataclass(frozen=True, slots=True)
class _StoredTrust:
    entries: Annotated[tuple[Annotated[bytes, AtMost(ENTRY_BYTES_MAX)], ...], AtMost(HEIGHT_MAX)]


# --- founding and joining ------------------------------------------------------------------------
def found_cluster(
    directory: Path,
    *,
    name: str,
    region: str,
    tier: str,
    jurisdiction: str,
    roles: tuple[str, ...],
    passphrase: str,
    now: datetime,
    jurisdictions: tuple[str, ...] = (),
    entropy: Entropy = os.urandom,
) -> FoundingResult:
    """Make a cluster: root, first issuer, first admin and first site, all in ``directory``.

    Args:
        directory: the identity folder; must not exist or be empty.
        name: of the site; region, tier, jurisdiction and roles as its certificate will say.
        region: see ``name``.
        tier: edge, regional or core.
        jurisdiction: see ``name``.
        roles: see ``name``.
        passphrase: encrypts the root key; at least ``PASSPHRASE_CHARS_MIN`` characters.
        now: wall-clock time, with time zone.
        jurisdictions: the only labels issuers may use; empty = any.
        entropy: of the operating system.

    Raises:
        ConfigError: the folder is in use or cannot be written, or the passphrase is too short.
        UsageError: a name or label cannot be used.
    """
    known_tier = check_place(name, region, tier, jurisdiction, roles)
    _require_unused(directory)
    if len(passphrase) < PASSPHRASE_CHARS_MIN:
        raise ConfigError(
            "the passphrase of the root key is too short",
            why=f"it needs {PASSPHRASE_CHARS_MIN} characters; whoever reads the file can guess at leisure",
            mend="choose a longer one",
        )
    root = make_root(entropy, now)
    issuer = make_issuer(root, entropy, now)
    site = Ed25519PrivateKey.from_private_bytes(entropy(32))
    admin = Ed25519PrivateKey.from_private_bytes(entropy(32))
    gossip = X25519PrivateKey.from_private_bytes(entropy(32))
    cluster = cluster_id(root.certificate)
    claims = Claims(
        cluster,
        name,
        region,
        known_tier,
        jurisdiction,
        roles,
        gossip.public_key().public_bytes_raw(),
    )
    leaf = issue_site(issuer, site.public_key(), claims, now)
    log = TrustLog(cluster)
    admin_raw = admin.public_key().public_bytes_raw()
    founder = bytes(site_id(site.public_key()))
    action = Genesis(root.certificate, issuer.certificate, admin_raw, jurisdictions, founder)
    genesis = sign_entry(log, action, root.private_key, now)
    log.append(genesis)
    staged = directory.with_name(directory.name + ".founding")
    with _explained(directory):
        shutil.rmtree(staged, ignore_errors=True)  # of a founding that was cut off; never used
        staged.mkdir(mode=_FOLDER, parents=True)
        (staged / "operator").mkdir(mode=_FOLDER)
        root_pem = _pem(root.certificate)
        _write(staged / "site.key", _private_pem(site))
        _write(staged / "gossip.key", _private_pem(gossip))
        _write(staged / "issuer.key", _private_pem(issuer.private_key))
        _write(staged / "issuer.pem", _pem(issuer.certificate))
        _write(staged / "admin.key", _private_pem(admin))
        _write(staged / "operator" / "root.key", _encrypted_pem(root.private_key, passphrase))
        _write(staged / "operator" / "root.pem", root_pem)
        _write(staged / "root.pem", root_pem)
        _write(staged / "trust.log", pack(_StoredTrust((genesis,))))
        _write(staged / "chain.pem", _pem(leaf, issuer.certificate))
        staged.rename(directory)
        _sync_folder(directory.parent)
    return FoundingResult(
        load(directory), genesis, directory / "operator" / "root.key", directory / "admin.key"
    )


def prepare_join(directory: Path, *, entropy: Entropy = os.urandom) -> JoinKeys:
    """The keys of a site about to join: made now, or those of a join that was cut off.

    Keeping them lets a join whose answer was lost be repeated: the issuer knows the key.

    Raises:
        ConfigError: the folder already holds a member's identity, or is damaged.
    """
    if (directory / "chain.pem").exists():
        raise _in_use(directory)
    with _explained(directory):
        directory.mkdir(mode=_FOLDER, parents=True, exist_ok=True)
        directory.chmod(_FOLDER)
        if not (directory / "site.key").exists():
            site = Ed25519PrivateKey.from_private_bytes(entropy(32))
            _write(directory / "site.key", _private_pem(site))
        if not (directory / "gossip.key").exists():
            gossip = X25519PrivateKey.from_private_bytes(entropy(32))
            _write(directory / "gossip.key", _private_pem(gossip))
    return JoinKeys(
        directory,
        _load_ed25519(directory / "site.key"),
        _load_x25519(directory / "gossip.key"),
    )


def complete_join(
    directory: Path, *, chain: tuple[bytes, ...], root: bytes, trust: tuple[bytes, ...]
) -> SiteKeys:
    """Store what the issuer answered, after ``agent.identity.tokens.accept_reply`` has proven it.

    Raises:
        ConfigError: the folder cannot be written, or the answer is not for the keys in it.
    """
    with _explained(directory):
        _write(directory / "root.pem", _pem(root))
        _write(directory / "trust.log", pack(_StoredTrust(trust)))
        _write(directory / "chain.pem", _pem(*chain))
    return load(directory)


def store_chain(keys: SiteKeys, chain: tuple[bytes, ...]) -> SiteKeys:
    """Replace the certificate after a renewal; the keys with it.

    The keys stay, so whenever the power goes the folder holds the old pair or the new one.

    Raises:
        ConfigError: the folder cannot be written.
        Malformed, Refused: the chain is not this cluster's; nothing was written.
    """
    renewed = read_passport(Passport(chain), keys.root)
    own = keys.identity
    if (renewed.site, renewed.claims.gossip_key) != (own.site, own.claims.gossip_key):
        raise ConfigError("the renewed certificate is for another key", mend="renew again")
    with _explained(keys.directory):
        _write(keys.directory / "chain.pem", _pem(*chain))
    return replace(keys, chain=chain, identity=renewed)


def reload_chain(keys: SiteKeys) -> SiteKeys:
    """The keys with the certificate that is in the folder now: another process has renewed it.

    Raises:
        ConfigError: the file is missing or damaged, or is not for these keys.
    """
    path = keys.directory / "chain.pem"
    chain = _load_certificates(path)
    try:
        identity = read_passport(Passport(chain), keys.root)
    except AtollError as error:
        raise _damaged(path, str(error)) from error
    own = keys.identity
    if (identity.site, identity.claims.gossip_key) != (own.site, own.claims.gossip_key):
        raise _damaged(path, "it does not certify this site's keys")
    return replace(keys, chain=chain, identity=identity)


def prepare_issuer(keys: SiteKeys, removed: Collection[bytes] = ()) -> Ed25519PrivateKey:
    """The key with which this site is, or may become, an issuer; durable when this returns.

    It is the one that the root has certified already, else one that is kept in ``issuer.new.key``
    until then. One of the ``removed`` keys is never offered again.

    Raises:
        ConfigError: the folder cannot be read or written.
    """
    if keys.issuer is not None and key_id(keys.issuer.private_key.public_key()) not in removed:
        return keys.issuer.private_key
    path = keys.directory / _ISSUER_TO_BE
    with _explained(keys.directory):
        if path.exists():
            made = _load_ed25519(path)
            if key_id(made.public_key()) not in removed:
                return made
        made = Ed25519PrivateKey.generate()
        _write(path, _private_pem(made))
    return made


def issuer_to_be(keys: SiteKeys) -> Ed25519PrivateKey | None:
    """The key of ``prepare_issuer`` that waits for its certificate, else the certified one.

    Raises:
        ConfigError: a file is there and cannot be used.
    """
    path = keys.directory / _ISSUER_TO_BE
    if path.exists():
        return _load_ed25519(path)
    return None if keys.issuer is None else keys.issuer.private_key


def store_issuer(keys: SiteKeys, issuer: IssuerKey) -> SiteKeys:
    """Make this site an issuer, with a key that the root has certified; loads the folder again.

    Raises:
        ConfigError: the folder cannot be written.
        Malformed, Refused: the root of this cluster has not certified it; nothing was written.
    """
    if read_issuer(issuer.certificate, keys.root) != key_id(issuer.private_key.public_key()):
        raise ConfigError("the issuer certificate is for another key", mend="certify this one")
    with _explained(keys.directory):
        # Between the two lines the pair would not fit: the certificate of the former key is first
        # taken away, and a key without certificate is no issuer (``_load_issuer``).
        if keys.issuer is None or keys.issuer.private_key != issuer.private_key:
            (keys.directory / "issuer.pem").unlink(missing_ok=True)
        _write(keys.directory / "issuer.key", _private_pem(issuer.private_key))
        _write(keys.directory / "issuer.pem", _pem(issuer.certificate))
        (keys.directory / _ISSUER_TO_BE).unlink(missing_ok=True)
    return replace(keys, issuer=issuer)


# --- loading -------------------------------------------------------------------------------------
def load(directory: Path) -> SiteKeys:
    """The identity in ``directory``, checked as a whole.

    An expired certificate loads: the site starts, serves its own applications and renews.

    Raises:
        ConfigError: a file is missing, damaged, readable by others, or does not fit the rest; names
            the file and what to do.
    """
    if not (directory / "chain.pem").exists():
        raise ConfigError(
            f"no identity in {directory}",
            why="chain.pem is missing: this site has neither founded nor joined a cluster",
            mend="run atoll init, or atoll join with a token; if it was a member, restore the folder from a backup",
        )
    site = _load_ed25519(directory / "site.key")
    gossip = _load_x25519(directory / "gossip.key")
    chain = _load_certificates(directory / "chain.pem")
    root = _load_certificates(directory / "root.pem")[0]
    try:
        identity = read_passport(Passport(chain), root)
    except AtollError as error:
        raise _damaged(directory / "chain.pem", str(error)) from error
    if identity.site != site_id(site.public_key()):
        raise _damaged(directory / "site.key", "it is not the key that chain.pem certifies")
    if identity.claims.gossip_key != gossip.public_key().public_bytes_raw():
        raise _damaged(directory / "gossip.key", "it is not the key that chain.pem certifies")
    return SiteKeys(
        directory=directory,
        identity=identity,
        site_private=site,
        gossip_private=gossip,
        chain=chain,
        root=root,
        trust=_load_trust(directory / "trust.log", identity.claims.cluster),
        issuer=_load_issuer(directory, root),
        admin=load_admin(directory / "admin.key") if (directory / "admin.key").exists() else None,
    )


def load_admin(path: Path) -> Ed25519PrivateKey:
    """An admin key, wherever the operator keeps it.

    Raises:
        ConfigError: missing, damaged, or readable by others.
    """
    return _load_ed25519(path)


def make_admin(path: Path, *, entropy: Entropy = os.urandom) -> Ed25519PrivateKey:
    """A new admin key in a file of its own, readable by its owner only.

    Raises:
        ConfigError: something is there already, or the folder cannot be written.
    """
    if path.exists():
        raise ConfigError(f"{path} is there already", mend="name another file")
    key = Ed25519PrivateKey.from_private_bytes(entropy(32))
    with _explained(path.parent):
        _write(path, _private_pem(key))
    return key


def load_root(path: Path, passphrase: str) -> RootKey:
    """The root key; ``root.pem`` must lie beside it.

    Raises:
        ConfigError: missing, damaged, readable by others, or the passphrase is wrong.
    """
    certificate = _load_certificates(path.with_name("root.pem"))[0]
    data = _read(path, is_private=True)
    try:
        cluster = cluster_id(certificate)
        key = load_pem_private_key(data, _stretched(passphrase, cluster))
    except (AtollError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} does not open",
            why="the passphrase is wrong or the file is damaged",
            mend="try the passphrase again, or another copy of the file",
        ) from error
    if not isinstance(key, Ed25519PrivateKey) or key_id(key.public_key()) != cluster:
        raise _damaged(path, "it is not the key of the root.pem beside it")
    return RootKey(key, certificate)


def _load_issuer(directory: Path, root: bytes) -> IssuerKey | None:
    if not (directory / "issuer.key").exists() or not (directory / "issuer.pem").exists():
        return None
    key = _load_ed25519(directory / "issuer.key")
    certificate = _load_certificates(directory / "issuer.pem")[0]
    try:
        issuer = read_issuer(certificate, root)
    except AtollError as error:
        raise _damaged(directory / "issuer.pem", str(error)) from error
    if issuer != key_id(key.public_key()):
        raise _damaged(directory / "issuer.key", "it is not the key that issuer.pem certifies")
    return IssuerKey(key, certificate)


def _load_trust(path: Path, cluster: bytes) -> tuple[bytes, ...]:
    data = _read(path, is_private=False)
    try:
        entries = unpack(_StoredTrust, data, FILE_BYTES_MAX).entries
        TrustLog.restore(cluster, enumerate(entries, start=1))
    except AtollError as error:
        raise _damaged(path, str(error)) from error
    return entries


def _load_ed25519(path: Path) -> Ed25519PrivateKey:
    key = _load_private(path)
    if not isinstance(key, Ed25519PrivateKey):
        raise _damaged(path, "it holds a key of another kind than Ed25519")
    return key


def _load_x25519(path: Path) -> X25519PrivateKey:
    key = _load_private(path)
    if not isinstance(key, X25519PrivateKey):
        raise _damaged(path, "it holds a key of another kind than X25519")
    return key


def _load_private(path: Path) -> object:
    try:
        return load_pem_private_key(_read(path, is_private=True), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _damaged(path, "it does not hold an unencrypted private key in PEM") from error


def _load_certificates(path: Path) -> tuple[bytes, ...]:
    try:
        certificates = x509.load_pem_x509_certificates(_read(path, is_private=False))
    except ValueError as error:
        raise _damaged(path, "it does not hold certificates in PEM") from error
    return tuple(certificate.public_bytes(Encoding.DER) for certificate in certificates)


# --- files ---------------------------------------------------------------------------------------
def _read(path: Path, *, is_private: bool) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _damaged(path, error.strerror or "it cannot be read") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > FILE_BYTES_MAX:
            raise _damaged(path, "it is not a file of a plausible size")
        if is_private and status.st_mode & 0o077:
            raise ConfigError(
                f"{path} can be read by others",
                why=f"its mode is {stat.S_IMODE(status.st_mode):04o}, it must be 0600",
                mend=f"chmod 600 {path}, and consider whether somebody has copied the key",
            )
        return file.read()


def _write(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` so that a power cut leaves the old file or the new one."""
    fresh = path.with_name(f".{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()  # of a write that was cut off
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _require_unused(directory: Path) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise _in_use(directory)


def _in_use(directory: Path) -> ConfigError:
    return ConfigError(
        f"{directory} already holds an identity",
        why="a site belongs to one cluster, and its keys are never overwritten",
        mend="choose another state_dir, or move the folder away if the site is to start anew",
    )


def _damaged(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"the identity file {path} cannot be used",
        why=why,
        mend=f"restore {path.name} from a backup, or join again with a new token and an empty folder",
    )


@contextlib.contextmanager
def _explained(directory: Path) -> Iterator[None]:
    """Turn an ``OSError`` inside the block into a ``ConfigError`` that names the folder."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot write the identity folder {directory}",
            why=error.strerror or str(error),
            mend="check owner, permissions and free space of state_dir",
        ) from error


# --- encodings -----------------------------------------------------------------------------------
def _pem(*certificates: bytes) -> bytes:
    return b"".join(
        x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in certificates
    )


def _private_pem(key: Ed25519PrivateKey | X25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _encrypted_pem(key: Ed25519PrivateKey, passphrase: str) -> bytes:
    password = _stretched(passphrase, key_id(key.public_key()))
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password))


def _stretched(passphrase: str, cluster: bytes) -> bytes:
    """The PKCS8 password: PKCS8's own 2,048 rounds of PBKDF2 are too few for a person's passphrase."""
    derived = hashlib.scrypt(
        passphrase.encode(),
        salt=cluster,
        n=_SCRYPT_N,
        r=_SCRYPT_R,
        p=_SCRYPT_P,
        maxmem=64 << 20,
        dklen=32,
    )
    return b64encode(derived)
