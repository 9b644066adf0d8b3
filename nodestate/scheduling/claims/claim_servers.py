"""The servers that store the claim records, and their clocks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final

from nodestate.errors import NodestateError
from nodestate.model import partitioning
from nodestate.ports import ClaimStore, Clock

SAME_CLOCK_S: Final = 1.0
"""Clocks that differ by no more than this number of seconds count as equal: each is known only to the second."""
CLOCK_CHANGE_S: Final = 3
"""Two measurements of the difference of two clocks may differ by this number of seconds, although no clock was set."""


class ClaimServers:
    """The memcached servers that store the claim records.

    A static map assigns each node to one server, its *home*, which stores the node's record. With two copies, the next
    server stores the second one. So if a server is down, one copy of each record is still there; without copies, only
    the records of the server's own nodes are unknown.

    All times in a record are times of its home. While a home does not answer, its time is computed from the clock of
    the next server. If one of the two servers was restarted with another clock, the difference of their clocks changes.
    Times of the home that were read before say nothing then, and ``take_changed`` names the home.

    Args:
        servers: One connection to each server, in the same order for all schedulers of the cell.
        copies: The number of copies of each record, 1 or 2; 2 needs two servers.
        clock: The time of this process, which tells which one of two clocks was set.
    """

    def __init__(self, servers: Sequence[ClaimStore], copies: int, clock: Clock) -> None:
        assert servers, "claims need a server"
        assert 1 <= copies <= len(servers), f"{copies} copies need as many servers"
        self.copies: Final = copies
        """The number of copies of each record."""
        self._servers = servers
        """One connection to each server; a hash of a node's name is the index of its home."""
        self._ahead_s: dict[int, int] = {}
        """By home, the seconds by which its clock is ahead of the next server's clock, as far as that is known."""
        self._homes: dict[str, int] = {}
        """The homes of the nodes that were asked for."""
        self._clock = clock
        """The time of this process."""
        self._readings: dict[int, tuple[float, float]] = {}
        """By home, by how much its clock and the next server's clock were ahead of this process, when both answered."""
        self._changed: dict[int, int] = {}
        """The homes for which a clock was set since ``take_changed``, see there."""

    def __iter__(self) -> Iterator[ClaimStore]:
        return iter(self._servers)

    def __len__(self) -> int:
        return len(self._servers)

    def home(self, node: str) -> int:
        """Return the number of the server that stores the first copy of a node's record."""
        home = self._homes.get(node)
        if home is None:
            home = self._homes[node] = partitioning.partition_of(node, len(self._servers))
        return home

    def number(self, home: int, copy: int) -> int:
        """Return the number of the server that stores a copy of the records with this home. 0 is the first copy."""
        return (home + copy) % len(self._servers)

    def at(self, number: int) -> ClaimStore:
        """Return the server with this number."""
        return self._servers[number]

    def time(self, node: str) -> float:
        """Return the present time of the clock that the deadlines of a node's claims refer to.

        Raises ``StoreUnavailableError`` if no server with a copy of the node's record answers.
        """
        return self.time_at(self.home(node))

    def time_at(self, home: int) -> float:
        """Return the present time of a home's clock. Raises ``StoreUnavailableError``, as ``time`` does."""
        try:
            return self._servers[home].server_time()
        except NodestateError:
            if self.copies == 1:
                raise
            return self._servers[self.number(home, 1)].server_time() + self._ahead_s.get(home, 0)

    def time_or_zero(self, node: str) -> float:
        """Return the time of a node's claims, or 0 if no server answers: at time 0 no deadline has passed."""
        return self.time_at_or_zero(self.home(node))

    def times(self, nodes: Iterable[str]) -> dict[str, float]:
        """Return the time of each node's claims, or 0 if no server answers. Looks whether a clock was set."""
        homes = {node: self.home(node) for node in nodes}
        times = {home: self.observed_time(home) for home in set(homes.values())}
        return {node: times[home] for node, home in homes.items()}

    def observed_time(self, home: int) -> float:
        """Return the time of a home's clock, or 0 if no server answers. Looks whether a clock was set.

        If a home answers, and had another clock when a record was read, claims that live would count as expired, or the
        other way round. So a decision about a record needs the time from here, and ``take_changed`` after it.
        """
        try:
            now = self._servers[home].server_time()
            if self.copies > 1:
                other = self._servers[self.number(home, 1)].server_time()
                if abs(now - other - self._ahead_s.get(home, 0)) > CLOCK_CHANGE_S:
                    self._compare(home, now, other)
        except NodestateError:
            return self.time_at_or_zero(home)
        return now

    def compare_clocks(self, home: int) -> None:
        """Measure by how much a home's clock is ahead of the next server's clock, if both answer."""
        with suppress(NodestateError):
            self._compare(home, self._servers[home].server_time(), self._servers[self.number(home, 1)].server_time())

    def _compare(self, home: int, now: float, other: float) -> None:
        """Compare the times of a home and of the next server, which were just told."""
        here = self._clock.monotonic()
        before, self._readings[home] = self._readings.get(home), (now - here, other - here)
        self.learn_ahead(home, round(now - other) if abs(now - other) > SAME_CLOCK_S else 0, before)

    def time_at_or_zero(self, home: int) -> float:
        """Return the time of a home's clock, or 0 if no server answers."""
        try:
            return self.time_at(home)
        except NodestateError:
            return 0.0

    def ahead_s(self, home: int) -> int:
        """Return the seconds by which a home's clock is ahead of the next server's; 0 if that is unknown."""
        return self._ahead_s.get(home, 0)

    def knows_ahead(self, home: int) -> bool:
        """Return whether the difference of these two clocks is known."""
        return home in self._ahead_s

    def learn_ahead(self, home: int, ahead_s: int, before: tuple[float, float] | None = None) -> None:
        """Use a difference of two clocks that was measured, by this scheduler or by another one.

        Args:
            home: The home.
            ahead_s: By how many seconds its clock is ahead of the next server's clock.
            before: The earlier reading of both clocks, see ``_readings``; None if there is none.
        """
        by_s = ahead_s - self._ahead_s.get(home, ahead_s)
        self._ahead_s[home] = ahead_s
        if abs(by_s) > CLOCK_CHANGE_S:
            after = self._readings.get(home)
            if before is not None and after is not None and abs(after[0] - before[0]) < abs(after[1] - before[1]):
                by_s = 0
            self._changed[home] = self._changed.get(home, 0) + by_s

    @property
    def changed(self) -> bool:
        """Whether a clock was set since ``take_changed``."""
        return bool(self._changed)

    def take_changed(self) -> dict[int, int]:
        """Return the homes whose records must be read again, because a clock was set, and forget that.

        Returns by home the seconds by which its own clock was set; 0 if the next server's clock was set.
        """
        changed, self._changed = self._changed, {}
        return changed

    def reachable(self, nodes: Collection[str]) -> list[str]:
        """Return the nodes, of these, for which the servers of all copies answer."""
        if not nodes:
            return []
        answering = {number for number, server in enumerate(self._servers) if _answers(server)}
        wanted = {home: {self.number(home, copy) for copy in range(self.copies)} for home in range(len(self))}
        return [node for node in nodes if wanted[self.home(node)] <= answering]

    def require_all(self) -> None:
        """Check that a copy of every record can be read.

        Raises ``StoreUnavailableError`` if none of the servers with copies of some record answers: its claims are
        unknown.
        """
        for home in range(len(self._servers)):
            self.time_at(home)


def _answers(server: ClaimStore) -> bool:
    """Return whether a server answers."""
    try:
        server.server_time()
    except NodestateError:
        return False
    return True
