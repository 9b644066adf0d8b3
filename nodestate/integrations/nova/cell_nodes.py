"""The nodes of one Nova cell in the last view, and whether the view may decide for them.

    (no view) --advance--> the nodes of that view --advance--> only changed nodes are looked at

A view may decide (``problem`` is empty) if all of this holds:

- Each partition is complete, and no node is known to have a newer state.
- The mirror that started last has given a sign of life within the bound. The state of its own node changes at each of
  its polls of the database, so this bounds the age of all states, and of ``last_seen_up`` too.
- The view has as many compute nodes of that mirror as the mirror published. Nodes of an earlier mirror have a lower
  incarnation and do not count: they may have been deleted while no mirror ran.
- Not more than a share of the services are silent. If the mirror reads a replica of the database that is behind, or has
  a wrong clock, then all services look silent to it at once.

A node that breaks none of these rules is served even if it gave no heartbeat of its own: its heartbeats come from the
mirror, so they say nothing that the mirror's own node does not say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nodestate.errors import CorruptItemError
from nodestate.integrations.nova.row_form import (
    MIRROR_PREFIX,
    MirrorPart,
    NovaNode,
    is_compute_name,
    is_silent,
    nova_node,
)
from nodestate.model import NodeRecord
from nodestate.text import age_text, count_text
from nodestate.view.view import View


class NodeEntry:
    """One compute node of a view, with everything that was made of its record. A changed record gets a new entry."""

    __slots__ = ("_nova", "pristine", "record")

    def __init__(self, record: NodeRecord) -> None:
        self.record = record
        self._nova: NovaNode | None = None
        # The host state that requests get copies of; None until a request needs it.
        self.pristine: Any = None

    @property
    def nova(self) -> NovaNode:
        """Nova's part of the state, decoded at its first use. Raises ``CorruptItemError``."""
        if self._nova is None:
            self._nova = nova_node(self.record)
        return self._nova


class CellView:
    """The nodes of one Nova cell, as of one view that may decide.

    Args:
        cell: the uuid of the cell mapping.
        entries: the compute nodes by uuid.
        age_s: seconds since the mirror read the database.
    """

    def __init__(self, cell: str, entries: Mapping[str, NodeEntry], age_s: float) -> None:
        self.cell = cell
        self.entries = entries
        self.age_s = age_s
        # By host with several nodes, the instances on all of them; None until a request needs them.
        self._shared: dict[str, list[str]] | None = None

    def instances_of_host(self, entry: NodeEntry) -> Sequence[str]:
        """Return the uuids of all instances on the host of a node. Raises ``CorruptItemError``."""
        part = entry.nova.part
        if part.host_nodes == 1:
            return entry.nova.instances
        if self._shared is None:
            shared: dict[str, list[str]] = {}
            for other in self.entries.values():
                if other.nova.part.host_nodes > 1:
                    shared.setdefault((other.nova.part.compute or {}).get("host", ""), []).extend(other.nova.instances)
            self._shared = shared
        return self._shared[(part.compute or {}).get("host", "")]


