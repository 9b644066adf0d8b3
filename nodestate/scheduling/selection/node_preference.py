"""Node preference: which of about equally good nodes a scheduler takes while other schedulers claim at the same time.

If every scheduler takes the best node, all take the same one, and each meets the claims of all others as conflicts. So
while several schedulers are active, the nodes are divided among them, and each prefers its own nodes by a small bonus::

    alone: no bonus --a claim of another scheduler is read--> the nodes are divided among all active schedulers
    another scheduler is active --no claim of it is read for a while--> it is no longer active

Each node belongs to the scheduler for which a hash of both names is highest (rendezvous hashing). So schedulers need
not agree with each other, and one that comes or goes moves no node between two others. The bonus is a preference and no
lock: if another scheduler's node is better by more than the bonus, a scheduler takes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash

from nodestate.ports import Clock
from nodestate.scheduling.fleet import Scores

PREFERENCE_BONUS: Final = 1 / 16
"""The weight that a scheduler adds for each of its own nodes."""
_MIX: Final = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_HALF: Final = np.uint64(31)
"""Constants of the hash's final mixing: the factors of splitmix64, with one shift for all rounds."""


class NodePreference:
    """The nodes that one scheduler prefers.

    Args:
        name: The scheduler's name, which is the ``holder`` of its claims.
        clock: The clock by which schedulers are active.
        seconds: How long another scheduler is active after a claim of it was read.
    """

    def __init__(self, name: str, clock: Clock, seconds: float) -> None:
        self.changes = 0
        """How many times other schedulers became active or inactive, so that the nodes were divided again."""
        self._name = name
        """The scheduler's own name."""
        self._clock = clock
        """The clock by which schedulers are active."""
        self._seconds = seconds
        """How long another scheduler is active after a claim of it was read."""
        self._others: dict[str, float] = {}
        """The other active schedulers, each with the time when a claim of it was read last."""
        self._hashes: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)
        """The hash of each node's name, by row."""
        self._bonus: Scores = np.zeros(0)
        """The bonus of each row; empty if it is to be computed again."""

    def observe_scheduler(self, holder: str) -> None:
        """Note that a claim of the scheduler ``holder`` was read, so that it is active."""
        if holder == self._name:
            return
        if holder not in self._others:
            self._change()
        self._others[holder] = self._clock.monotonic()

    def bonus(self, names: Sequence[str]) -> Scores | None:
        """The bonus of each node, by row: ``PREFERENCE_BONUS`` or 0. None if no other scheduler is active.

        Args:
            names: The node of each row; a row keeps its node from call to call.
        """
        self._drop_inactive()
        if not self._others:
            return None
        if len(self._hashes) < len(names):
            more = np.array([xxhash.xxh3_64_intdigest(name.encode()) for name in names[len(self._hashes) :]], np.uint64)
            self._hashes = np.concatenate([self._hashes, more])
        if len(self._bonus) < len(names):
            own = np.ones(len(names), np.bool_)
            mine = self._hashes_with(self._name)
            for other in self._others:
                own &= mine > self._hashes_with(other)
            self._bonus = np.where(own, PREFERENCE_BONUS, 0.0)
        return self._bonus

    def _drop_inactive(self) -> None:
        """Divide the nodes without the schedulers that are no longer active."""
        least = self._clock.monotonic() - self._seconds
        gone = [holder for holder, seen in self._others.items() if seen < least]
        for holder in gone:
            del self._others[holder]
        if gone:
            self._change()

    def _change(self) -> None:
        self.changes += 1
        self._bonus = np.zeros(0)

    def _hashes_with(self, holder: str) -> npt.NDArray[np.uint64]:
        """The hash of each node's name and the scheduler's; a node belongs to the scheduler with the highest."""
        mixed = self._hashes ^ np.uint64(xxhash.xxh3_64_intdigest(holder.encode()))
        for factor in _MIX:
            mixed = (mixed ^ (mixed >> _HALF)) * factor
        return mixed ^ (mixed >> _HALF)
