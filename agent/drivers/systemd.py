"""What systemd wants to hear: readiness, status, watchdog (sd_notify(3)), without a library.

Every send is one datagram and is dropped rather than waited for: a full or missing socket of the
service manager must never stop the site.
"""

import contextlib
import os
import socket
import time
from collections.abc import Mapping

STATUS_CHARS_MAX = 200
"""One line of ``systemctl status``."""
USEC_PER_S = 1_000_000


class Notifier:
    """The channel to the service manager; silent where there is none."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """Take the address and the watchdog interval from the environment (default: our own)."""
        given = os.environ if environment is None else environment
        self._address = _address(given.get("NOTIFY_SOCKET", ""))
        self._socket: socket.socket | None = None
        if self._address is not None:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_UNIX, kind)
        self.watchdog_every_s = _watchdog_every_s(given) if self._socket else None
        """Call ``watchdog`` this often, seconds: half of the limit; None if nobody watches."""

    @property
    def is_active(self) -> bool:
        """Whether a service manager listens."""
        return self._socket is not None

    def ready(self, status: str = "") -> bool:
        """The site serves: ends ``Type=notify``'s wait, and a reload."""
        return self._send("READY=1", _status(status))

    def status(self, text: str) -> bool:
        """One line for ``systemctl status``."""
        return self._send(_status(text))

    def watchdog(self) -> bool:
        """The control loop still turns."""
        return self._send("WATCHDOG=1")

    def reloading(self) -> bool:
        """A reload begins; ``ready`` ends it. Carries the monotonic time, as Type=notify-reload asks."""
        return self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str = "") -> bool:
        """The site shuts down."""
        return self._send("STOPPING=1", _status(status))

    def extend_timeout(self, timeout_s: float) -> bool:
        """Start or stop needs ``timeout_s`` seconds more."""
        return self._send(f"EXTEND_TIMEOUT_USEC={int(timeout_s * USEC_PER_S)}")

    def close(self) -> None:
        """Close the socket; later sends do nothing."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *fields: str) -> bool:
        """Whether the datagram was handed over."""
        if self._socket is None or self._address is None:
            return False
        message = "\n".join(text for text in fields if text).encode()
        with contextlib.suppress(OSError):
            self._socket.sendto(message, self._address)
            return True
        return False


def _address(text: str) -> str | bytes | None:
    """Path or abstract name (``@...``) of the socket; None for absent or other kinds (vsock)."""
    if text.startswith("/"):
        return text
    return b"\0" + os.fsencode(text[1:]) if text.startswith("@") else None


def _watchdog_every_s(environment: Mapping[str, str]) -> float | None:
    limit, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not (limit.isascii() and limit.isdigit()) or int(limit) == 0:
        return None
    if pid and pid != str(os.getpid()):  # meant for another process of the unit
        return None
    return int(limit) / USEC_PER_S / 2


def _status(text: str) -> str:
    """One line, so that it cannot smuggle in a further field."""
    return f"STATUS={' '.join(text.split())[:STATUS_CHARS_MAX]}" if text else ""
