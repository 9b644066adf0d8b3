"""Files in which an agent keeps its state: private to its user, never behind a symbolic link, and safe from crashes.

The agent believes the allocations in these files, and consumers accept its events only if the incarnation is right. So
files have mode 0600 and new directories 0700. A symbolic link is refused: the process that made the link would choose
the file that the agent replaces.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700


def make_state_directory(path: Path) -> None:
    """Make a directory and its missing parents, for this user alone. The mode of an existing one stays.

    Raises ``OSError`` if the directory can't be made, or if every user may write into it.
    """
    missing = []
    while not path.exists() and path not in missing:
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        directory.mkdir(DIRECTORY_MODE, exist_ok=True)
        path = directory
    if path.stat().st_mode & stat.S_IWOTH:
        raise OSError(errno.EPERM, "every user may write into the directory, run chmod o-w", str(path))


def open_state_file(path: Path, flags: int) -> int:
    """Open a file for this user alone. Returns the descriptor; raises ``OSError``, also for a symbolic link."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise _link_error(path) from None
        raise
    with suppress(PermissionError):  # a file that another user made
        os.fchmod(descriptor, FILE_MODE)
    return descriptor


def read_state_file(path: Path) -> bytes | None:
    """Return the content of a file; None if there is none. Raises ``OSError``, also for a symbolic link."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise _link_error(path) from None
        raise
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the content of a file. When this returns, the new content is on disk.

    After a crash, the file has either the old content or the new content, never a part of it. Raises ``OSError`` if the
    file cannot be written, or if it is a symbolic link.
    """
    if path.is_symlink():
        raise _link_error(path)
    fresh = path.with_name(f"{path.name}.new")
    with os.fdopen(open_state_file(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _link_error(path: Path) -> OSError:
    return OSError(errno.ELOOP, "a symbolic link is not followed, put the file itself in its place", str(path))
