"""Checks of one site: its settings, files, certificate, ports and disk.

They hold with the agent down. The database is never opened here: a second connection to it is what
corrupts files with the SQLite of Debian 12; its first bytes tell enough.
"""

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from agent.cli.checks import Finding, guarded
from agent.cli.output import size
from agent.config.addresses import LOOPBACK, announced_host
from agent.config.settings import SiteSettings
from agent.drivers.clock import wall

FREE_BYTES_MIN = 1 << 30
"""A model and a round's parameters; below it fetches fail."""
FREE_SHARE_LOW = 0.1
EXPIRY_WARNING_SHARE = 0.2
"""Certificates are renewed after a third of their life: a fifth left means that renewals fail."""
SERVED_DAYS_LOW = 14
"""Days left of the certificate for applications; ACME clients renew a month before the end."""
_SQLITE_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_APPLICATION_ID = slice(68, 72)
"""Offsets of SQLite's file format (sqlite.org/fileformat2.html, section 1.3)."""
_OUR_APPLICATION_ID = b"ATOL"


def site_findings(settings: SiteSettings, *, is_running: bool) -> Iterator[Finding]:
    """Every finding about this site, in the order of dependence."""
    looks: dict[str, Callable[[str], Finding]] = {
        "state folder": partial(_state_folder, settings),
        "disk space": partial(_disk, settings),
        "identity files": partial(_identity_files, settings),
        "certificate": partial(_certificate, settings),
        "root key": partial(_root_key, settings),
        "database": partial(_database, settings),
        "announced address": partial(_address, settings),
        "ports": partial(_ports, settings, is_running=is_running),
        "applications": partial(_applications, settings),
        "memory": partial(_memory, settings),
        "hardware profile": partial(_hardware, settings),
    }
    for name, look in looks.items():
        yield guarded(name, partial(look, name))
    for name in settings.datasets:
        check = f"dataset {name}"
        yield guarded(check, partial(_dataset, settings, name, check))


def _state_folder(settings: SiteSettings, check: str) -> Finding:
    folder = settings.state_dir
    if not folder.is_dir():
        return Finding(
            check,
            ok=False,
            evidence=f"{folder} does not exist",
            mend="`atoll init` founds a cluster, `atoll join TOKEN` enters one",
        )
    found = folder.stat()
    usable = os.access(folder, os.R_OK | os.W_OK | os.X_OK)
    return Finding(
        check,
        ok=usable,
        evidence=f"{folder}, mode {found.st_mode & 0o777:04o}, user {found.st_uid}",
        mend="" if usable else "run this as root or as the agent's user",
    )


def _disk(settings: SiteSettings, check: str) -> Finding:
    folder = settings.state_dir
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    evidence = f"{size(usage.free)} of {size(usage.total)} free at {folder}"
    if usage.free < FREE_BYTES_MIN:
        return Finding(check, ok=False, evidence=evidence, mend="free at least 1 GiB there")
    is_low = usage.free < FREE_SHARE_LOW * usage.total
    return Finding(
        check, ok=True, evidence=evidence, mend="it fills up: below 10 %" if is_low else ""
    )


def _identity_files(settings: SiteSettings, check: str) -> Finding:
    folder = settings.identity_dir
    if not folder.is_dir():
        return Finding(
            check,
            ok=False,
            evidence=f"{folder} does not exist: this machine is not a site yet",
            mend="`atoll init` founds a cluster, `atoll join TOKEN` enters one",
        )
    loose = [path for path in _inside(folder) if path.stat().st_mode & 0o077]
    if loose:
        return Finding(
            check,
            ok=False,
            evidence=f"others may read {', '.join(str(path) for path in loose[:4])}",
            mend=f"chmod -R go= {folder}, and consider the keys known to other users",
        )
    count = sum(1 for path in _inside(folder) if path.is_file())
    return Finding(
        check, ok=True, evidence=f"{count} files in {folder}, readable by the owner only"
    )


def _inside(folder: Path) -> Iterator[Path]:
    yield folder
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from sorted(path.iterdir())


