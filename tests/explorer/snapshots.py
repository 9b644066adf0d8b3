"""Snapshots of worlds: bytes from which a world continues exactly as it would have continued itself."""

from __future__ import annotations

import _thread
import copyreg
import io
import pickle
import threading
from typing import Any

import structlog

_RLOCK = type(threading.RLock())


def _lock() -> _thread.LockType:
    return _thread.allocate_lock()


def _logger() -> Any:
    return structlog.get_logger()


def _reduce_lock(_lock_now: _thread.LockType) -> tuple[Any, tuple[()]]:
    return _lock, ()


def _reduce_logger(_logger_now: Any) -> tuple[Any, tuple[()]]:
    return _logger, ()


class _Pickler(pickle.Pickler):
    """Pickles locks as free locks, and loggers as new ones."""

    dispatch_table = copyreg.dispatch_table.copy()

    def reducer_override(self, value: Any) -> Any:
        if type(value).__module__.startswith("structlog."):
            return _logger, ()
        if isinstance(value, (_RLOCK, threading.Condition, threading.Event)):
            return type(value), ()
        return NotImplemented


_Pickler.dispatch_table[_thread.LockType] = _reduce_lock


def save(world: Any) -> bytes:
    """Return a snapshot. No process of the world may be paused."""
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(world)
    return buffer.getvalue()


def load(snapshot: bytes) -> Any:
    """Return the world of a snapshot."""
    return pickle.loads(snapshot)  # noqa: S301 - our own bytes, of this run