class CellNodes:
    """Follows the views of one Nova cell. The caller serializes ``advance``.

    Args:
        cell: the uuid of the cell mapping.
    """

    def __init__(self, cell: str) -> None:
        self.cell = cell
        self.entries: dict[str, NodeEntry] = {}
        """By uuid, the compute nodes of the mirror that started last."""
        self.changed_count = 0
        """Records that were looked at since the start."""
        self._view: View | None = None
        self._records: dict[str, NodeRecord] = {}
        """By uuid, the compute nodes of every mirror."""
        self._mirrors: dict[str, NodeRecord] = {}
        """By name, the mirrors' own nodes."""
        self._mirror: NodeRecord | None = None
        """The own node of the mirror that started last."""
        self._counts = MirrorPart()
        """The numbers that this mirror publishes of itself."""
        self._error = ""
        """Why this mirror cannot be understood; empty if it can."""
        self._silent: set[str] = set()
        """The uuids of nodes in ``entries`` whose services are silent."""

    def advance(self, view: View) -> None:
        """Take the changes between the last view and this one."""
        before, self._view = self._view, view
        names = view.changed_since(before) if before is not None else list(view.nodes)
        self.changed_count += len(names)
        changed: list[NodeRecord] = []
        for name in names:
            record = view.nodes.record(name)
            if record is None or not record.live:
                self._remove(name)
            elif name.startswith(MIRROR_PREFIX):
                self._mirrors[name] = record
            elif is_compute_name(name):
                self._records[name] = record
                changed.append(record)
        known = self._mirror
        self._choose_mirror()
        if self._mirror is not None and (known is None or known.incarnation != self._mirror.incarnation):
            self.entries, self._silent = {}, set()
            changed = list(self._records.values())
        for record in changed:
            self._enter(record)

    def problem(self, view: View, max_age: float, silent_share: float) -> str:
        """Return why this view may not decide; empty if it may.

        Args:
            view: the view of the last ``advance``, read with signs of life.
            max_age: greatest age of the mirror's last sign of life, in seconds.
            silent_share: greatest share of silent services, from 0 to 1.
        """
        if view.incomplete:
            names = sorted(view.incomplete, key=lambda name: (not name.startswith("partition "), name))
            return f"the view is incomplete: {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        mirror = self._mirror
        if mirror is None:
            return "the view has no mirror: start nodestate-nova-mirror for this cell"
        if self._error:
            return self._error
        age = view.node_age(mirror.name)
        if age > max_age:
            return f"the last sign of life of {mirror.name} is {age_text(age)}, over {max_age:g} s"
        if len(self.entries) != self._counts.nodes:
            published = count_text(self._counts.nodes, "node")
            return f"{mirror.name} says that the cell has {published}, and the view has {len(self.entries):,}"
        if len(self._silent) > silent_share * len(self.entries):
            return (
                f"the services of {len(self._silent):,} of {count_text(len(self.entries), 'node')} are silent, "
                f"over the share of {silent_share:g}"
            )
        return ""

    def cell_view(self, view: View) -> CellView:
        """Return the nodes of the view of the last ``advance``, which ``problem`` found nothing against."""
        assert self._mirror is not None, "problem() found a mirror"
        return CellView(self.cell, dict(self.entries), view.node_age(self._mirror.name))

    def _remove(self, name: str) -> None:
        self._mirrors.pop(name, None)
        self._records.pop(name, None)
        self.entries.pop(name, None)
        self._silent.discard(name)

    def _choose_mirror(self) -> None:
        chosen = max(self._mirrors.values(), key=lambda record: record.incarnation, default=None)
        if chosen is self._mirror:
            return
        self._mirror, self._error = chosen, ""
        if chosen is None:
            return
        try:
            part = nova_node(chosen).part
        except CorruptItemError as error:
            self._error = str(error)
            return
        if part.cell != self.cell or part.mirror is None:
            self._error = (
                f"{chosen.name} mirrors Nova's cell {part.cell}, and this is {self.cell}: check [nodestate] cells"
            )
            return
        self._counts = part.mirror

    def _enter(self, record: NodeRecord) -> None:
        """Put a record into ``entries``, unless it is of an earlier mirror."""
        if self._mirror is None or record.incarnation < self._mirror.incarnation:
            self.entries.pop(record.name, None)
            self._silent.discard(record.name)
            return
        before = self.entries.get(record.name)
        if before is not None and before.record == record:  # the store began a new epoch with the same states
            return
        entry = self.entries[record.name] = NodeEntry(record)
        # The status is in the record's header, so most records need no decoding to tell that they are not silent.
        try:
            silent = record.status == "down" and is_silent(entry.nova.part)
        except CorruptItemError:  # raised again when a request needs the node
            silent = False
        if silent:
            self._silent.add(record.name)
        else:
            self._silent.discard(record.name)
