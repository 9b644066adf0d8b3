"""The view of several cells: one view for each cell, and answers about all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

from nodestate.errors import StaleViewError
from nodestate.text import age_text, count_text
from nodestate.view.view import Node, OnStale, Position, View


class CellNode(NamedTuple):
    """A node of one of several cells. Two cells may have nodes of the same name."""

    cell: str
    """The name that the caller of ``MultiCellReader`` gave the cell."""
    name: str
    """The node's name in its cell."""


class MultiCellNodes(Mapping[CellNode, Node]):
    """The live nodes of several cells by cell and name, without the nodes that were left out."""

    def __init__(self, cells: Mapping[str, View]) -> None:
        # By name of the cell, its view.
        self._cells = cells

    def __getitem__(self, node: tuple[str, str]) -> Node:
        cell, name = node
        return self._cells[cell].nodes[name]

    def __iter__(self) -> Iterator[CellNode]:
        return (CellNode(cell, name) for cell, view in self._cells.items() for name in view.nodes)

    def __len__(self) -> int:
        return sum(len(view.nodes) for view in self._cells.values())

    def __repr__(self) -> str:
        return f"<{count_text(len(self), 'node')} of {count_text(len(self._cells), 'cell')}>"


class MultiCellView:
    """All nodes of several cells. It never changes, and is cheap to keep.

    ``cells`` has the view of each cell, which answers for its cell alone. The other attributes answer for all cells
    together. There was never a moment at which all of them held: cells are as independent as partitions.
    """

    def __init__(self, cells: Mapping[str, View]) -> None:
        self.cells: Mapping[str, View] = MappingProxyType(dict(cells))
        """By name of the cell, its view."""
        self.nodes = MultiCellNodes(self.cells)
        """The live nodes by cell and name."""

    @property
    def position(self) -> dict[str, tuple[Position | None, ...]]:
        """By cell, the position of its view. Positions of two cells cannot be compared."""
        return {cell: view.position for cell, view in self.cells.items()}

    @property
    def age(self) -> float:
        """The age of the oldest cell in seconds, as ``View.age``."""
        return max(view.age for view in self.cells.values())

    @cached_property
    def stale(self) -> frozenset[CellNode]:
        """The nodes that are over the bounds of the read."""
        return self._all(lambda view: view.stale)

    @cached_property
    def left_out(self) -> frozenset[CellNode]:
        """The nodes that the read excluded because they are stale or incomplete."""
        return self._all(lambda view: frozenset(view.left_out))

    @cached_property
    def incomplete(self) -> frozenset[CellNode]:
        """The incomplete nodes, and by the name ``partition N`` the incomplete partitions."""
        return self._all(lambda view: view.incomplete)

    def cells_of(self, name: str) -> tuple[str, ...]:
        """Return the cells that have a live node of this name."""
        return tuple(cell for cell, view in self.cells.items() if name in view.nodes)

    def node_age(self, node: tuple[str, str]) -> float:
        """Seconds since the node's last sign of life, as ``View.node_age``."""
        cell, name = node
        return self.cells[cell].node_age(name)

    def changed_since(self, before: MultiCellView) -> frozenset[CellNode]:
        """Return the nodes that differ from an earlier view, as ``View.changed_since`` of each cell.

        All nodes of a cell that only one of the two views has are among them.
        """
        names: set[CellNode] = set()
        for cell in self.cells.keys() | before.cells.keys():
            now, old = self.cells.get(cell), before.cells.get(cell)
            if now is not None and old is not None:
                changed = now.changed_since(old)
            else:
                alone = now or old
                assert alone is not None
                changed = frozenset(alone.nodes) | alone.incomplete
            names.update(CellNode(cell, name) for name in changed)
        return frozenset(names)

    def bounded(
        self,
        max_age: float | None,
        node_max_age: float | None,
        on_stale: OnStale,
        on_unresponsive: OnStale | None = None,
    ) -> MultiCellView:
        """Return a view of the same commits, judged now by other bounds: ``View.bounded`` of each cell.

        Raises:
            StaleViewError: if the view of a cell must be refused. The error names the first such cell.
        """
        cells: dict[str, View] = {}
        for cell, view in self.cells.items():
            try:
                cells[cell] = view.bounded(max_age, node_max_age, on_stale, on_unresponsive)
            except StaleViewError as error:
                raise error.of_cell(cell) from None
        return MultiCellView(cells)

    def _all(self, names_of: Callable[[View], frozenset[str]]) -> frozenset[CellNode]:
        return frozenset(CellNode(cell, name) for cell, view in self.cells.items() for name in names_of(view))

    def __repr__(self) -> str:
        return (
            f"<MultiCellView of {count_text(len(self.cells), 'cell')}: {count_text(len(self.nodes), 'node')}, "
            f"{age_text(self.age)}, {len(self.incomplete)} incomplete>"
        )