def _certificate(settings: SiteSettings, check: str) -> Finding:
    from agent.cli.signing import own_identity  # noqa: PLC0415 - cryptography, if it is installed

    identity = own_identity(settings.identity_dir)
    now = wall()
    left_s = (identity.not_after - now).total_seconds()
    evidence = (
        f"{identity.claims.name} ({identity.claims.region}, {identity.claims.tier},"
        f" {identity.claims.jurisdiction}), valid {identity.not_before:%Y-%m-%d %H:%M} to"
        f" {identity.not_after:%Y-%m-%d %H:%M} UTC, the clock says {now:%Y-%m-%d %H:%M}"
    )
    if now < identity.not_before:
        return Finding(check, ok=False, evidence=evidence, mend="set this machine's clock")
    if left_s <= 0:
        return Finding(
            check,
            ok=False,
            evidence=evidence,
            mend="start the agent: it renews the certificate from any issuer it can reach;"
            " local inference goes on meanwhile",
        )
    return Finding(
        check,
        ok=True,
        evidence=evidence,
        mend="renewal fails: is an issuer alive (`atoll members`)? `atoll renew` tries at once"
        if left_s < EXPIRY_WARNING_SHARE * (identity.not_after - identity.begins_at).total_seconds()
        else "",
    )


def _root_key(settings: SiteSettings, check: str) -> Finding:
    path = settings.identity_dir / "operator" / "root.key"
    if not path.exists():
        return Finding(check, ok=True, evidence="not on this machine")
    return Finding(
        check,
        ok=True,
        evidence=f"{path} is on this machine (encrypted)",
        mend="move it to offline media: whoever has it and its passphrase owns the cluster",
    )


def _database(settings: SiteSettings, check: str) -> Finding:
    path = settings.store_path
    if not path.exists():
        return Finding(check, ok=True, evidence=f"{path} does not exist yet")
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    damaged = sorted(path.parent.glob(f"{path.name}.damaged-*"))
    if header and not (
        header.startswith(_SQLITE_MAGIC) and header[_APPLICATION_ID] == _OUR_APPLICATION_ID
    ):
        return Finding(
            check,
            ok=False,
            evidence=f"{path} is not an Atoll database",
            mend="move it away; the agent makes a new one and learns from the other sites",
        )
    evidence = f"{path}, {size(path.stat().st_size)}"
    if damaged:
        return Finding(
            check,
            ok=True,
            evidence=f"{evidence}; set aside as damaged: {', '.join(p.name for p in damaged[:4])}",
            mend="check this disk (smartctl, dmesg), then remove the damaged copies",
        )
    return Finding(check, ok=True, evidence=evidence)


def _address(settings: SiteSettings, check: str) -> Finding:
    announced = announced_host(settings.listen.mesh_host, denied=settings.discovery.deny_interfaces)
    is_alone = announced.is_followed and announced.host == LOOPBACK
    return Finding(
        check,
        ok=True,
        evidence=f"{announced.host}: {announced.why}",
        mend="no other site can reach this one now: check cable and address (ip addr), and"
        " discovery.deny_interfaces"
        if is_alone
        else "",
    )


def _ports(settings: SiteSettings, check: str, *, is_running: bool) -> Finding:
    listen = settings.listen
    mesh = (
        (listen.mesh_port, socket.SOCK_STREAM, "mesh control"),
        (listen.mesh_port, socket.SOCK_DGRAM, "gossip"),
        (listen.data_port, socket.SOCK_STREAM, "mesh data"),
    )
    wanted = [
        (listen.http_host, listen.http_port, socket.SOCK_STREAM, "applications"),
        *((host, *one) for one in mesh for host in announced_host(listen.mesh_host).binds),
    ]
    for port, purpose in ((listen.grpc_port, "gRPC"), (listen.metrics_port, "metrics")):
        if port:
            wanted.insert(1, (listen.http_host, port, socket.SOCK_STREAM, purpose))
    shown = ", ".join(
        f"{host}:{port}{'/udp' if kind == socket.SOCK_DGRAM else ''}"
        for host, port, kind, _ in wanted
    )
    if is_running:
        return Finding(check, ok=True, evidence=f"{shown}: held by the running agent")
    troubles = []
    with ExitStack() as stack:
        for host, port, kind, purpose in wanted:
            try:
                stack.enter_context(_bound(host, port, kind))
            except OSError as error:
                troubles.append(f"{purpose} {host}:{port}: {error.strerror or error}")
    return Finding(
        check,
        ok=not troubles,
        evidence="; ".join(troubles) or f"{shown}: free",
        mend="`ss -lntup` shows who holds a port; other ports and addresses go to [listen]"
        if troubles
        else "",
    )


