"""Incarnations: each start of an agent gets a larger number than the start before, even if the clock was set back.

    (no file) --start--> the clock's seconds          file --start--> max(the clock's seconds, last + 1)

The number is on disk before the agent uses it. A damaged file stops the agent. If the agent guessed a number instead,
the number could be smaller than the last one. Consumers would then take every event of the agent for a duplicate and
ignore it.
"""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import msgspec
import structlog

from nodestate.agent.state_files import make_state_directory, open_state_file, read_state_file, write_atomically
from nodestate.config import Config
from nodestate.errors import ConfigError
from nodestate.model import MAX_CLOCK_AHEAD_S, MAX_NODE_NAME_CHARS, NODE_NAME_PATTERN, Counter

_NAME: Final = re.compile(NODE_NAME_PATTERN)


class _StoredIncarnation(msgspec.Struct):
    """The content of the file, as JSON."""

    node: str
    """The agent's name, as the file's name has it."""
    incarnation: Counter
    """Number of the last incarnation."""


_decode = msgspec.json.Decoder(_StoredIncarnation).decode
_encode = msgspec.json.Encoder().encode


def state_directory(config: Config) -> Path:
    """Return the directory in which a cell's agents on this machine store incarnations and allocations.

    Raises:
        ConfigError: if ``state_dir`` is not set and the user of this process has no home directory.
    """
    if config.state_dir:
        base = Path(config.state_dir)
    elif os.geteuid() == 0:
        base = Path("/var/lib/nodestate")
    else:
        try:
            base = Path.home() / ".local" / "state" / "nodestate"
        except RuntimeError:  # the user has no home directory, as a DynamicUser of systemd
            raise ConfigError("this user has no home directory: set state_dir to a directory of its own") from None
    return base / config.cell


class IncarnationLock:
    """The incarnation of a running agent or fleet, and a lock on its name.

    Until the lock is closed, no other agent that uses the same directory can start under this name.

    Args:
        directory: where the file and the lock are. It is made if it does not exist.
        name: the agent's name, in the form of a node's name.
        now: seconds since 1970.

    Raises:
        ConfigError: if another running agent has locked the name, if the file is damaged, or if it can't be written.
            The name is not locked then.
    """

    def __init__(self, directory: str | Path, name: str, now: float) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} can't be an agent's name: use 1 to {MAX_NODE_NAME_CHARS} characters of A-Z a-z 0-9 . _ : -"
            )
        self._file = Path(directory) / f"{name}.incarnation"
        """The file with the number of the last incarnation."""
        self._lock: int | None = None
        """Descriptor of the locked file; None before the name is locked, and after ``close``."""
        try:
            make_state_directory(self._file.parent)
            self._take_lock(name)
            self.incarnation = max(int(now), 1, self._last(name) + 1)
            """The number of this incarnation."""
            self._write(name)
            if self.incarnation > now + MAX_CLOCK_AHEAD_S:
                structlog.get_logger("nodestate.agent").error(
                    "consumers refuse the events of this agent: it once began with its clock ahead, and each later "
                    "incarnation is larger; if the clock is right now, stop the agent, delete the file, and start it "
                    "again",
                    file=str(self._file),
                    incarnation=self.incarnation,
                    ahead_s=round(self.incarnation - now),
                )
        except OSError as error:
            self.close()
            raise ConfigError(
                f"the agent can't store its incarnation: {error}; set state_dir to a directory that it may write"
            ) from error
        except ConfigError:
            self.close()
            raise

    def raise_to(self, incarnation: int) -> None:
        """Store a larger number, so that the next incarnation is larger than both.

        Raises ``ConfigError`` if it can't be stored.
        """
        if incarnation > self.incarnation:
            self.incarnation = incarnation
            try:
                self._write(self._file.stem)
            except OSError as error:
                raise ConfigError(
                    f"the agent can't store its incarnation in {self._file}: {error}; free its disk"
                ) from error

    def close(self) -> None:
        """Release the name, so that the next incarnation can start."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)  # releases the lock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take_lock(self, name: str) -> None:
        # The lock has a file of its own. The file of the incarnation is replaced at each start, and a lock on it would
        # be lost with the replaced file.
        path = self._file.with_name(f"{name}.lock")
        self._lock = open_state_file(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip() or "unknown"
            raise ConfigError(
                f"another agent (process {holder}) reports {name} already and holds {path}: two agents would "
                "contradict each other; stop one, or give them different names or different state_dir"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _last(self, name: str) -> int:
        content = read_state_file(self._file)
        if content is None:
            return 0
        try:
            kept = _decode(content)
        except msgspec.DecodeError as error:
            raise self._damaged(name, str(error)) from None
        if kept.node != name:
            raise self._damaged(name, f"it belongs to {kept.node}")
        return kept.incarnation

    def _damaged(self, name: str, reason: str) -> ConfigError:
        return ConfigError(
            f"{self._file} is damaged ({reason}). The next incarnation of {name} must be larger than its last "
            "one, which `nodestate view` shows: write that number into the file, as "
            f'{{"node": "{name}", "incarnation": N}}, or delete the file if this machine\'s clock was never set back'
        )

    def _write(self, name: str) -> None:
        write_atomically(self._file, _encode(_StoredIncarnation(name, self.incarnation)))


def files_ahead(directory: Path, now: float) -> list[tuple[Path, int]]:
    """Return the files in ``directory`` whose incarnations consumers refuse, because they are too far ahead of ``now``.

    An agent once began while the clock of this machine was ahead. Each later incarnation is one more, so it is refused,
    too. The agent can't tell this from a clock that was set back, after which only a larger number is accepted. Nor can
    it know whether a consumer whose clock was ahead, too, has accepted one of these incarnations: the consumers would
    then ignore all smaller ones for ever. So an operator decides, and deletes the file.

    Args:
        directory: where agents store their incarnations. It need not exist.
        now: seconds since 1970.

    Returns:
        Each file with its incarnation. Files that can't be read are left out.
    """
    found = []
    for path in sorted(directory.glob("*.incarnation")):
        with suppress(OSError, msgspec.DecodeError):
            incarnation = _decode(read_state_file(path) or b"").incarnation
            if incarnation > now + MAX_CLOCK_AHEAD_S:
                found.append((path, incarnation))
    return found


def next_incarnation(directory: str | Path, node: str, now: float) -> int:
    """Store and return the next incarnation of ``node``, and release its name at once.

    An agent keeps an ``IncarnationLock`` open instead, so that no other agent can start under the same name. Raises
    ``ConfigError`` as ``IncarnationLock`` does. ``now`` is in seconds since 1970.
    """
    with IncarnationLock(directory, node, now) as lock:
        return lock.incarnation
