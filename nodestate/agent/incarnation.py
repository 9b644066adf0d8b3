"""Which life of an agent this is. A later life has a larger number, also when the clock was set back.

    (no file) --> life 1: the clock's seconds     file --> max(the clock's seconds, last + 1)

The number is on disk before it is used. A damaged file stops the agent: guessing could make the new life look
older than the last, and then everything it reports would be taken for a duplicate, for good.
"""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path
from typing import Final, Self

import msgspec

from nodestate.agent.atomic_file import write_atomically
from nodestate.config import Config
from nodestate.errors import ConfigError
from nodestate.model import MAX_NODE_NAME_CHARS, NODE_NAME_PATTERN, Counter

_NAME: Final = re.compile(NODE_NAME_PATTERN)


class _StoredIncarnation(msgspec.Struct):
    node: str
    incarnation: Counter


_decode = msgspec.json.Decoder(_StoredIncarnation).decode
_encode = msgspec.json.Encoder().encode


def state_directory(config: Config) -> Path:
    """Where a cell's agents keep their lives on this machine."""
    if config.state_dir:
        base = Path(config.state_dir)
    elif os.geteuid() == 0:
        base = Path("/var/lib/nodestate")
    else:
        base = Path.home() / ".local" / "state" / "nodestate"
    return base / config.cell


class IncarnationLock:
    """One life of one agent (or fleet of agents): holds the lock on its name until it is closed.

    Raises ``ConfigError`` where another living agent has the name, where the file is damaged, and where it
    can't be written.
    """

    def __init__(self, directory: str | Path, name: str, now: float) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} is no name of a node: want 1 to {MAX_NODE_NAME_CHARS} of A-Z a-z 0-9 . _ : -")
        self._file = Path(directory) / f"{name}.incarnation"
        self._lock: int | None = None
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._take_lock(name)
            self.incarnation = max(int(now), 1, self._last(name) + 1)
            self._write(name)
        except OSError as error:
            self.close()
            raise ConfigError(
                f"an agent must keep its incarnation on disk, and can't: {error}; see the setting state_dir"
            ) from error
        except ConfigError:
            self.close()
            raise

    def close(self) -> None:
        """Let the next life begin."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)  # and with it the lock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take_lock(self, name: str) -> None:
        # A file beside the number's, which is replaced at each life and would take the lock with it.
        path = self._file.with_name(f"{name}.lock")
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip() or "unknown"
            raise ConfigError(
                f"another agent (process {holder}) reports {name} already, by {path}: two would contradict each "
                "other; end one, or give them different names or state_dir"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _last(self, name: str) -> int:
        try:
            content = self._file.read_bytes()
        except FileNotFoundError:
            return 0
        try:
            kept = _decode(content)
        except msgspec.DecodeError as error:
            raise self._damaged(name, str(error)) from None
        if kept.node != name:
            raise self._damaged(name, f"it is {kept.node}'s")
        return kept.incarnation

    def _damaged(self, name: str, why: str) -> ConfigError:
        return ConfigError(
            f"{self._file} is damaged ({why}). The next life of {name} must have a larger number than the last one, "
            "which readers show as its incarnation: write that into the file, as "
            f'{{"node": "{name}", "incarnation": N}}, or delete the file if this machine\'s clock was never set back'
        )

    def _write(self, name: str) -> None:
        write_atomically(self._file, _encode(_StoredIncarnation(name, self.incarnation)))


def next_incarnation(directory: str | Path, node: str, now: float) -> int:
    """The number of the next life of ``node``, on disk already. ``now`` in seconds since 1970.

    Raises ``ConfigError`` as ``IncarnationLock`` does; an agent holds its ``IncarnationLock`` instead, to keep others from its name.
    """
    with IncarnationLock(directory, node, now) as life:
        return life.incarnation
