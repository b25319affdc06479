"""The settings of one site: every key of ``atoll.toml``, declared once.

A section of the file is a dataclass; a key is a field with its rules, its explanation and its
default. Sizes are in bytes, times in seconds; ``0`` means automatic or unlimited where it says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

from agent.config.rules import (
    IS_JURISDICTION,
    IS_NAME,
    IS_NAME_OR_STAR,
    IsAbsolute,
    IsHost,
    IsHostPort,
    IsInterface,
    IsShare,
    is_loopback,
    split_host_port,
)
from agent.drivers.bridges import BRIDGES
from agent.foundation.toml_reading import AtMost, Between, Doc, Each, Keys
from agent.serving.fair import APPLICATIONS_MAX
from agent.serving.worker_pool import WORKERS_MAX

STATE_DIR = Path("/var/lib/atoll")
RUNTIME_DIR = Path("/run/atoll")

DATASETS_MAX = 256
"""Each is a line in every job's eligibility check."""


@dataclass(frozen=True, slots=True)
class SitePart:
    """``[site]``: who this site is and where it keeps its state."""

    name: Annotated[
        str | None,
        IS_NAME,
        Doc(
            "The name of this site in the cluster. Set when the site is founded or joins; afterwards"
            " the certificate holds it and this key may be left out."
        ),
    ] = None
    state_dir: Annotated[
        Path,
        IsAbsolute(),
        Doc("Folder of everything that survives a restart: keys, database, models, job files."),
    ] = STATE_DIR
    runtime_dir: Annotated[
        Path | None,
        IsAbsolute(),
        Doc(
            "Folder of the admin socket `agent.sock`. Unset: /run/atoll if state_dir is"
            " /var/lib/atoll, else the folder `run` in state_dir."
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class ListenPart:
    """``[listen]``: the addresses and ports of this site."""

    http_host: Annotated[
        str,
        IsHost(),
        Doc(
            "Address on which applications reach inference (Open Inference Protocol). Beyond loopback"
            " they need tokens (`http_tokens`), which travel in clear unless `http_certificate` is set."
        ),
    ] = "127.0.0.1"
    http_tokens: Annotated[
        Literal["auto", "always", "never"],
        Doc(
            "Whether applications need a token (`atoll app token create`), over HTTP, gRPC and for the"
            " metrics. `auto`: if `http_host` is not loopback. `always`: also there, for instance"
            " behind a proxy. `never`: whoever reaches the port may use it. A token that is sent is"
            " checked in any case; health asks for none."
        ),
    ] = "auto"
    http_certificate: Annotated[
        Path | None,
        IsAbsolute(),
        Doc(
            "PEM file of the certificate, and those between it and its root, that the applications'"
            " ports show: with it and `http_key` HTTP, gRPC and metrics speak TLS. Read anew when it"
            " changes. (The certificate of the cluster is for members only.)"
        ),
    ] = None
    http_key: Annotated[
        Path | None,
        IsAbsolute(),
        Doc(
            "PEM file of the key of `http_certificate`, without a passphrase: RSA or ECDSA, since gRPC"
            " takes no Ed25519."
        ),
    ] = None
    http_port: Annotated[int, Between(1, 65_535), Doc("TCP port for applications.")] = 8000
    http_names: Annotated[
        tuple[str, ...],
        AtMost(16),
        Each(IsHost()),
        Doc(
            "Names by which browsers and programs may call this machine, besides its addresses and"
            " local names. A request for any other name is refused (DNS rebinding)."
        ),
    ] = ()
    grpc_port: Annotated[
        int, Between(0, 65_535), Doc("The same over gRPC, at `http_host`. 0: no gRPC.")
    ] = 8001
    metrics_port: Annotated[
        int,
        Between(0, 65_535),
        Doc(
            "TCP port of `/metrics` (Prometheus) alone, at `http_host`; they are at `http_port` too."
            " 0: none."
        ),
    ] = 8002
    mesh_host: Annotated[
        str,
        IsHost(or_auto=True),
        Doc(
            "Address that is bound and announced to the other sites. `auto`: every address is bound,"
            " and the one of the interface with the default route is announced (never one of"
            " discovery.deny_interfaces); it is followed when it changes. Strangers get nothing at"
            " either port: calls need a certificate of the cluster, gossip a key."
        ),
    ] = "auto"
    mesh_port: Annotated[
        int, Between(1, 65_535), Doc("Gossip (UDP) and control calls (TCP, TLS).")
    ] = 7411
    data_port: Annotated[
        int, Between(1, 65_535), Doc("Inference and blobs between sites (TCP, TLS).")
    ] = 7412

    @property
    def is_local(self) -> bool:
        """Whether only programs of this machine can be applications."""
        return is_loopback(self.http_host)

    @property
    def is_token_required(self) -> bool:
        """Whether applications need a token."""
        return self.http_tokens == "always" or (self.http_tokens == "auto" and not self.is_local)


@dataclass(frozen=True, slots=True)
class DiscoveryPart:
    """``[discovery]``: how other sites are found. All ways are tried at once."""

    mdns: Annotated[bool, Doc("Announce and browse by multicast DNS on the local networks.")] = True
    interfaces: Annotated[
        tuple[str, ...],
        AtMost(16),
        Each(IsInterface()),
        Doc(
            "The network interfaces used for multicast DNS: names (`eth0`), patterns (`eth*`) or"
            " addresses. Empty: all that are not denied. Interfaces that appear later count too."
        ),
    ] = ()
    deny_interfaces: Annotated[
        tuple[str, ...],
        AtMost(32),
        Each(IsInterface()),
        Doc(
            "Interfaces that are never used for multicast DNS nor announced, written the same way;"
            " this wins over `interfaces`. Default: bridges of containers and virtual machines."
        ),
    ] = BRIDGES
    seeds: Annotated[
        tuple[str, ...],
        AtMost(64),
        Each(IsHostPort()),
        Doc("Mesh addresses (`host:port`) that are always tried, besides the known peers."),
    ] = ()


@dataclass(frozen=True, slots=True)
class MembershipPart:
    """``[membership]``: what the links between the sites are like."""

    link: Annotated[
        Literal["lan", "wan"],
        Doc("`lan`: sites in one building; `wan`: sites far apart (longer timeouts)."),
    ] = "lan"
    expected_sites: Annotated[
        int,
        Between(1, 10_000),
        Doc("About how many sites the cluster will have; timeouts are derived from it."),
    ] = 16


@dataclass(frozen=True, slots=True)
class ServingPart:
    """``[serving]``: inference at this site."""

    request_bytes_max: Annotated[
        int, Between(64 << 10, 256 << 20), Doc("Largest request and answer body, bytes.")
    ] = 16 << 20
    slots: Annotated[
        int,
        Between(1, 256),
        Doc(
            "Requests held at once, running or waiting. Shared memory is slots x request_bytes_max,"
            " used only as far as requests fill it."
        ),
    ] = 16
    threads: Annotated[
        int,
        Between(0, 512),
        Doc("Models run by this many threads at once. 0: as the hardware profile says."),
    ] = 0
    workers: Annotated[
        int,
        Between(0, WORKERS_MAX),
        Doc(
            "Model worker processes. With more than one, what runs when one ends is run again by"
            " another. Slots, threads and memory are shared among them; each is 80 MiB before the"
            " first model. 0: one for each GPU that is used, else one for every four threads."
        ),
    ] = 0
    batch_rows_max: Annotated[
        int,
        Between(1, 64),
        Doc(
            "Rows of waiting requests for one model run together at most, where that is measured to"
            " pay. 1: never."
        ),
    ] = 64
    batch_delay_ms: Annotated[
        float,
        Between(0.0, 1000.0),
        Doc(
            "How long a request may wait for others to run with, milliseconds; only where running"
            " together is measured to pay, and never while a request for another model waits. It"
            " trades latency for throughput on an accelerator that single requests leave idle."
        ),
    ] = 0.0
    batch_preferred: Annotated[
        tuple[int, ...],
        AtMost(8),
        Each(Between(2, 64)),
        Doc(
            "Numbers of requests that run together best, such as those of a TensorRT profile: one"
            " that is reached ends the waiting, and is not exceeded. Empty: any number."
        ),
    ] = ()
    queue_max_s: Annotated[
        float,
        Between(0.0, 60.0),
        Doc(
            "Longest expected wait, seconds. A request that would wait longer goes to another site"
            " or gets 503 with Retry-After."
        ),
    ] = 1.0
    shares: Annotated[
        tuple[str, ...],
        AtMost(APPLICATIONS_MAX),
        Each(IsShare()),
        Doc(
            "Weights by which applications share this site while they want more than it can do:"
            ' `["camera=4", "site paris=2"]`, the latter for what that member passes on. Any other has'
            " 1. See docs/sharing.md."
        ),
    ] = ()
    sessions_bytes: Annotated[
        int,
        Between(0, 1 << 50),
        Doc(
            "Memory for all loaded models together, bytes. Beyond it the one used longest ago is let"
            " go, and loaded again when it is asked for. 0: 40 % of the machine's memory."
        ),
    ] = 0
    blob_bytes_per_s: Annotated[
        int,
        Between(0, 1 << 40),
        Doc(
            "What blobs (models, and the parameters and updates of jobs) that other sites fetch here may"
            " take of the way out, bytes a second, shared equally among those sites. 0: no limit."
            " Below 100,000 a chunk takes longer than the others are patient."
        ),
    ] = 0
    gpu_memory_bytes: Annotated[
        int,
        Between(0, 1 << 50),
        Doc("Memory of the GPU that one loaded model may take, bytes. 0: as much as it wants."),
    ] = 0
    worker_memory_bytes: Annotated[
        int,
        Between(0, 1 << 50),
        Doc("Address space of each model worker, bytes. 0: no limit (GPUs map far more than RAM)."),
    ] = 0


@dataclass(frozen=True, slots=True)
class StoragePart:
    """``[storage]``: the disk that models, and the parameters and updates of jobs, take."""

    blob_bytes_max: Annotated[
        int,
        Between(0, 1 << 50),
        Doc(
            "What all blobs together may take, bytes. Beyond it, versions that this site does not serve"
            " go if two other sites hold them; if that is not enough, what is new is refused. 0: as much"
            " as the disk has."
        ),
    ] = 0
    blob_reserve_bytes: Annotated[
        int,
        Between(1 << 20, 1 << 50),
        Doc(
            "Free space of the disk that blobs never use, bytes: the database and the logs need it."
        ),
    ] = 64 << 20
    unnamed_blob_s: Annotated[
        float,
        Between(60.0, 2_592_000.0),
        Doc(
            "How long a blob is kept that neither the catalog nor a job names, seconds: a model is put"
            " here before its document is signed."
        ),
    ] = 3600.0


@dataclass(frozen=True, slots=True)
class TrainingPart:
    """``[training]``: federated learning at this site."""

    enabled: Annotated[
        bool,
        Doc(
            "Take part in jobs whose dataset is bound below. The hardware profile may forbid it too."
        ),
    ] = True
    threads: Annotated[
        int, Between(0, 512), Doc("Threads of one trainer. 0: as the hardware profile says.")
    ] = 0
    memory_bytes: Annotated[
        int,
        Between(0, 1 << 50),
        Doc("Private memory of one trainer, bytes, PyTorch's own 150 MiB among it. 0: no limit."),
    ] = 0
    kept_warm_s: Annotated[
        float,
        Between(0.0, 86_400.0),
        Doc(
            "For so long after the last job PyTorch is kept loaded (some 150 MiB), so that the next job, or "
            "the export of a model, begins at once. 0: not at all."
        ),
    ] = 600.0
    jobs_kept: Annotated[
        int,
        Between(0, 10_000),
        Doc(
            "Jobs that are over whose rounds and updates are kept; of older ones the end alone (64 bytes "
            "each), so they cannot be audited here any more."
        ),
    ] = 500


@dataclass(frozen=True, slots=True)
class DatasetPart:
    """``[datasets.<name>]``: local data that jobs may name; the data itself never leaves."""

    path: Annotated[
        Path, IsAbsolute(), Doc("Folder of the data, read-only to the trainer. Required.")
    ]
    jobs: Annotated[
        tuple[str, ...],
        AtMost(256),
        Each(IS_NAME_OR_STAR),
        Doc('Names of the jobs that may use the data; `["*"]` allows every job of the admins.'),
    ] = ("*",)
    residency: Annotated[
        tuple[str, ...],
        AtMost(64),
        Each(IS_JURISDICTION),
        Doc(
            "Where what is learned from the data (parameters, updates) may be: jurisdictions and groups,"
            ' such as `["DE", "FR"]`. A job whose own residency goes beyond, or is anywhere, is refused'
            " here. Empty: anywhere."
        ),
    ] = ()
    models: Annotated[
        tuple[str, ...],
        AtMost(256),
        Each(IS_NAME_OR_STAR),
        Doc(
            "Names of the models whose new versions its hold-out may judge, where a rollout asks for"
            ' accuracy; only whether it suffices is told. `["*"]` allows every one, `[]` none.'
        ),
    ] = ("*",)


@dataclass(frozen=True, slots=True)
class HardwarePart:
    """``[hardware]``: which profile describes this machine."""

    profile: Annotated[
        str,
        IS_NAME,
        Doc("Name of a hardware profile; `auto` recognises the machine, unknown ones are generic."),
    ] = "auto"
    profiles_dir: Annotated[
        Path | None,
        IsAbsolute(),
        Doc("Folder of your own profiles. One with the name of a shipped profile replaces it."),
    ] = None
    power_supply_w: Annotated[
        float,
        Between(0.0, 1e6),
        Doc(
            "What this machine may draw, watts: of its supply, a battery, a solar panel. Less what it draws"
            " it is free for models that ask for power. 0: not told; no such model is served here."
        ),
    ] = 0.0


@dataclass(frozen=True, slots=True)
class LogPart:
    """``[log]``: what is written to standard error (the journal, under systemd)."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Doc("Least severe message that is written.")
    ] = "info"


@dataclass(frozen=True, slots=True)
class SiteSettings:
    """One site's whole configuration, checked. ``SiteSettings()`` is the defaults."""

    site: SitePart = field(default_factory=SitePart)
    listen: ListenPart = field(default_factory=ListenPart)
    discovery: DiscoveryPart = field(default_factory=DiscoveryPart)
    membership: MembershipPart = field(default_factory=MembershipPart)
    serving: ServingPart = field(default_factory=ServingPart)
    storage: StoragePart = field(default_factory=StoragePart)
    training: TrainingPart = field(default_factory=TrainingPart)
    datasets: Annotated[Mapping[str, DatasetPart], AtMost(DATASETS_MAX), Keys(IS_NAME)] = field(
        default_factory=lambda: MappingProxyType({})
    )
    hardware: HardwarePart = field(default_factory=HardwarePart)
    log: LogPart = field(default_factory=LogPart)

    @property
    def state_dir(self) -> Path:
        """Folder of everything that survives a restart."""
        return self.site.state_dir

    @property
    def runtime_dir(self) -> Path:
        """Folder of sockets; emptied by a reboot where it is under /run."""
        if self.site.runtime_dir is not None:
            return self.site.runtime_dir
        return RUNTIME_DIR if self.state_dir == STATE_DIR else self.state_dir / "run"

    @property
    def admin_socket(self) -> Path:
        """The Unix socket of the admin API."""
        return self.runtime_dir / "agent.sock"

    @property
    def identity_dir(self) -> Path:
        """Keys and certificates (0700)."""
        return self.state_dir / "identity"

    @property
    def store_path(self) -> Path:
        """The durable database."""
        return self.state_dir / "atoll.db"

    @property
    def blobs_dir(self) -> Path:
        """Content-addressed files: models, parameters, updates."""
        return self.state_dir / "blobs"

    @property
    def jobs_dir(self) -> Path:
        """Working folders of training jobs."""
        return self.state_dir / "jobs"

    @property
    def seeds(self) -> tuple[tuple[str, int], ...]:
        """``discovery.seeds`` as (host, port)."""
        pairs = tuple(split_host_port(seed) for seed in self.discovery.seeds)
        return tuple(pair for pair in pairs if pair is not None)
