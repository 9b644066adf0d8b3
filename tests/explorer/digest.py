"""A digest of the state of a world: the contents of its objects, with all times relative to now."""

from __future__ import annotations

import hashlib
import random
import types
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
import numpy as np

from nodestate.config import Config
from nodestate.testing import ManualClock

MIN_TIME_S: Final = 500.0
MAX_TIME_S: Final = 1e6
"""A float between these is a moment of the simulated clock, which begins at 1,000 s."""
OPAQUE: Final = (Config, ManualClock, random.Random, types.FunctionType, types.MethodType, types.ModuleType, type)
"""Objects that are the same in every state of a world, or do not matter for its future."""


class Digest:
    """Collects the contents of objects.

    Two states with different digests may still be equal, for example if a counter has another value; then the search
    only does more work. Skipped objects must not influence the world.

    Args:
        now: the present moment of the simulated clock, in seconds.
        skip: more types whose objects are skipped.
    """

    def __init__(self, now: float, skip: tuple[type, ...] = ()) -> None:
        self._now = now
        self._parts: list[str] = [f"{now % 1:.3f}"]  # servers expire items at whole seconds
        self._skip = (*OPAQUE, *skip)
        self._known: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no id is used twice

    def result(self) -> bytes:
        """Return the digest of everything that was added."""
        return hashlib.blake2b("|".join(self._parts).encode(), digest_size=12).digest()

    def add(self, value: Any) -> Digest:
        """Add an object with everything that it refers to."""
        put = self._parts.append
        if value is None or isinstance(value, (bool, int, str, bytes)):
            put(repr(value))
        elif isinstance(value, float):
            put(self._time(value))
        elif isinstance(value, np.ndarray):
            put(",".join(map(self._time, value.tolist())) if value.dtype.kind == "f" else repr(value.tobytes()))
        elif isinstance(value, self._skip):
            put(type(value).__name__)
        elif id(value) in self._known:
            put(f"#{self._known[id(value)]}")
        else:
            self._known[id(value)] = len(self._known)
            self._kept.append(value)
            self._add_object(value)
        return self

    def _time(self, value: float) -> str:
        return f"t{value - self._now:.3f}" if MIN_TIME_S < value < MAX_TIME_S else repr(value)

    def _add_object(self, value: Any) -> None:
        if isinstance(value, Mapping):
            self._add_all("{", (part for pair in value.items() for part in pair))
        elif isinstance(value, (set, frozenset)):
            self._add_all("s", sorted(value, key=repr))
        elif isinstance(value, (list, tuple, deque)):
            self._add_all("[", value)
        elif isinstance(value, msgspec.Struct):
            self._add_all(type(value).__name__, (getattr(value, name) for name in value.__struct_fields__))
        elif type(value).__module__.split(".")[0] in ("nodestate", "tests"):
            self._add_all(type(value).__name__, _attributes(value))
        else:
            self._parts.append(type(value).__module__.split(".")[0])

    def _add_all(self, kind: str, values: Iterable[Any]) -> None:
        self._parts.append(kind)
        for value in values:
            self.add(value)
        self._parts.append("]")


def _attributes(value: Any) -> Iterable[Any]:
    for kind in type(value).__mro__:
        for name in getattr(kind, "__slots__", ()):
            if hasattr(value, name):
                yield getattr(value, name)
    yield from getattr(value, "__dict__", {}).values()
