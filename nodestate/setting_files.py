"""Files that hold settings or secrets: which of them a process may trust.

A file with a secret may be read by its owner alone, as mode 0600; if it is root's, also by its group, as mode 0440. So
credentials of systemd pass, and files that root gives to the group of a service. The content of ``nodestate.toml`` in
the current directory decides with which servers a command speaks, so it must be the user's own file or root's.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

from nodestate.errors import ConfigError

MAX_SECRET_BYTES: Final = 64 * 1024
"""Length of the content of a file with a secret."""
_BEYOND_OWNER: Final = stat.S_IRWXG | stat.S_IRWXO
_BEYOND_ROOTS_GROUP: Final = stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO


def read_secret(path: str | Path, source: str) -> str:
    """Return the secret in a file, without the line break at its end.

    Args:
        path: the file. Symbolic links are followed.
        source: the setting that names the file, for errors.

    Raises:
        ConfigError: if the file can't be read, holds no single line of text, or can be read by other users. The error
            does not have the content.
    """
    try:
        with Path(path).open("rb") as file:
            require_secret(os.fstat(file.fileno()), path, source)
            content = file.read(MAX_SECRET_BYTES + 1)
        text = content.decode().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise ConfigError(f"{source}: the file {path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{source}: the file {path} is not UTF-8") from None
    if not text.strip() or "\n" in text or "\0" in text or len(content) > MAX_SECRET_BYTES:
        raise ConfigError(f"{source}: the file {path} must have one line of text, the secret alone")
    return text


def require_secret(status: os.stat_result, path: str | Path, source: str) -> None:
    """Raise ``ConfigError`` if other users can read a file that holds a secret."""
    mode = stat.S_IMODE(status.st_mode)
    if mode & (_BEYOND_OWNER if status.st_uid else _BEYOND_ROOTS_GROUP):
        raise ConfigError(
            f"{source}: the file {path} holds a secret, and other users can read or write it (mode {mode:04o}): run "
            f"'chmod 600 {path}'; mode 0440 is accepted if the file is root's"
        )


def open_key_file(path: str | Path, setting: str) -> BinaryIO:
    """Open a file of keys to read it.

    A FIFO would block a process until a program writes into it, also while the process follows the file. So the file
    is opened without blocking, and refused unless it is a regular one.

    Args:
        path: the file. Symbolic links are followed.
        setting: the setting that names the file, for errors.

    Raises:
        OSError: if the file cannot be opened.
        ConfigError: if it is a FIFO, a directory or a device.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    raise ConfigError(
        f"{setting} {path} is {_kind_of(path)}, and processes read the file again when it changes; give the name of a "
        "regular file"
    )


def require_replaceable(path: Path) -> None:
    """Raise ``ConfigError`` if a path exists and is no regular file, so that a file of keys must not replace it."""
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path} is {_kind_of(path)}, which keys must not replace; give the name of a regular file")


def _kind_of(path: str | Path) -> str:
    return "a directory" if Path(path).is_dir() else "a FIFO" if Path(path).is_fifo() else "a device or a socket"


def require_not_writable(status: os.stat_result, path: str | Path, source: str) -> None:
    """Raise ``ConfigError`` if other users can write a file that holds public keys: they could add a key of theirs."""
    mode = stat.S_IMODE(status.st_mode)
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"{source}: other users can write the file {path} (mode {mode:04o}), and add a key of theirs: run "
            f"'chmod go-w {path}'"
        )


def require_trusted(path: str | Path) -> None:
    """Raise ``ConfigError`` if another user than this one and root made a settings file, or can write it."""
    link, status = Path(path).lstat(), Path(path).stat()
    mode = stat.S_IMODE(status.st_mode)
    owner = next((each.st_uid for each in (link, status) if each.st_uid not in {os.geteuid(), 0}), None)
    if owner is not None:
        fault, remedy = f"belongs to user {owner}", "remove it"
    elif mode & (stat.S_IWGRP | stat.S_IWOTH):
        fault, remedy = f"can be written by other users (mode {mode:04o})", f"run 'chmod go-w {path}'"
    else:
        return
    raise ConfigError(
        f"settings file {path} in the current directory {fault} and may name their servers: {remedy}, or give "
        f"--config {path} (or NODESTATE_CONFIG) if you trust it"
    )
