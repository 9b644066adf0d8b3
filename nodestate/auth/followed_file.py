"""A file of keys that is read again when it changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from nodestate.errors import ConfigError
from nodestate.ports import Clock

T = TypeVar("T")

REREAD_S: Final = 5.0
"""Seconds within which a process reads a changed file again. A revoked key is refused within this time."""
_UNREAD: Final = (0, 0, -1)
"""Stands for the version of a file that could not be read, so that it is read again. No file has the size -1."""


class FollowedFile(Generic[T]):
    """The content of one file. A changed file is read again within ``REREAD_S``.

    If the changed file cannot be used, the earlier content stays in force, and the reason is logged once. The file is
    then read again every ``REREAD_S`` seconds until it can be used, even if its time and size stay the same: an
    operator may have corrected only its permissions.

    Args:
        path: the file.
        read: reads the file and returns its content. Raises ``ConfigError`` if the file cannot be used.
        clock: monotonic time.

    Raises:
        ConfigError: if the file cannot be used.
    """

    def __init__(self, path: str, read: Callable[[], T], clock: Clock) -> None:
        self.path = path
        """The file."""
        self._read = read
        """Reads the file."""
        self._clock = clock
        """Monotonic time."""
        self._next_look_at = clock.monotonic() + REREAD_S
        """When to look at the file again, in monotonic seconds."""
        self._version = self._file_version()
        """Inode, time and size of the file at the last look; None if it was missing."""
        self._failure = ""
        """Why the last reading failed; empty if it succeeded. The same reason is not logged twice."""
        self.content = read()
        """The content that was read last."""

    def follow(self) -> bool:
        """Read the file again if a look at it is due, and it has changed. Returns True if ``content`` is new."""
        now = self._clock.monotonic()
        if now < self._next_look_at:
            return False
        self._next_look_at = now + REREAD_S
        before, self._version = self._version, self._file_version()
        if self._version == before:
            return False
        try:
            self.content = self._read()
        except ConfigError as error:
            self._version = _UNREAD
            if str(error) != self._failure:
                self._failure = str(error)
                _log().error("keys can't be read again; the keys from before stay in force", reason=str(error))
            return False
        self._failure = ""
        _log().info("keys read again", file=self.path)
        return True

    def _file_version(self) -> tuple[int, int, int] | None:
        try:
            found = Path(self.path).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def _log() -> Any:
    import structlog  # noqa: PLC0415  it would take half of the time of `import nodestate.scheduling`

    return structlog.get_logger("nodestate.auth")
