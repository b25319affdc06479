"""Rules that a value of the configuration must keep, as annotations of its field."""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from agent.foundation.errors import UsageError
from agent.foundation.toml_reading import Matches
from agent.serving.fair import read_share
from agent.wire.limits import NAME_CHARS_MAX

HOST_CHARS_MAX = 64
"""As ``agent.wire.records.Endpoint``: an address must fit a site's record."""
PORT_MAX = 65_535

_NAME = rf"[a-z0-9][a-z0-9._-]{{0,{NAME_CHARS_MAX - 1}}}"
_NAME_TOLD = (
    "a name starts with a lower-case letter or digit and goes on with lower-case letters, digits,"
    f" '.', '_' or '-', {NAME_CHARS_MAX} characters at most"
)
_INTERFACE = re.compile(r"[A-Za-z0-9_.@:*?\[\]-]{1,32}")
"""Linux allows 15 characters; a pattern may have more."""
_HOST_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")

IS_NAME = Matches(re.compile(_NAME), _NAME_TOLD)
"""A name as it travels between sites: lower case, no path in it."""
IS_JURISDICTION = Matches(
    re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"),
    "it must be a jurisdiction or a group, such as DE",
)
IS_NAME_OR_STAR = Matches(re.compile(rf"\*|{_NAME}"), f"it must be '*' or a name; {_NAME_TOLD}")


@dataclass(frozen=True, slots=True)
class IsHost:
    """An IP address or a host name; ``auto`` where ``or_auto``."""

    or_auto: bool = False

    def problem(self, value: object) -> str | None:
        """None for something that can be bound or looked up."""
        text = str(value)
        if (self.or_auto and text == "auto") or is_host(text):
            return None
        return f"is {text!r}; it must be an IP address or a host name"


@dataclass(frozen=True, slots=True)
class IsInterface:
    """A network interface: its name, a pattern of names, or one of its addresses."""

    def problem(self, value: object) -> str | None:
        """None for something that an interface may match."""
        text = str(value)
        try:
            ip_address(text)
        except ValueError:
            if _INTERFACE.fullmatch(text):
                return None
            return (
                f"is {text!r}; it must be the name of a network interface (eth0), a pattern of names"
                " (eth*), or an IP address of this machine"
            )
        return None


@dataclass(frozen=True, slots=True)
class IsHostPort:
    """``host:port`` or ``[IPv6]:port``."""

    def problem(self, value: object) -> str | None:
        """None if ``split_host_port`` understands it."""
        if split_host_port(str(value)) is not None:
            return None
        return (
            f"is {value!r}; it must be host:port, for example 192.0.2.7:7411 or [2001:db8::7]:7411"
        )


@dataclass(frozen=True, slots=True)
class IsShare:
    """An application's weight, as ``agent.serving.fair.read_share`` reads it."""

    def problem(self, value: object) -> str | None:
        """None for a name and a weight."""
        try:
            read_share(str(value))
        except UsageError as error:
            return f"is {str(value)!r}; {error.why}"
        return None


@dataclass(frozen=True, slots=True)
class IsAbsolute:
    """A path from the root: what a service resolves against its own folder surprises people."""

    def problem(self, value: object) -> str | None:
        """None for an absolute path without ``..``."""
        assert isinstance(value, Path)
        if not value.is_absolute():
            return f"is {str(value)!r}; it must be an absolute path (it starts with '/')"
        if ".." in value.parts:
            return f"is {str(value)!r}; write it without '..'"
        return None


def is_host(text: str) -> bool:
    """Whether ``text`` is an IP address (IPv6 without brackets) or a host name."""
    if not text or len(text) > HOST_CHARS_MAX:
        return False
    try:
        ip_address(text)
    except ValueError:
        labels = text.removesuffix(".").split(".")
        # A name whose last label is a number is a mistyped address (RFC 3696, section 2).
        return all(map(_HOST_LABEL.fullmatch, labels)) and not labels[-1].isdigit()
    return True


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach what listens at ``host``; a name must say so itself."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def split_host_port(text: str) -> tuple[str, int] | None:
    """``(host, port)`` of ``host:port`` or ``[IPv6]:port``; None if it is neither."""
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or len(port) > len(str(PORT_MAX)):
        return None
    if not 1 <= int(port) <= PORT_MAX:
        return None
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        return (host, int(port)) if ":" in host and is_host(host) else None
    return (host, int(port)) if ":" not in host and is_host(host) else None
