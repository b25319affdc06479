"""Hardware profiles: what a kind of machine is recognised by, and how the agent treats it.

One TOML file each. Shipped ones are in ``firmware_profiles``; an operator's own are added to them,
and one with the name of a shipped profile replaces it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

from agent.foundation.errors import ConfigError
from agent.foundation.toml_reading import AtMost, Between, Each, Keys, Matches, Problem, read_toml

GENERIC = "generic"
"""The profile of a machine that no other describes."""

SCHEMA = 1
PROFILES_MAX = 512
FILE_BYTES_MAX = 64 << 10
_SHIPPED = "firmware_profiles"

_PROVIDER = Matches(
    re.compile(r"[A-Za-z]{1,40}ExecutionProvider"),
    "it must be an execution provider of ONNX Runtime, for example 'CUDAExecutionProvider'",
)
_NAME = Matches(
    re.compile(r"[a-z0-9][a-z0-9._-]{0,63}"), "it must be lower-case letters, digits, '.', '_', '-'"
)
_PCI_ID = Matches(re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}"), "it must be like '10de:27b8'")
Texts = Annotated[tuple[str, ...], AtMost(64)]
Celsius = Annotated[float, Between(-40.0, 200.0)]


@dataclass(frozen=True, slots=True)
class MatchPart:
    """``[match]``: all given must hold; of a list one element is enough, but for ``cpu_flags``.

    Texts are shell patterns (``*``, ``?``), compared without case.
    """

    dt_compatible: Texts = ()
    dmi_sys_vendor: Texts = ()
    dmi_product_name: Texts = ()
    dmi_board_name: Texts = ()
    cpu_architecture: Texts = ()
    cpu_model: Texts = ()
    cpu_flags: Texts = ()
    pci_ids: Annotated[tuple[str, ...], AtMost(64), Each(_PCI_ID)] = ()
    gpu_names: Texts = ()
    gpus_min: Annotated[int, Between(0, 64)] = 0
    memory_min_gib: Annotated[float, Between(0.0, 1e6)] = 0.0
    memory_max_gib: Annotated[float, Between(0.0, 1e6)] = 0.0


@dataclass(frozen=True, slots=True)
class InferencePart:
    """``[inference]``: what to run models with."""

    providers: Annotated[tuple[str, ...], AtMost(8), Each(_PROVIDER)] = ("CPUExecutionProvider",)
    """In order of preference; a session tells which it really got."""
    intra_op_threads: Annotated[int, Between(0, 512)] = 0
    """Threads of one run; 0 = one."""
    threads: Annotated[int, Between(0, 512)] = 0
    """Runs at once; 0 = one less than the usable cores, at least one."""


@dataclass(frozen=True, slots=True)
class TrainingPart:
    """``[training]``: whether and how this machine trains."""

    allowed: bool = True
    threads: Annotated[int, Between(0, 512)] = 0
    """0 = half of the usable cores, at least one: serving goes on beside it."""


@dataclass(frozen=True, slots=True)
class ThermalPart:
    """``[thermal]``: the ladder of ``agent.hardware.thermal``."""

    zones: Texts
    """Zone types (patterns); the hottest counts."""
    warn_c: Celsius
    throttle_c: Celsius
    stop_c: Celsius
    hysteresis_c: Annotated[float, Between(0.5, 50.0)] = 5.0


@dataclass(frozen=True, slots=True)
class BaselinePart:
    """``[baseline.<name>]``: the version of a piece of firmware or software that is expected."""

    fact: str
    """The fact that holds the version: ``dmi.bios_version``, ``gpu.driver``, ``kernel.release``."""
    min: str = ""
    blocked: Texts = ()
    """Versions known to be bad (patterns)."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of machine."""

    schema: Annotated[int, Between(SCHEMA, SCHEMA)]
    name: Annotated[str, _NAME]
    title: str
    capacity: Annotated[float, Between(0.0, 1e6)] = 0.0
    """Relative strength, in cores of a server CPU; 0 = the usable cores."""
    match: MatchPart = field(default_factory=MatchPart)
    inference: InferencePart = field(default_factory=InferencePart)
    training: TrainingPart = field(default_factory=TrainingPart)
    thermal: ThermalPart | None = None
    baseline: Annotated[Mapping[str, BaselinePart], AtMost(32), Keys(_NAME)] = field(
        default_factory=lambda: MappingProxyType({})
    )


def parse_profile(text: str, source: str) -> Profile:
    """One profile from its text.

    Raises:
        ConfigError: with every problem and its line.
    """
    return read_toml(Profile, text, source, _problems_together)


def shipped_dir() -> Path:
    """Where the profiles of this installation are: in the package, or in the checkout."""
    package = Path(__file__).resolve().parent
    installed = package / _SHIPPED
    return installed if installed.is_dir() else package.parents[1] / _SHIPPED


def load_profiles(folders: Sequence[Path]) -> tuple[Profile, ...]:
    """The profiles of the folders; of two with one name that of the later folder.

    Raises:
        ConfigError: a folder cannot be listed, a profile is wrong, or a folder names one twice.
    """
    found: dict[str, Profile] = {}
    for folder in folders:
        here: dict[str, Path] = {}
        for path in _files(folder):
            profile = parse_profile(_content(path), str(path))
            if profile.name in here:
                raise ConfigError(
                    f"two profiles are named {profile.name!r}",
                    why=f"{here[profile.name]} and {path}",
                    mend="rename or remove one",
                )
            here[profile.name] = path
            found[profile.name] = profile
    return tuple(found[name] for name in sorted(found))


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is not a folder",
            why="hardware profiles are read from it",
            mend="create it or change hardware.profiles_dir",
        )
    files = sorted(folder.glob("*.toml"))
    if len(files) > PROFILES_MAX:
        raise ConfigError(
            f"{folder} holds {len(files)} profiles", why=f"the bound is {PROFILES_MAX}"
        )
    return files


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the hardware profile {path} cannot be read", why=str(error)) from None
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"{path} is too long", why=f"the bound is {FILE_BYTES_MAX} bytes")
    return text


def _problems_together(profile: Profile) -> Iterator[Problem]:
    thermal, match = profile.thermal, profile.match
    if thermal is not None and not thermal.warn_c < thermal.throttle_c < thermal.stop_c:
        yield Problem(("thermal",), "thermal: warn_c < throttle_c < stop_c must hold")
    if not profile.inference.providers:
        yield Problem(("inference", "providers"), "inference.providers is empty; name at least one")
    if match.memory_max_gib and match.memory_max_gib < match.memory_min_gib:
        yield Problem(("match",), "match.memory_max_gib is below match.memory_min_gib")
    if profile.name != GENERIC and match == MatchPart():
        yield Problem(("match",), "match is empty; only 'generic' may match every machine")
