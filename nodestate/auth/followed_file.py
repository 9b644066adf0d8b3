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
"""The version of a file that must be read again; no file has this size."""


class FollowedFile(Generic[T]):
    """The content of one file. A changed file is read again within ``REREAD_S``.

    If the changed file is damaged or missing, the content from before stays in force, and the log names the file once.
    It is read again every ``REREAD_S`` then, until it can be used: an operator may correct its mode, and the time and
    the size of the file stay the same then.

    Args:
        path: the file.
        read: reads it. Raises ``ConfigError`` if the file cannot be used.
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
        self._look_at = clock.monotonic() + REREAD_S
        """When to look next, in monotonic seconds."""
        self._version = self._file_version()
        """Identifies the content at the last look."""
        self._failure = ""
        """Why the file could not be read again at the last try; empty if it could. It is logged once."""
        self.content = read()
        """The content, as it was read last."""

    def follow(self) -> bool:
        """Read the file again if it has changed. Returns True if ``content`` is another one from now on."""
        now = self._clock.monotonic()
        if now < self._look_at:
            return False
        self._look_at = now + REREAD_S
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
