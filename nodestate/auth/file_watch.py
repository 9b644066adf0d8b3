"""A look at a file every few seconds: whether it has changed since the last look."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from nodestate.ports import Clock

REREAD_S: Final = 5.0
"""Seconds within which a process reads a changed file again. A revoked key is refused within this time."""
_UNREAD: Final = (0, 0, -1)
"""The version of a file that must be read again; no file has this size."""


class FileWatch:
    """Tells when a file must be read again.

    Args:
        path: the file.
        clock: monotonic time.
    """

    def __init__(self, path: str, clock: Clock) -> None:
        self._path = Path(path)
        """The file."""
        self._clock = clock
        """Monotonic time."""
        self._look_at = clock.monotonic() + REREAD_S
        """When to look next, in monotonic seconds."""
        self._version = self._file_version()
        """Identifies the content at the last look."""

    def has_changed(self) -> bool:
        """Return True if the file has changed since the last look. Looks every ``REREAD_S`` seconds."""
        now = self._clock.monotonic()
        if now < self._look_at:
            return False
        self._look_at = now + REREAD_S
        before, self._version = self._version, self._file_version()
        return self._version != before

    def look_again(self) -> None:
        """Let the next look find a change, because the file could not be read.

        Its mode may be wrong until an operator corrects it, and the time and the size of the file stay the same then.
        """
        self._version = _UNREAD

    def _file_version(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size
