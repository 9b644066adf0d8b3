"""A digest of the state of a world: the contents of its objects, with all times relative to now."""

from __future__ import annotations

import hashlib
import random
import types
from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import msgspec
import numpy as np

from nodestate.config import Config
from nodestate.testing import ManualClock

MIN_TIME_S: Final = 500.0
MAX_TIME_S: Final = 1e6
"""A float between these is a moment of the simulated clock, which begins at 1,000 s."""
OPAQUE: Final = (Config, ManualClock, random.Random, types.FunctionType, types.MethodType, types.ModuleType, type)
"""Objects that are the same in every state of a world, or do not matter for its future."""


_PLAIN, _TIME, _SKIPPED, _ARRAY, _SEQUENCE, _DICT, _MAPPING, _SET, _OBJECT = range(9)
_How = tuple[int, tuple[str, ...]]


class Digest:
    """Collects the contents of objects.

    Two states with different digests may still be equal, for example if a counter has another value; then the search
    only does more work. Skipped objects must not influence the world.

    Args:
        now: the present moment of the simulated clock, in seconds.
        skip: more types whose objects are skipped.
    """

    _by_skipped: ClassVar[dict[tuple[type, ...], dict[type, _How]]] = {}
    """By the skipped types: how objects of each type are added, and the names of their attributes."""

    def __init__(self, now: float, skip: tuple[type, ...] = ()) -> None:
        self._now = now
        self._parts: list[str] = [f"{now % 1:.3f}"]  # servers expire items at whole seconds
        self._skip = (*OPAQUE, *skip)
        self._how = Digest._by_skipped.setdefault(self._skip, {})
        self._known: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no id is used twice

    def result(self) -> bytes:
        """Return the digest of everything that was added."""
        return hashlib.blake2b("|".join(self._parts).encode(), digest_size=12).digest()

    def add(self, value: Any) -> Digest:
        """Add an object with everything that it refers to.

        The explorer spends most of its time here, so this is one loop, and the kind of each type is known after the
        first object.
        """
        put, known, how_of, now = self._parts.append, self._known, self._how, self._now
        self._kept.append(value)
        waiting = [value]
        while waiting:
            value = waiting.pop()
            kind = type(value)
            how, names = how_of.get(kind) or self._learn(kind)
            if how == _PLAIN:
                put(repr(value))
            elif how == _TIME:
                put(f"t{value - now:.3f}" if MIN_TIME_S < value < MAX_TIME_S else repr(value))
            elif how == _SKIPPED:
                put(names[0])
            elif how == _ARRAY:
                put(",".join(map(self._time, value.tolist())) if value.dtype.kind == "f" else repr(value.tobytes()))
            elif id(value) in known:
                put(f"#{known[id(value)]}")
            else:
                known[id(value)] = len(known)
                if how == _SEQUENCE:
                    put(f"[{len(value)}")
                    waiting.extend(value)
                elif how == _DICT:
                    put(f"{{{len(value)}")
                    waiting.extend(value)
                    waiting.extend(value.values())
                elif how == _SET:
                    put(f"s{len(value)}")
                    waiting.extend(sorted(value, key=repr))
                elif how == _MAPPING:
                    put(f"{{{len(value)}")
                    parts = [part for pair in value.items() for part in pair]
                    self._kept.append(parts)
                    waiting.extend(parts)
                else:
                    put(kind.__name__)
                    waiting.extend([getattr(value, name, None) for name in names])
                    if hasattr(value, "__dict__"):
                        waiting.extend(value.__dict__.values())
        return self

    def _time(self, value: float) -> str:
        return f"t{value - self._now:.3f}" if MIN_TIME_S < value < MAX_TIME_S else repr(value)

    def _learn(self, kind: type) -> _How:
        """Decide how objects of a type are added."""
        slots = [name for one in kind.__mro__ for name in getattr(one, "__slots__", ())]
        names: tuple[str, ...] = ()
        if issubclass(kind, float):
            how = _TIME
        elif issubclass(kind, (type(None), int, str, bytes, np.generic)):
            how = _PLAIN
        elif issubclass(kind, self._skip):
            how, names = _SKIPPED, (kind.__name__,)
        elif issubclass(kind, np.ndarray):
            how = _ARRAY
        elif issubclass(kind, dict):
            how = _DICT
        elif issubclass(kind, Mapping):
            how = _MAPPING
        elif issubclass(kind, (set, frozenset)):
            how = _SET
        elif issubclass(kind, (list, tuple, deque)):
            how = _SEQUENCE
        elif issubclass(kind, msgspec.Struct):
            how, names = _OBJECT, kind.__struct_fields__
        elif kind.__module__.split(".")[0] in ("nodestate", "tests"):
            how, names = _OBJECT, tuple(slots)
        else:
            how, names = _SKIPPED, (kind.__module__.split(".")[0],)
        return self._how.setdefault(kind, (how, names))
