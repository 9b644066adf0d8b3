"""Snapshots of worlds: bytes from which a world continues exactly as it would have continued itself."""

from __future__ import annotations

import _thread
import copyreg
import io
import pickle
import random
import threading
from array import array
from typing import Any, ClassVar, Final

import structlog

_RLOCK: Final = type(threading.RLock())
_RANDOM_VERSION: Final = random.Random.VERSION


def _lock() -> _thread.LockType:
    return _thread.allocate_lock()


def _logger() -> Any:
    return structlog.get_logger()


def _reduce_lock(_lock_now: _thread.LockType) -> tuple[Any, tuple[()]]:
    return _lock, ()


def _random(state: bytes, gauss: float | None) -> random.Random:
    restored = random.Random.__new__(random.Random)
    restored.setstate((_RANDOM_VERSION, tuple(array("I", state)), gauss))
    return restored


def _reduce_random(value: random.Random) -> tuple[Any, tuple[bytes, float | None]]:
    """One string of bytes instead of 625 numbers, which are more than all other objects of a world."""
    _, state, gauss = value.getstate()
    return _random, (array("I", state).tobytes(), gauss)


class _Pickler(pickle.Pickler):
    """Pickles locks as free locks, and loggers as new ones."""

    dispatch_table = copyreg.dispatch_table | {_thread.LockType: _reduce_lock, random.Random: _reduce_random}
    _ordinary: ClassVar[set[type]] = set()  # types that need nothing special

    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        if kind in self._ordinary:
            return NotImplemented
        if kind.__module__.startswith("structlog."):
            return _logger, ()
        if kind in (_RLOCK, threading.Condition, threading.Event):
            return kind, ()
        self._ordinary.add(kind)
        return NotImplemented


def save(world: Any) -> bytes:
    """Return a snapshot. No process of the world may be paused."""
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(world)
    return buffer.getvalue()


def load(snapshot: bytes) -> Any:
    """Return the world of a snapshot."""
    return pickle.loads(snapshot)  # noqa: S301 - our own bytes, of this run
