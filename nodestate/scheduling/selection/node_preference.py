"""Node preference: lets several active schedulers choose different nodes, so that their claims rarely conflict.

If every scheduler chose the best node, all schedulers would choose the same node, and all but one would lose it in a
conflict. So while several schedulers are active, the nodes are divided among them. A scheduler adds a small bonus to
the scores of its own nodes::

    alone: no bonus --a claim of another scheduler is read--> the nodes are divided among all active schedulers
    another scheduler is active --none of its claims is read for a while--> that scheduler is no longer active

Each node belongs to the scheduler for which a hash of both names is highest (rendezvous hashing). So every scheduler
computes the division by itself. And if a scheduler starts or stops, only the nodes that it gets or had change hands.
The bonus is a preference and not a lock: a scheduler chooses another scheduler's node if that node is better by more
than the bonus.
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
"""The bonus that a scheduler adds to the score of each of its own nodes."""
_MIX: Final = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
"""Factors of the mixing at the end of the hash. They are the factors of the generator splitmix64."""
_SHIFT: Final = np.uint64(31)
"""The shift of every step of that mixing. Splitmix64 itself shifts by 30, 27 and 31 bits."""


class NodePreference:
    """The nodes that one scheduler prefers while other schedulers are active.

    Args:
        name: The scheduler's name, which is also the ``holder`` in its claims.
        clock: The clock that measures how long other schedulers stay active.
        seconds: How long another scheduler counts as active after one of its claims was read.
    """

    def __init__(self, name: str, clock: Clock, seconds: float) -> None:
        self.changes = 0
        """How many times the nodes were divided again because another scheduler became active or inactive."""
        self._name = name
        """The name of the scheduler that this preference belongs to."""
        self._clock = clock
        """The clock that measures how long other schedulers stay active."""
        self._seconds = seconds
        """How long another scheduler counts as active after one of its claims was read."""
        self._others: dict[str, float] = {}
        """The monotonic time at which a claim of each other active scheduler was last read, by the scheduler's name."""
        self._hashes: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)
        """The hash of the name of each row's node."""
        self._bonus: Scores = np.zeros(0)
        """The bonus of each row. An empty array means that the bonus must be computed again."""

    def observe_scheduler(self, holder: str) -> None:
        """Note that a claim of the scheduler ``holder`` was read just now: that scheduler counts as active from now on.

        Does nothing if ``holder`` is the name of the own scheduler.
        """
        if holder == self._name:
            return
        if holder not in self._others:
            self._change()
        self._others[holder] = self._clock.monotonic()

    def bonus(self, names: Sequence[str]) -> Scores | None:
        """Return the bonus of each row: ``PREFERENCE_BONUS`` for the scheduler's own nodes, 0 for all other nodes.

        Returns None if no other scheduler is active: no node is preferred then.

        Args:
            names: The name of each row's node. Later calls may append names, but must not change a row's node.
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
        """Remove the schedulers that are no longer active. If one was removed, the nodes will be divided again."""
        least = self._clock.monotonic() - self._seconds
        gone = [holder for holder, seen in self._others.items() if seen < least]
        for holder in gone:
            del self._others[holder]
        if gone:
            self._change()

    def _change(self) -> None:
        """Count a change, and let the next call of ``bonus`` divide the nodes again."""
        self.changes += 1
        self._bonus = np.zeros(0)

    def _hashes_with(self, holder: str) -> npt.NDArray[np.uint64]:
        """Return for each row a hash of two names: of the row's node, and of the scheduler ``holder``.

        A node belongs to the scheduler for which this hash is highest.
        """
        mixed = self._hashes ^ np.uint64(xxhash.xxh3_64_intdigest(holder.encode()))
        for factor in _MIX:
            mixed = (mixed ^ (mixed >> _SHIFT)) * factor
        return mixed ^ (mixed >> _SHIFT)
