"""The reader of nodestate with the interface of a peer's reader."""

from __future__ import annotations

from collections.abc import Iterable

from bench.cold_start import MAX_AGE_S
from bench.peers.interfaces import Row
from nodestate import Reader
from nodestate.config import Config

__all__ = ["OwnReader"]


class OwnReader:
    """A reader that holds the view of its last read."""

    def __init__(self, config: Config) -> None:
        self._reader = Reader(config)

    def cold(self) -> None:
        """Read the first view."""
        self.refresh()

    def refresh(self) -> None:
        """Read the next view."""
        self._view = self._reader.read(max_age=MAX_AGE_S, on_stale="flag")

    def names(self) -> Iterable[str]:
        """Return the names of the nodes in the view."""
        return iter(self._view.nodes)

    def node(self, name: str) -> Row:
        """Return a node of the view. Raises KeyError if there is no such node."""
        record = self._view.nodes.record(name)
        if record is None:
            raise KeyError(name)
        return Row(record.name, record.incarnation, record.generation, record.body)

    def close(self) -> None:
        """Close all connections."""
        self._reader.close()
