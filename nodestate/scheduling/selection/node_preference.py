r"""NodePreference: which of the nodes that are about equally good a scheduler takes, while others claim at the same time.

Who looks for the best node finds what everybody finds, and meets the claims of all others one by one, as conflicts. So of
the schedulers that are seen at work each has nodes of its own, and prefers them by a little::

    alone: every node is its own --a claim of somebody else is read--> the nodes are shared among all that are at work
    at work --for long no claim of it is read--> not at work

A node is whose it is by a hash of both names (rendezvous), so nobody needs to agree with anybody, and one that comes or goes
moves no node between two others. It is a preference and no lock: where it is worth it a scheduler takes any node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash

from nodestate.ports import Clock
from nodestate.scheduling.fleet.row_types import Scores

PREFERENCE_BONUS: Final = 1 / 16
"""What it is worth, as weight, that a node is one's own."""
_MIX: Final = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_HALF: Final = np.uint64(31)


class NodePreference:
    """Of one scheduler, whose ``name`` its claims bear. Others count as at work for ``seconds`` after a claim of theirs was
    read. ``changes`` counts how often nodes became another's.
    """

    def __init__(self, name: str, clock: Clock, seconds: float) -> None:
        self._name = name
        self._clock = clock
        self._seconds = seconds
        self._others: dict[str, float] = {}
        self._hashes: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._worth: Scores = np.zeros(0)
        self.changes = 0

    def observe_scheduler(self, holder: str) -> None:
        """A claim of somebody was read."""
        if holder == self._name:
            return
        if holder not in self._others:
            self._change()
        self._others[holder] = self._clock.monotonic()

    def bonus(self, names: Sequence[str]) -> Scores | None:
        """What is to be added to the weight of each node; None where nobody else is at work."""
        self._pass_over()
        if not self._others:
            return None
        if len(self._hashes) < len(names):
            more = np.array([xxhash.xxh3_64_intdigest(name.encode()) for name in names[len(self._hashes) :]], np.uint64)
            self._hashes = np.concatenate([self._hashes, more])
        if len(self._worth) < len(names):
            own = np.ones(len(names), np.bool_)
            mine = self._drawn(self._name)
            for other in self._others:
                own &= mine > self._drawn(other)
            self._worth = np.where(own, PREFERENCE_BONUS, 0.0)
        return self._worth

    def _pass_over(self) -> None:
        """Those of whom nothing was seen for long."""
        least = self._clock.monotonic() - self._seconds
        gone = [holder for holder, seen in self._others.items() if seen < least]
        for holder in gone:
            del self._others[holder]
        if gone:
            self._change()

    def _change(self) -> None:
        self.changes += 1
        self._worth = np.zeros(0)

    def _drawn(self, holder: str) -> npt.NDArray[np.uint64]:
        """A number for each node; the node is of the scheduler that drew the highest."""
        mixed = self._hashes ^ np.uint64(xxhash.xxh3_64_intdigest(holder.encode()))
        for factor in _MIX:
            mixed = (mixed ^ (mixed >> _HALF)) * factor
        return mixed ^ (mixed >> _HALF)
