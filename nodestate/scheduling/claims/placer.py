"""The placer: chooses a node for each instance and claims room on it, for many instances at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from nodestate.errors import BadRequestError, NodestateError, StoreUnavailableError
from nodestate.ports import Clock, WriteStatus
from nodestate.ports.ids import IdSource
from nodestate.scheduling import order_ids
from nodestate.scheduling.claims.affinity_seed import AffinitySeed
from nodestate.scheduling.claims.claim_table import ClaimTable
from nodestate.scheduling.claims.node_chooser import NodeChooser, beyond
from nodestate.scheduling.claims.placing import NoHostFound, Placing
from nodestate.scheduling.claims.record import Claim
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.request import hints_of, joint_request
from nodestate.scheduling.scheduler_stats import SchedulerStats
from nodestate.scheduling.selection import Selector
from nodestate.text import count_text

MAX_TRIES_COUNT: Final = 16
"""Number of times that an instance may lose its chosen node to other schedulers; then it fails."""
NEXT_BEST_COUNT: Final = 64
"""Number of nodes whose records are read again after a conflict: the best ones for the request."""


class Placer:
    r"""Chooses nodes and claims them, for one scheduler. The states of one placing::

        unplaced --choose a node--> assigned --its claim is stored--> claimed
          ^  |                         |
          |  \--no node is left--> failed
          |                            |
          \--another scheduler changed the record first: the records of the next best nodes are read again;
             after MAX_TRIES_COUNT times the placing fails

    The placer works in rounds. In one round it chooses a node for each unplaced placing, and writes all new claims
    together. The placings whose claim was not stored take part in the next round.

    Members of a hard group that are placed at once (``Placing.together``) are placed as a whole: all members get a
    claim, or none gets one. If each member of an affinity group went to the best node for itself, the first members
    could fill a node on which the last one finds no room. So the placer first chooses a node with room for all of them.

    The scheduler knows the claims of other schedulers only as they were when it read the records. So before a placing
    fails because no node is left, the placer reads the view and the records once more.

    Args:
        holder: The scheduler's name, which is written into its claims.
        fleet: The scheduler's fleet.
        selector: Chooses nodes of the fleet.
        claim_table: The scheduler's claims.
        affinity_seed: The seeds of the cell's affinity groups.
        refresh_for_retry: Reads a newer view, and the claim records again. Returns True if the fleet changed, so that a
            retry may find a node.
        clock: The time for new claim ids.
        ids: The source of the random part of new claim ids.
        stats: Counts the decisions; None for counters of this placer alone.
    """

    def __init__(
        self,
        holder: str,
        fleet: Fleet,
        selector: Selector,
        claim_table: ClaimTable,
        affinity_seed: AffinitySeed,
        refresh_for_retry: Callable[[], bool],
        clock: Clock,
        ids: IdSource,
        stats: SchedulerStats | None = None,
    ) -> None:
        self.stats = stats or SchedulerStats()
        """Counts the decisions."""
        self.on_placed: Callable[[Sequence[Placing]], None] | None = None
        """Called with placings that have just got a claim or a failure, while the fleet is as it was for them, but for
        their own claims. A program may set it to record decisions; None if none does.
        """
        self._holder = holder
        """The name in new claims."""
        self._refresh_for_retry = refresh_for_retry
        """Brings the fleet up to date before a placing fails."""
        self._clock = clock
        """The time for new claim ids."""
        self._ids = ids
        """The source of the random part of new claim ids."""
        self._fleet = fleet
        """The nodes to choose from."""
        self._selector = selector
        """Chooses among the nodes."""
        self._claim_table = claim_table
        """Writes the claims."""
        self._affinity_seed = affinity_seed
        """The nodes for the first members of affinity groups."""
        self._chooser = NodeChooser(fleet, selector, claim_table)
        """Chooses a node for each placing."""

    def place(self, placings: Iterable[Placing]) -> None:
        """Choose and claim nodes, until each placing has a claim or a failure.

        Costs one round trip to each server, one more for each group that is placed as a whole, and more only
        if another scheduler claims the same nodes at the same time.
        """
        waiting = [placing for placing in placings if not placing.settled]
        wholes = {id(placing.together): placing.together for placing in waiting if placing.together}
        for members in wholes.values():
            self._place_together(members)
        self._place_each([placing for placing in waiting if not placing.together])
        for placing in waiting:
            self._count(placing)
        if waiting and self.on_placed is not None:
            self.on_placed(waiting)

    def _count(self, placing: Placing) -> None:
        """Count the result of a placing, and the nodes that each filter removed."""
        self.stats.count_decision("claimed" if placing.failure is None else "no-host", placing.removed)

    def _place_each(self, placings: Iterable[Placing]) -> None:
        """Choose and claim a node for each of these placings by itself, until each has a claim or a failure."""
        waiting = list(placings)
        refreshed = False
        while waiting:
            self._claim_table.expire()
            began = self._clock.monotonic()
            self._chooser.begin_round()
            assigned = [placing for placing in waiting if self._assign(placing)]
            self.stats.durations_s["choose"].observe(self._clock.monotonic() - began)
            self._write(assigned)
            self._read_next_best(placing for placing in assigned if placing.conflicts and not placing.settled)
            failed = [placing for placing in waiting if placing.failure is not None and placing.failure.remaining]
            if failed and not refreshed:
                # Other schedulers do not announce that they dropped a claim, so there may be room again.
                refreshed = True
                if self._refresh_for_retry():
                    for placing in failed:
                        placing.retry()
            waiting = [placing for placing in waiting if not placing.settled]

    def _place_together(self, members: Sequence[Placing]) -> None:
        """Claim nodes for the unplaced members of a group, or fail all of them.

        Args:
            members: The members that are placed together. Those that have a claim already keep it.
        """
        placings = [placing for placing in members if not placing.settled]
        if not any(placing.failure is not None for placing in members):
            group = placings[0].request.group
            if group is not None and group.policy == "affinity":
                self._place_on_one_node(placings)
            else:
                self._place_each(placings)
        failed = next((placing for placing in members if placing.failure is not None), None)
        if failed is None:
            return
        self.give_back(placings)
        for placing in placings:
            if placing.failure is None:
                reason = f"{failed.instance} of the same group got no node: {failed.failure}"
                placing.fail(NoHostFound(reason=reason))

    def _place_on_one_node(self, placings: Sequence[Placing]) -> None:
        """Claim one node for these unplaced members of an affinity group, or fail all of them."""
        self._chooser.begin_round()
        reason = self._claim_one_row(placings)
        # Other schedulers do not announce that they dropped a claim, so there may be room again.
        if reason is not None and self._refresh_for_retry():
            self._chooser.begin_round()
            reason = self._claim_one_row(placings)
        if reason is not None:
            for placing in placings:
                placing.fail(reason)

    def _claim_one_row(self, placings: Sequence[Placing]) -> NoHostFound | None:
        """Claim one node for all of these placings. Returns None, or the reason why none of them has a claim."""
        reason: NoHostFound | None = None
        group = placings[0].request.group
        assert group is not None, "only members of an affinity group are placed together"
        contradiction = self._chooser.contradiction(placings[0])
        if contradiction is not None:
            return contradiction
        whole = f"no node takes all {count_text(len(placings), 'instance')} of affinity group {group.name}"
        try:
            rows = self._chooser.rows_for_all(placings)
        except BadRequestError as error:  # the request names a weigher that is not installed
            return NoHostFound(reason=str(error))
        for row in rows:
            for placing in placings:
                placing.restrict_to(row)
            self._place_each(placings)
            failed = next((placing.failure for placing in placings if placing.failure is not None), None)
            if failed is not None:
                reason = reason or NoHostFound(failed.remaining, f"{whole}: {failed}", is_temporary=failed.is_temporary)
                self.give_back(placings)
            for placing in placings:
                placing.restrict_to(None)
            if failed is None:
                return None
        if reason is None:
            with self._fleet.excluding(self._chooser.exclusions(placings[0])):
                together = joint_request([placing.request for placing in placings])
                why = self._chooser.no_node(dataclasses.replace(placings[0], request=together))
            reason = NoHostFound(why.remaining, f"{whole}: {why}", is_temporary=why.is_temporary)
        return reason

    def _read_next_best(self, beaten: Iterable[Placing]) -> None:
        """Read the records of the next best nodes for placings that lost their node to another scheduler.

        The other scheduler has probably claimed some of these nodes as well.
        """
        shapes = {placing.request.shape: placing.request for placing in beaten}
        rows = {row for request in shapes.values() for row in self._selector.best(request, NEXT_BEST_COUNT)}
        if rows:
            self._claim_table.read_records(self._fleet.names[row] for row in rows)

    def give_back(self, placings: Iterable[Placing]) -> None:
        """Drop the claims of these placings, and write the records. Placings without a claim are skipped."""
        for placing in placings:
            if placing.claim is not None and placing.node is not None:
                self._claim_table.drop_claim(placing.node, placing.claim.id)
                placing.release()
        self._claim_table.flush_all()

    def _assign(self, placing: Placing) -> bool:
        """Choose a node for a placing, and add the claim to the edits that ``_write`` flushes.

        Returns True if a claim was added. Returns False if none was. The placing has failed then, or it is still
        unplaced and takes part in the next round: the affinity seed changed, or a claim server does not answer.
        """
        request = placing.request
        contradiction = self._chooser.contradiction(placing)
        if contradiction is not None:
            placing.fail(contradiction)
            return False
        try:
            row = self._chooser.growing_row(placing) if placing.in_place else self._chooser.chosen_row(placing)
            if row is None:
                return False
        except BadRequestError as error:  # the request names a weigher that is not installed; the other placings go on
            placing.fail(NoHostFound(reason=str(error)))
            return False
        group = request.group
        seeds_group = group is not None and group.policy == "affinity" and group.name not in self._fleet.groups
        if seeds_group:
            row = self._seed_row(placing, row)
            if row is None:
                self._count_conflict(placing)
                return False
        node = self._fleet.names[row]
        try:
            until = self._claim_table.servers.time(node) + placing.claim_ttl_s
        except NodestateError as error:
            self._avoid_server(placing, row, error)
            return False
        original = placing.original
        had = original.amounts if original is not None and original.row == row else None
        claim = Claim(
            order_ids.new_order_id(self._clock, self._ids),
            placing.instance,
            self._holder,
            until,
            request.resources if had is None else beyond(request.resources, had),
            group.name if group is not None else None,
            hints_of(request),
            placing.reservation,
            placing.members,
            owner=placing.owner,
            resize=had is not None,
        )
        placing.assign(node, claim, seeds_group=seeds_group)
        self._claim_table.add_claim(node, claim, avoid_unsure=placing.avoid_unsure)
        return True

    def _seed_row(self, placing: Placing, row: int) -> int | None:
        """Return the row that the group's seed allows for the first member of an affinity group.

        Args:
            placing: The first member, as far as this scheduler knows.
            row: The row that was chosen for it.

        If the member may go to the seed's node, returns the row of that node. Otherwise the method replaces the seed by
        the chosen node, and returns ``row``. Returns None if the seed could not be replaced: the group has members now,
        another scheduler changed the seed, or the server did not answer. The next round then chooses again.
        """
        group, fleet = placing.request.group, self._fleet
        assert group is not None, "only members of a group have a seed"
        there = self._affinity_seed.claim_or_get(group.name, fleet.names[row], placing.claim_ttl_s)
        agreed = fleet.rows.get(there.node)
        if agreed is not None and (agreed == row or self._chooser.may(placing, agreed)):
            return agreed
        self._claim_table.read_records([there.node])
        if group.name in fleet.groups or not self._affinity_seed.replace(
            group.name, there, fleet.names[row], placing.claim_ttl_s
        ):
            return None
        self._claim_table.read_records([there.node])
        return row if group.name not in fleet.groups else None

    def _write(self, assigned: Sequence[Placing]) -> None:
        """Write the claims of the assigned placings. If a claim was not stored, its placing is unplaced again, or it
        fails.
        """
        began = self._clock.monotonic()
        outcomes = self._claim_table.flush() if assigned else {}
        self.stats.durations_s["claim"].observe(self._clock.monotonic() - began)
        for placing in assigned:
            assert placing.node is not None, "an assigned placing has a node"
            outcome = outcomes[placing.node]
            if outcome is WriteStatus.STORED and (not placing.seeds_group or self._still_seeded(placing)):
                continue
            row = self._fleet.rows[placing.node]
            placing.release()
            if isinstance(outcome, NodestateError):
                self._avoid_server(placing, row, outcome)
            elif outcome is WriteStatus.FULL:
                placing.avoid([row])
            else:
                self._count_conflict(placing)

    def _still_seeded(self, placing: Placing) -> bool:
        """Return whether the group's seed is still the node that was just claimed. If not, drop the claim."""
        group = placing.request.group
        assert group is not None, "only members of a group have a seed"
        assert placing.node is not None, "a claimed placing has a node"
        assert placing.claim is not None, "a claimed placing has a claim"
        if self._affinity_seed.claim_or_get(group.name, placing.node, placing.claim_ttl_s).node == placing.node:
            return True
        self._claim_table.drop_claim(placing.node, placing.claim.id)
        return False

    @staticmethod
    def _count_conflict(placing: Placing) -> None:
        """Count that a placing lost its node to another scheduler; after ``MAX_TRIES_COUNT`` times, fail it."""
        placing.count_conflict()
        if placing.conflicts >= MAX_TRIES_COUNT:
            placing.fail(NoHostFound(reason=f"lost its node to other schedulers {placing.conflicts} times"))

    def _avoid_server(self, placing: Placing, row: int, error: NodestateError) -> None:
        """Make a placing avoid all nodes with the same home as one whose records no server can take.

        Fails the placing if no node is left.

        Args:
            placing: The placing.
            row: The row of the node.
            error: The server's error.
        """
        home_of = self._claim_table.servers.home
        home = home_of(self._fleet.names[row])
        placing.avoid(row for row, name in enumerate(self._fleet.names) if home_of(name) == home)
        if len(placing.avoided_rows) >= len(self._fleet):
            is_temporary = isinstance(error, StoreUnavailableError)
            placing.fail(NoHostFound(reason=f"no claim can be written: {error}", is_temporary=is_temporary))