def _applications(settings: SiteSettings, check: str) -> Finding:
    """Who can reach the applications' ports; whether there are tokens only the agent knows."""
    listen = settings.listen
    where = f"{listen.http_host}:{listen.http_port}"
    who = "whoever has a token" if listen.is_token_required else "whoever reaches it"
    if listen.is_local:
        need = "with a token" if listen.is_token_required else "without a token"
        who = f"programs of this machine, {need}"
    mends = []
    if not listen.is_local and not listen.is_token_required:
        mends.append(
            'remove [listen] http_tokens = "never", and make tokens: atoll app token create'
        )
    if listen.http_certificate is not None:
        from cryptography import x509  # noqa: PLC0415 - if it is installed

        chain = listen.http_certificate.read_bytes()
        left = x509.load_pem_x509_certificate(chain).not_valid_after_utc - wall()
        who += f", over TLS with a certificate for {left.days} days more"
        if left.days < SERVED_DAYS_LOW:
            mends.append(f"renew {listen.http_certificate}: it is read anew when it changes")
    elif not listen.is_local:
        mends.append("set [listen] http_certificate: tokens and data travel in clear")
    return Finding(check, ok=True, evidence=f"{who}, at {where}", mend="; ".join(mends))


def _bound(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=kind)[0]
    found = socket.socket(family, kind)
    try:
        if family == socket.AF_INET6:
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError:
        found.close()
        raise
    return found


def _memory(settings: SiteSettings, check: str) -> Finding:
    import psutil  # noqa: PLC0415 - a missing package is one finding, not the end of the doctor

    memory = psutil.virtual_memory()
    slots = settings.serving.slots * settings.serving.request_bytes_max
    evidence = (
        f"{size(memory.available)} of {size(memory.total)} available; slots may take {size(slots)}"
    )
    if slots > memory.total // 2:
        return Finding(
            check,
            ok=False,
            evidence=evidence,
            mend="lower slots or request_bytes_max in [serving]: full slots would exhaust memory",
        )
    return Finding(check, ok=True, evidence=evidence)


def _hardware(settings: SiteSettings, check: str) -> Finding:
    from agent.drivers.hardware_detect import detect_hardware  # noqa: PLC0415 - psutil, NVML

    found = detect_hardware(settings.hardware.profile, settings.hardware.profiles_dir)
    troubles = [
        *found.findings,
        *(
            f"{one.name} {one.found} is {one.state}, expected {one.expected}"
            for one in found.drift
            if one.state in ("older", "blocked")
        ),
    ]
    return Finding(
        check,
        ok=True,
        evidence=f"{found.profile}: {found.why}; {found.cores} cores, {', '.join(found.providers)}",
        mend="; ".join(troubles),
    )


def _dataset(settings: SiteSettings, name: str, check: str) -> Finding:
    path = settings.datasets[name].path
    if not path.is_dir() or not os.access(path, os.R_OK | os.X_OK):
        return Finding(
            check,
            ok=False,
            evidence=f"{path} is not a folder that this user may read",
            mend=f"bind [datasets.{name}] to the folder that holds the data",
        )
    count = sum(1 for _, _ in zip(path.iterdir(), range(1000), strict=False))
    return Finding(check, ok=True, evidence=f"{path}, {count} entries")
