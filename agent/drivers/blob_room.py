"""How much of the disk the blobs of a site take, and how much they may.

Two bounds: free space that stays to others (the reserve), and what all blobs together may take (the quota).
A blob that is being fetched counts in full from its first byte, so that one that does not fit is refused
before it travels. Called from several threads.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path

from agent.drivers.disk import files_in
from agent.foundation.errors import StoreFault


class BlobRoom:
    """What each file of the blob store takes of the quota."""

    def __init__(
        self, folders: tuple[Path, ...], *, reserve_bytes: int, bytes_max: int = 0
    ) -> None:
        """Nothing is read before the first question.

        Args:
            folders: of the files that count from the start, each by its length.
            reserve_bytes: of the disk, that stay free.
            bytes_max: of all blobs together; 0 = as much as the disk has.
        """
        self._folders = folders
        self.reserve_bytes, self.bytes_max = reserve_bytes, bytes_max
        self.on_full: Callable[[], object] = lambda: None
        """Called from any thread when something did not fit into either bound."""
        self._lock = threading.Lock()
        self._taken: dict[str, int] | None = None

    @property
    def used_bytes(self) -> int:
        """Of all blobs, whole and partial."""
        with self._lock:
            return sum(self._counted().values())

    def take(self, name: str, needed_bytes: int) -> None:
        """The file ``name`` is to take ``needed_bytes`` in all; it keeps what it has if that is refused.

        Raises:
            StoreFault: the quota is used up; says by how much.
        """
        with self._lock:
            taken = self._counted()
            used = sum(taken.values())
            grows = needed_bytes - taken.get(name, 0)
            fits = not self.bytes_max or grows <= 0 or used + grows <= self.bytes_max
            if fits:
                taken[name] = needed_bytes
        if not fits:
            self.on_full()
            raise StoreFault(
                "the quota for blobs is used up",
                why=f"{grows:,} bytes more are needed, {used:,} of {self.bytes_max:,} are used",
                mend="atoll blobs list shows what takes it; retire models, or raise storage.blob_bytes_max",
            )

    def move(self, name: str, to: str) -> None:
        """The file ``name`` has become ``to``, replacing it."""
        with self._lock:
            taken = self._counted()
            if (size := taken.pop(name, None)) is not None:
                taken[to] = size

    def release(self, name: str) -> None:
        """The file is gone."""
        with self._lock:
            self._counted().pop(name, None)

    def require_free(self, needed_bytes: int) -> None:
        """Refuse to go below the reserve.

        Raises:
            StoreFault: says how much is missing.
        """
        free = _free_bytes(self._folders[0])
        if free - needed_bytes < self.reserve_bytes:
            self.on_full()
            raise StoreFault(
                "the disk is full",
                why=f"{needed_bytes:,} bytes are needed, {free:,} are free, {self.reserve_bytes:,} "
                "stay in reserve",
                mend="free space on the disk of state_dir",
            )

    def render(self) -> str:
        """What blobs take and may take, in the Prometheus text format."""
        figures = (
            ("atoll_blobs_bytes", "What blobs take, bytes", self.used_bytes),
            ("atoll_blobs_bytes_max", "What blobs may take, bytes; 0: any", self.bytes_max),
        )
        return "".join(
            f"# HELP {name} {text}\n# TYPE {name} gauge\n{name} {count}\n"
            for name, text, count in figures
        )

    def _counted(self) -> dict[str, int]:
        if self._taken is None:
            self._taken = {}
            for folder in self._folders:
                for name, facts in files_in(folder):
                    if "." not in name:
                        self._taken[name] = facts.st_size
        return self._taken


def _free_bytes(folder: Path) -> int:
    facts = os.statvfs(folder)
    return facts.f_bavail * facts.f_frsize
