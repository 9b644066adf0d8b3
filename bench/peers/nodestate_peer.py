"""nodestate's own reader in the shape of the others'."""

from __future__ import annotations

from collections.abc import Iterable

from bench.cold_start import MAX_AGE_S
from bench.peers.interfaces import Row
from nodestate import Reader
from nodestate.config import Config

__all__ = ["OwnReader"]


class OwnReader:
    """Holds the view of the last read."""

    def __init__(self, config: Config) -> None:
        self._reader = Reader(config)

    def cold(self) -> None:
        """The first view."""
        self.refresh()

    def refresh(self) -> None:
        """The next view."""
        self._view = self._reader.read(max_age=MAX_AGE_S, on_stale="flag")

    def names(self) -> Iterable[str]:
        """The nodes of the view."""
        return iter(self._view.nodes)

    def node(self, name: str) -> Row:
        """A node of the view; raises KeyError."""
        record = self._view.nodes.record(name)
        if record is None:
            raise KeyError(name)
        return Row(record.name, record.incarnation, record.generation, record.body)

    def close(self) -> None:
        """Give the connections back."""
        self._reader.close()
