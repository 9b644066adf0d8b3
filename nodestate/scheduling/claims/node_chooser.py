"""The choice of a node for each instance, on the fleet with its claims. Nothing is claimed here."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple

from nodestate.scheduling.claims.claim_table import ClaimTable
from nodestate.scheduling.claims.placing import NoHostFound, Placing
from nodestate.scheduling.claims.record import UNSURE_S
from nodestate.scheduling.fleet import Exclusion, Fleet
from nodestate.scheduling.request import joint_request
from nodestate.scheduling.selection import Lack, Remaining, Selector
from nodestate.text import count_text

MAX_AFFINITY_NODES_COUNT: Final = 8
"""Maximum number of nodes that are tried, one after the other, for an affinity group as a whole."""


class UnsureRows(NamedTuple):
    """The rows of nodes with an unsure record."""

    nodes: AbstractSet[str]
    """The nodes."""
    fleet_size: int
    """The number of nodes in the fleet when their rows were looked up."""
    rows: frozenset[int]
    """Their rows."""


class NodeChooser:
    """Chooses nodes for placings, for one scheduler.

    Args:
        fleet: The scheduler's fleet.
        selector: Ranks the nodes of the fleet.
        claim_table: The scheduler's claims.
    """

    def __init__(self, fleet: Fleet, selector: Selector, claim_table: ClaimTable) -> None:
        self._fleet = fleet
        """The nodes to choose from."""
        self._selector = selector
        """Ranks the nodes."""
        self._claim_table = claim_table
        """Tells which claim records are unsure."""
        self._unsure_nodes: AbstractSet[str] | None = None
        """The nodes with an unsure record; None until this round has looked them up."""
        self._unsure = UnsureRows(frozenset(), 0, frozenset())
        """Their rows, as far as they were looked up."""

    def begin_round(self) -> None:
        """Look the unsure records up again, as time has passed."""
        self._unsure_nodes = None

    def chosen_row(self, placing: Placing) -> int | None:
        """Return the row of the best node for a placing. Returns None, and fails the placing, if no node will do."""
        with self._fleet.excluding(self.exclusions(placing)):
            if placing.only_row is not None:
                row = placing.only_row if self.may(placing, placing.only_row) else None
            else:
                row = next(iter(self._selector.best(placing.request, 1, self._excluded_rows(placing))), None)
            placing.note_removed(self._selector.removed(placing.request))
            if row is None:
                placing.fail(self.no_node(placing))
        return row

    def growing_row(self, placing: Placing) -> int | None:
        """Return the row of an instance that is resized in place. If it cannot grow, fail the placing and return None.

        Only the growth must fit. The instance is on the node already, so neither the node's status nor the constraints
        of its boot matter, and neither does a class of which the node has too little if the instance needs no more of
        it. The agent decides in the same way.
        """
        row, original, fleet = placing.only_row, placing.original, self._fleet
        assert row is not None, "a placing in place is restricted to its node"
        assert original is not None, "a placing in place has an allocation"
        node = fleet.names[row]
        if not fleet.is_responsive(row) or fleet.is_faulty(row) or fleet.claim_overlay.is_blocked(row):
            placing.fail(NoHostFound((Remaining("all", 1), Remaining("status", 0)), node=node))
            return None
        free = {name: int(fleet.free[name][row]) if name in fleet.free else 0 for name in placing.request.resources}
        growth = beyond(placing.request.resources, original.amounts)
        lacks = tuple(Lack(name, more, max(0, free[name])) for name, more in growth.items() if more > free[name])
        if lacks:
            steps = (Remaining("all", 1), Remaining("resources", 0))
            placing.fail(NoHostFound(steps, node=node, lacks=lacks))
            return None
        return row

    def rows_for_all(self, placings: Sequence[Placing]) -> list[int]:
        """Return the best rows whose nodes have room for all of these placings together, the best one first."""
        same = len({placing.request.shape for placing in placings}) == 1
        exclude = {row for placing in placings for row in self._excluded_rows(placing)}
        with self._fleet.excluding(self.exclusions(placings[0])):
            count = MAX_AFFINITY_NODES_COUNT if same else max(1, len(self._fleet))
            rows = self._selector.best(joint_request([placing.request for placing in placings]), count, exclude)
            found = (row for row in rows if same or all(self.may(placing, row) for placing in placings))
            return list(itertools.islice(found, MAX_AFFINITY_NODES_COUNT))

    def may(self, placing: Placing, row: int) -> bool:
        """Return whether a placing may go to the node of this row."""
        return (
            placing.only_row in (None, row)
            and row not in placing.avoided_rows
            and not (placing.avoid_unsure and row in self._unsure_rows())
            and self._selector.passes(placing.request, row)
        )

    def contradiction(self, placing: Placing) -> NoHostFound | None:
        """Return the reason if the group of a new instance has members under another policy; else None.

        A migration is allowed: the instance is a member already, and has to leave its node.
        """
        text = self._selector.contradiction(placing.request) if placing.original is None else ""
        remaining = (Remaining("all", len(self._fleet)), Remaining("group", 0))
        return NoHostFound(remaining, text) if text else None

    def no_node(self, placing: Placing) -> NoHostFound:
        """Return the reason why no node was found for a placing."""
        exclude = self._excluded_rows(placing)
        node = ""
        if placing.only_row is not None:
            node = self._fleet.names[placing.only_row]
            exclude = exclude | (set(range(len(self._fleet))) - {placing.only_row})
        remaining = self._selector.remaining(placing.request, exclude)
        unsure = self._why_unsure(node) if placing.avoid_unsure and self._unsure_rows() else ""
        if unsure and not remaining[0].nodes:
            return NoHostFound(remaining, unsure, is_temporary=True)
        unknown = "" if node else self._selector.unknown(placing.request)
        lacks = self._selector.lacks(placing.request, exclude)
        found = NoHostFound(remaining, unknown, node, lacks, known=len(self._fleet))
        return NoHostFound(remaining, f"{found}; {unsure}") if unsure and not node else found

    def _why_unsure(self, node: str) -> str:
        """Return a sentence about the unsure records. ``node``: the only node that may be chosen; empty if any may."""
        count = len(self._unsure_rows())
        whose = node or f"{'all ' if 1 < count == len(self._fleet) else ''}{count_text(count, 'node')}"
        missing = f"claims may be missing from the records of {whose}"
        records = self._claim_table.records
        if records.full_servers:
            names = " and ".join(sorted(set(records.full_servers.values())))
            return f"{missing}: {names} has no memory left for a copy; give it more memory, and try again"
        if records.partly_known:
            return f"{missing}: the server of one copy does not answer; try again when 'nodestate doctor' finds it"
        return f"{missing}, which were created less than {UNSURE_S:g} s ago; try again"

    def exclusions(self, placing: Placing) -> tuple[Exclusion, ...]:
        """Return the allocations and claims that count as absent while a node is chosen for a placing.

        For a member of an affinity group, these contain the claims that it left on nodes that did not answer. Otherwise
        the group would be bound to such a node until the claim expires.
        """
        group = placing.request.group
        if group is None or group.policy != "affinity" or not placing.avoided_rows:
            return placing.exclusions
        known = {(one.row, one.instance) for one in placing.exclusions}
        return placing.exclusions + tuple(
            Exclusion(row, one.instance, {})
            for one in placing.together or [placing]
            for row in self._fleet.instances.rows_with(one.instance)
            if row in placing.avoided_rows and (row, one.instance) not in known
        )

    def _excluded_rows(self, placing: Placing) -> AbstractSet[int]:
        """Return the rows of the nodes that a placing must avoid."""
        if not placing.avoid_unsure:
            return placing.avoided_rows
        unsure = self._unsure_rows()
        return placing.avoided_rows | unsure if placing.avoided_rows else unsure

    def _unsure_rows(self) -> frozenset[int]:
        """Return the rows of nodes with an unsure record.

        While a server is away, most records are unsure for hours. So the rows are kept between rounds, and looked up
        again only if other records are unsure, or the fleet has more nodes.
        """
        if self._unsure_nodes is None:
            self._unsure_nodes = self._claim_table.unsure_nodes()
        nodes, rows = self._unsure_nodes, self._fleet.rows
        if nodes is not self._unsure.nodes or len(rows) != self._unsure.fleet_size:
            self._unsure = UnsureRows(nodes, len(rows), frozenset(rows[node] for node in nodes if node in rows))
        return self._unsure.rows


def beyond(wanted: Mapping[str, int], had: Mapping[str, int]) -> dict[str, int]:
    """Return by how much each amount in ``wanted`` exceeds the amount in ``had``. Other classes are missing from
    the result.
    """
    return {name: amount - had.get(name, 0) for name, amount in wanted.items() if amount > had.get(name, 0)}
