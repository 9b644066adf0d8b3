"""The readers of all Nova cells of one process, and the views that a request decides on.

    (no reader) --first request of a process--> a reader for each cell --another process id--> (no reader)

nova-scheduler makes its host manager before it forks its workers. A connection that two processes share would mix their
answers, so each process opens its own at its first request.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping

from nodestate.config import Config
from nodestate.designs.reader import Reader
from nodestate.errors import NodestateError
from nodestate.integrations.nova.cell_nodes import CellNodes, CellView
from nodestate.text import error_text

NODE_MAX_AGE_S = 86_400.0
"""Bound of a read that only makes the reader fetch signs of life. ``CellNodes`` judges them."""

OpenReader = Callable[[Config], Reader]


class CellReaders:
    """Reads the views of Nova's cells. Safe for several threads, and after a fork.

    Args:
        settings: returns the settings of the nodestate cells by uuid of the Nova cell. Raises ``ConfigError``.
        open_reader: opens the reader of a cell.
    """

    def __init__(self, settings: Callable[[], Mapping[str, Config]], open_reader: OpenReader = Reader) -> None:
        self._settings = settings
        self._open_reader = open_reader
        self._readers: dict[str, Reader] = {}
        """By uuid of the Nova cell, the reader of its nodestate cell."""
        self._nodes: dict[str, CellNodes] = {}
        """By uuid of the Nova cell, its nodes in the last view."""
        self._process = 0
        """The id of the process that opened the readers; 0 if none did."""
        self._lock = threading.Lock()
        """Held during a read, so that ``CellNodes`` sees views in their order."""

    def read(self, cells: Iterable[str], max_age: float, silent_share: float) -> list[CellView] | str:
        """Return a view of each of these cells, or the reason why the views may not decide.

        Args:
            cells: uuids of Nova cells.
            max_age: greatest age of a view and of the mirror's last sign of life, in seconds.
            silent_share: greatest share of silent services in a cell, from 0 to 1.
        """
        found = []
        with self._lock:
            try:
                if self._process != os.getpid():
                    self._open()
                for cell in cells:
                    reader, nodes = self._readers.get(cell), self._nodes.get(cell)
                    if reader is None or nodes is None:
                        return f"Nova's cell {cell} has no nodestate cell: name it in [nodestate] cells"
                    view = reader.read(max_age=max_age, node_max_age=NODE_MAX_AGE_S, on_unresponsive="flag")
                    nodes.advance(view)
                    if problem := nodes.problem(view, max_age, silent_share):
                        return f"Nova's cell {cell}: {problem}"
                    found.append(nodes.cell_view(view))
            except NodestateError as error:
                return error_text(error)
        return found

    def close(self) -> None:
        """Close the connections that this process opened."""
        with self._lock:
            if self._process == os.getpid():
                for reader in self._readers.values():
                    reader.close()
            self._readers, self._nodes, self._process = {}, {}, 0

    def _open(self) -> None:
        # The readers of a parent process are dropped without a word to the server: the parent still uses them.
        self._readers = {cell: self._open_reader(config) for cell, config in self._settings().items()}
        self._nodes = {cell: CellNodes(cell) for cell in self._readers}
        self._process = os.getpid()
