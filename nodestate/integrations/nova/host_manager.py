"""Nova's host manager over views of nodestate. This module imports Nova.

Each request is served by one source: if the views may not decide, then Nova's own queries serve all of it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Final

import nova.conf
from nova import context as nova_context
from nova import exception, objects
from nova.scheduler import host_manager
from oslo_log import log as logging
from oslo_utils import timeutils

from nodestate.config import Config
from nodestate.errors import CorruptItemError
from nodestate.integrations.nova import options
from nodestate.integrations.nova.cell_nodes import CellView, NodeEntry
from nodestate.integrations.nova.cell_readers import CellReaders
from nodestate.integrations.nova.cell_settings import cell_settings
from nodestate.integrations.nova.comparison import compare_host_states, count_by_kind
from nodestate.integrations.nova.host_state import NodestateHostState, copy_for_request

CONF: Final = nova.conf.CONF
LOG: Final = logging.getLogger(__name__)

options.register(CONF)


class NodestateHostManager(host_manager.HostManager):  # type: ignore[misc]  # Nova has no types
    """A host manager whose host states come from nodestate, the database, or both for comparison (``options``).

    nodestate --the views may not decide--> database, with a warning --they may again--> nodestate, with a message
    """

    def __init__(self) -> None:
        self.begin_nodestate()
        super().__init__()

    def begin_nodestate(self) -> None:
        """Set the attributes that Nova's host manager does not have. Connects to nothing."""
        self.counters: Counter[str] = Counter()
        """Requests ``served`` and ``fell_back``, host states ``compared``, differences by kind, failed comparisons."""
        self.readers = CellReaders(self._settings)
        self._reason = ""
        """Why the last request fell back to the database; empty if it was served from views."""

    def get_host_states_by_uuids(self, context: Any, compute_uuids: Any, spec_obj: Any) -> Iterator[Any]:
        """Return the host states of a request; for the arguments see Nova."""
        if CONF.nodestate.source == "database":
            return self._from_database(context, compute_uuids, spec_obj)
        if CONF.nodestate.source == "compare":
            return self._compare(context, compute_uuids, spec_obj)
        found = self._from_views(context, compute_uuids, spec_obj)
        if not isinstance(found, str):
            self.counters["served"] += 1
            if self._reason:
                self._reason = ""
                LOG.info("nodestate serves requests again")
            return iter(found)
        self.counters["fell_back"] += 1
        if not self._reason:
            action = "the database serves them" if CONF.nodestate.on_stale == "database" else "they fail"
            LOG.warning("nodestate can not serve requests, %(action)s: %(reason)s", {"action": action, "reason": found})
        self._reason = found
        if CONF.nodestate.on_stale != "database":
            raise exception.NoValidHost(reason=f"nodestate: {found}")
        return self._from_database(context, compute_uuids, spec_obj)

    def _from_database(self, context: Any, compute_uuids: Any, spec_obj: Any) -> Iterator[Any]:
        states: Iterator[Any] = super().get_host_states_by_uuids(context, compute_uuids, spec_obj)
        return states

    # -- from views

    def _settings(self) -> Mapping[str, Config]:
        return cell_settings(sorted(self.cells), CONF.nodestate.config, CONF.nodestate.cells)

    def _from_views(self, context: Any, compute_uuids: Any, spec_obj: Any) -> list[NodestateHostState] | str:
        """Return the host states of a request, or the reason why the views may not decide."""
        # A service that is silent must be known as such before Nova counts it as down (``mirror.source_of``).
        max_age = min(CONF.nodestate.max_age, CONF.service_down_time / 2)
        found = self.readers.read(self._cells_of(spec_obj), max_age, CONF.nodestate.silent_share)
        if isinstance(found, str):
            return found
        states: dict[tuple[str, str], NodestateHostState] = {}
        now = timeutils.utcnow().replace(tzinfo=dt.UTC)
        try:
            for cell in found:
                seen = now - dt.timedelta(seconds=cell.age_s)
                for entry in _entries(cell, compute_uuids):
                    state = self._hand_out(context, cell, entry, seen)
                    if state is not None:
                        states[state.host, state.nodename] = state
        except CorruptItemError as error:
            return str(error)
        return list(states.values())

    def _cells_of(self, spec_obj: Any) -> list[str]:
        """Return the uuids of the cells that a request may use, by Nova's rule."""
        if (
            spec_obj
            and "requested_destination" in spec_obj
            and spec_obj.requested_destination
            and "cell" in spec_obj.requested_destination
            and not spec_obj.requested_destination.allow_cross_cell_move
            and spec_obj.requested_destination.cell
        ):
            return [spec_obj.requested_destination.cell.uuid]
        return [cell.uuid for cell in self.enabled_cells]

    def _hand_out(self, context: Any, cell: CellView, entry: NodeEntry, seen: dt.datetime) -> NodestateHostState | None:
        """Return the state of a node for one request; None if its host has no service, as with Nova."""
        if entry.nova.part.service is None:
            host = (entry.nova.part.compute or {}).get("host")
            LOG.warning("No compute service record found for host %(host)s", {"host": host})
            return None
        state = copy_for_request(entry, seen)
        state.aggregates = self._get_aggregates_info(state.host)
        state.make_instances = partial(self._instances, context, cell, entry)
        return state

    def _instances(self, context: Any, cell: CellView, entry: NodeEntry) -> dict[str, Any]:
        """Return the instances of a node's host, as ``_get_instances_by_host`` makes them from the database."""
        mapping = self.cells.get(cell.cell)
        targeted = nova_context.target_cell(context, mapping) if mapping else contextlib.nullcontext(context)
        with targeted as cell_context:
            return {uuid: objects.Instance(cell_context, uuid=uuid) for uuid in cell.instances_of_host(entry)}

    # -- beside the database

    def _compare(self, context: Any, compute_uuids: Any, spec_obj: Any) -> Iterator[Any]:
        """Return Nova's host states, after a comparison with nodestate's. No fault of the comparison reaches Nova."""
        theirs = list(self._from_database(context, compute_uuids, spec_obj))
        try:
            ours = self._from_views(context, compute_uuids, spec_obj)
            if isinstance(ours, str):
                self.counters["not_compared"] += 1
                LOG.warning("nodestate can not be compared with the database: %s", ours)
            else:
                self._note_differences(ours, theirs)
        except Exception:  # Nova must get its host states, whatever is wrong with the comparison
            self.counters["comparison_failed"] += 1
            LOG.exception("the comparison of nodestate with the database failed")
        return iter(theirs)

    def _note_differences(self, ours: list[NodestateHostState], theirs: list[Any]) -> None:
        differences = compare_host_states(ours, theirs)
        self.counters["compared"] += len(theirs)
        self.counters.update(count_by_kind(differences))
        for one in differences:
            LOG.warning(
                "nodestate and the database differ: %(kind)s: %(host)s %(node)s %(detail)s",
                {"kind": one.kind, "host": one.host, "node": one.node, "detail": one.detail},
            )


def _entries(cell: CellView, compute_uuids: Iterable[str] | None) -> list[NodeEntry]:
    """Return the asked nodes of a cell; all if ``compute_uuids`` is None."""
    if compute_uuids is None:
        return list(cell.entries.values())
    return [entry for uuid in compute_uuids if (entry := cell.entries.get(uuid)) is not None]
