"""Files of keys: the secrets of a cell, or the keys of a node, as JSON."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from nodestate.auth.followed_file import FollowedFile
from nodestate.auth.keys import CellKeys, Keys, NodeKeys, SigningKey, require_valid_keys
from nodestate.auth.signatures import Mac
from nodestate.errors import ConfigError
from nodestate.ports import Clock
from nodestate.setting_files import open_key_file, require_replaceable, require_secret

MAX_FILE_BYTES: Final = 64 * 1024 * 1024
"""Bytes of a file of keys that are read at most."""
MAX_CACHED_KEYS_COUNT: Final = 100_000
"""Most derived keys that a process keeps, about 0.6 kB each. Forged messages may name any number of nodes."""

_decode = msgspec.json.Decoder(CellKeys | NodeKeys).decode


def read_keys(path: str, cell: str) -> Keys:
    """Read a file of keys.

    Raises ``ConfigError`` if the file cannot be read, is no regular file, is damaged, is of another cell, or can be
    read by other users.
    """
    try:
        with open_key_file(path, "keys_file") as file:
            require_secret(os.fstat(file.fileno()), path, "setting keys_file")
            keys: Keys = _decode(file.read(MAX_FILE_BYTES))
        require_valid_keys(keys)
    except OSError as error:
        raise ConfigError(
            f"keys_file {path}: {error.strerror or error}; create it with 'nodestate key init', or for the agent of a "
            "node with 'nodestate key node NODE'"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError):  # the text may contain a secret
        raise ConfigError(
            f"keys_file {path} is no file of keys; restore it from a copy, or write it again with 'nodestate key node'"
        ) from None
    if keys.cell != cell:
        raise ConfigError(
            f"keys_file {path} has keys of cell {keys.cell!r}, and this process belongs to cell {cell!r}; give the "
            "file of this cell"
        )
    return keys


def read_cell_keys(path: str, cell: str) -> CellKeys:
    """Read the secrets of a cell. Raises ``ConfigError`` as ``read_keys``, and if the file has keys of nodes only."""
    keys = read_keys(path, cell)
    if not isinstance(keys, CellKeys):
        raise ConfigError(f"keys_file {path} has keys of nodes only; give the file that 'nodestate key init' wrote")
    return keys


@contextmanager
def locked_directories(*paths: str) -> Iterator[None]:
    """Hold a lock of the directories of some files of keys, so that one command at a time changes these files.

    Two commands that read, change and write a file at the same time would lose the change of one of them, for example
    a revocation. A command waits for the other one. A file system that cannot lock a directory gives no lock.

    Raises ``ConfigError`` if a directory cannot be opened.
    """
    with ExitStack() as stack:
        for directory in sorted({Path(path).resolve().parent for path in paths}):
            try:
                handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise ConfigError(
                    f"the directory {directory} of keys: {error.strerror or error}; make it with "
                    f"'mkdir -p {directory}', or give a file in another directory"
                ) from None
            stack.callback(os.close, handle)
            with suppress(OSError):  # NFS locks only files that are open for writing
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def write_keys(path: str, keys: msgspec.Struct, *, replace: bool, is_secret: bool = True) -> None:
    """Write a file of keys that only its owner can write. After a crash, the file has its old content or its new one.

    Args:
        path: the file. An existing file keeps its owner, its group, and the permissions that are not too wide.
        keys: the content.
        replace: whether an existing file is replaced.
        is_secret: whether a new file can be read by its owner only, and not by all users.

    Raises:
        ConfigError: if the file cannot be written, is no regular file, or exists although ``replace`` is False.
    """
    target = Path(path)
    require_replaceable(target)
    fresh = target.with_name(f"{target.name}.new")
    content = msgspec.json.format(msgspec.json.encode(keys), indent=1) + b"\n"
    try:
        if not replace and target.exists():
            raise ConfigError(f"{path} exists; delete it first, or give another file: its keys would be lost")
        with suppress(FileNotFoundError):
            fresh.unlink()
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        refused_mode = 0o037 if is_secret else 0o022
        with os.fdopen(handle, "wb") as file:
            if target.exists():
                before = target.stat()
                os.fchown(handle, before.st_uid, before.st_gid)
                os.fchmod(handle, stat.S_IMODE(before.st_mode) & ~refused_mode)
            elif not is_secret:
                os.fchmod(handle, 0o644)
            file.write(content)
            file.flush()
            os.fsync(handle)
        fresh.replace(target)
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror or error}; give a file in a directory that exists and "
            "that this user may write"
        ) from None


def encode_keys(keys: Keys) -> bytes:
    """Return the content of a file of keys, as JSON on one line."""
    return msgspec.json.encode(keys)


class Keyring:
    """The keys of one file. A changed file is read again, see ``FollowedFile``.

    Args:
        path: the file.
        cell: the name of the cell that the keys must belong to.
        clock: monotonic time.

    Raises:
        ConfigError: if the file cannot be used, see ``read_keys``.
    """

    def __init__(self, path: str, cell: str, clock: Clock) -> None:
        self._file: FollowedFile[Keys] = FollowedFile(path, lambda: read_keys(path, cell), clock)
        """The file."""
        self._keys = self._file.content
        """The keys that were read last."""
        self._signing_keys: dict[tuple[str, str], SigningKey | None] = {}
        """By purpose and node, the key to sign with; None if there is none."""
        self._macs: dict[tuple[str, str, str], Mac] = {}
        """By purpose, node and id of a key, HMAC with this key, to check signatures."""
        self._readings_count = 1
        """How many times the keys were read."""

    @property
    def readings_count(self) -> int:
        """How many times the keys were read. Results derived from the keys are valid until it changes."""
        self._follow_file()
        return self._readings_count

    def keys_in_force(self, purpose: str, node: str) -> tuple[SigningKey, ...]:
        """Return the keys of one node for one purpose: a key of each secret in force, the oldest first.

        Keys that were revoked for this node are left out.

        Args:
            purpose: a purpose of ``nodestate.auth.keys``, or ``signed_values.STORE``.
            node: the node's name; empty for a purpose whose keys belong to no node.
        """
        self._follow_file()
        return self._keys.keys_in_force(purpose, node)

    def signing_key(self, purpose: str, node: str) -> SigningKey | None:
        """Return the key to sign with; None if there is none, or if all keys of the node are revoked."""
        self._follow_file()
        place = (purpose, node)
        if place not in self._signing_keys:
            if len(self._signing_keys) >= MAX_CACHED_KEYS_COUNT:
                self._signing_keys.clear()
            self._signing_keys[place] = self._keys.signing_key(purpose, node)
        return self._signing_keys[place]

    def mac(self, purpose: str, node: str, key_id: str) -> Mac | None:
        """Return HMAC with the node's key of this id; None if no such key is in force, or if it is revoked."""
        self._follow_file()
        place = (purpose, node, key_id)
        mac = self._macs.get(place)
        if mac is None:
            key = self._keys.key(purpose, node, key_id)
            if key is not None:
                if len(self._macs) >= MAX_CACHED_KEYS_COUNT:
                    self._macs.clear()
                mac = self._macs[place] = Mac(key)
        return mac

    def has_keys_of(self, node: str) -> bool:
        """Return whether there are keys of a node."""
        return self._keys.has_keys_of(node)

    def is_revoked(self, node: str) -> bool:
        """Return whether keys of a node were revoked."""
        self._follow_file()
        return self._keys.is_revoked(node)

    def _follow_file(self) -> None:
        """Read the file again if it has changed."""
        if self._file.follow():
            self._keys = self._file.content
            self._signing_keys, self._macs = {}, {}
            self._readings_count += 1
