"""The reader of several cells: gives a scheduler of many cells one view of all their nodes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import Final, Self

from nodestate.designs.reader import POLL_S, Reader, require_decisions
from nodestate.errors import StaleViewError
from nodestate.ports import Clock, SystemClock
from nodestate.view.multi_cell_view import MultiCellView
from nodestate.view.view import OnStale

_NO_CELL: Final = "a reader of several cells needs the reader of at least one"


class MultiCellReader:
    """Follows several cells, and gives views of all of them. Safe for several threads, as ``Reader``.

    Cells stay independent: each has a ``Reader`` of its own, which follows the cell's control record and takes part in
    no other cell's refresh. A ``Scheduler`` works on one cell, because claims and orders belong to a cell: give it
    the reader of its cell from ``readers``.

    Args:
        readers: by name of the cell, its reader. The names are the caller's own, such as the ids of Nova's cells.
            ``close`` closes all readers.
        clock: measures the waits of ``read``; None for the machine's clock.
    """

    def __init__(self, readers: Mapping[str, Reader], *, clock: Clock | None = None) -> None:
        if not readers:
            raise ValueError(_NO_CELL)
        self.readers: Mapping[str, Reader] = MappingProxyType(dict(readers))
        """By name of the cell, its reader."""
        # Monotonic time, for waits.
        self._clock = clock or SystemClock()

    def read(
        self,
        *,
        max_age: float | None = None,
        node_max_age: float | None = None,
        on_stale: OnStale = "refuse",
        on_unresponsive: OnStale | None = None,
        timeout: float = 0.0,
    ) -> MultiCellView:
        """Refresh the view of each cell, and return all of them within the caller's bounds.

        The cells are refreshed one after the other, so a read costs as much as one read of each cell. Bounds are judged
        after the last refresh. To wait for a receipt, use the reader of its cell.

        Args:
            max_age: greatest age of a partition of any cell, in seconds, as in ``Reader.read``.
            node_max_age: greatest age of a node, in seconds, as in ``Reader.read``.
            on_stale: decides about stale nodes. With ``"refuse"``, one cell that is too old refuses the whole view.
                With ``"exclude"`` and ``"flag"``, the other cells are read as if they were alone.
            on_unresponsive: decides about nodes over ``node_max_age`` apart from partitions, as in ``Reader.read``.
            timeout: seconds for which the read refreshes all cells again before it raises ``StaleViewError``.

        Raises:
            StaleViewError: if a partition or node must not be that old. Its attribute ``cell`` names the cell.
            TypeError: if no bound is given, or one of the decisions is none of the three words.
        """
        if max_age is None and node_max_age is None:
            raise TypeError("read() needs a bound: give max_age=… or node_max_age=…")
        require_decisions(on_stale, on_unresponsive)
        deadline = self._clock.monotonic() + timeout
        while True:
            # With the caller's bounds, because a reader changes to a coming design only within them.
            flagged = {
                cell: reader.read(max_age=max_age, node_max_age=node_max_age, on_stale="flag")
                for cell, reader in self.readers.items()
            }
            try:
                return MultiCellView(flagged).bounded(max_age, node_max_age, on_stale, on_unresponsive)
            except StaleViewError as error:
                if self._clock.monotonic() >= deadline:
                    self.readers[error.cell].count_refusal(error)
                    raise
            self._clock.sleep(POLL_S)

    def close(self) -> None:
        """Close the readers of all cells. Views that were read before stay valid."""
        for reader in self.readers.values():
            reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def require_single_cell(reader: object) -> None:
    """Raise ``TypeError`` if this is a reader of several cells, for code that works on one cell."""
    if isinstance(reader, MultiCellReader):
        cell = next(iter(reader.readers))
        raise TypeError(
            "a scheduler works on one cell, because claims and orders belong to a cell: give it the reader of its "
            f"cell, such as readers[{cell!r}]"
        )
