"""Polled sources: the sources of an agent, each with its incarnation, its cordons and the time of its next poll."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from nodestate.agent.cordons import Cordons
from nodestate.agent.incarnation import IncarnationLock, state_directory
from nodestate.agent.sources import Reading, StateSource
from nodestate.config import Config
from nodestate.errors import NodestateError, SourceUnavailableError
from nodestate.ports import Clock


@dataclass(slots=True)
class PolledSource:
    """One source, with the incarnation of its nodes and the time of its next poll."""

    source: StateSource
    """The source."""
    incarnation: int
    """The incarnation of all its nodes."""
    lock: IncarnationLock | None
    """Holds the lock on the source's name; None if the caller gave the incarnation."""
    poll_at: float
    """When the source is polled next, in monotonic seconds."""
    cordons: Cordons
    """The nodes of the source that an operator closed."""
    failing: bool = False
    """True if the last poll failed. The agent then publishes no heartbeats of the source's nodes."""

    def incarnation_above(self, other: int, now: float) -> int:
        """Return an incarnation above ``other``; it is stored first. ``now`` is in seconds since 1970.

        The source's other nodes keep their incarnation. Raises ``ConfigError`` if the number can't be stored.
        """
        number = max(int(now), other + 1)
        if self.lock is not None:
            self.lock.raise_to(number)
        return number

    def readings(self, now: float) -> Iterator[Reading]:
        """Yield the readings since the last poll. ``now``: monotonic seconds.

        Raises ``SourceUnavailableError`` if the source cannot be read. The code of another package may raise anything:
        that counts as unavailable, too, so it does not end the agent with its other sources.
        """
        try:
            for reading in self.source.poll(now):
                yield self._checked(reading)
        except SourceUnavailableError:
            raise
        except Exception as error:  # code of another package may raise anything
            raise SourceUnavailableError(self.source.name, f"its code failed: {error!r}") from error

    def _checked(self, reading: object) -> Reading:
        if not isinstance(reading, Reading):
            raise SourceUnavailableError(self.source.name, f"it gave a {type(reading).__name__}, no reading")
        return reading

    def close_source(self) -> None:
        """Close the source. Logs an error of its code: the other sources must be closed, too."""
        try:
            self.source.close()
        except Exception:  # noqa: BLE001 - code of another package may raise anything
            structlog.get_logger("nodestate.agent").exception("source can't be closed", source=self.source.name)

    def close_lock(self) -> None:
        """Release the source's name, if it is locked."""
        if self.lock is not None:
            self.lock.close()


def open_sources(
    config: Config, sources: Sequence[StateSource], clock: Clock, incarnation: int | None, state_dir: Path | None
) -> list[PolledSource]:
    """Lock the names of an agent's sources, and read their cordons.

    Args:
        config: settings of the cell.
        sources: the sources.
        clock: wall-clock and monotonic time.
        incarnation: the incarnation of all nodes, without a lock. If None, the nodes of each source get the next
            incarnation from the source's file.
        state_dir: where cordons are stored if ``incarnation`` is given; None: nowhere.

    Raises ``ConfigError`` if a name is locked, or if a file is damaged or can't be used. No name is locked then.
    """
    opened: list[PolledSource] = []
    lock = None
    try:
        for source in sources:
            lock, number = None, incarnation
            if number is None:
                state_dir = state_directory(config)
                lock = IncarnationLock(state_dir, source.name, clock.time())
                number = lock.incarnation
            cordons = Cordons(state_dir, source.name)
            opened.append(PolledSource(source, number, lock, clock.monotonic(), cordons))
    except NodestateError:
        if lock is not None:
            lock.close()
        for polled in opened:
            polled.close_lock()
        raise
    return opened
