r"""The placer: a node for each instance, chosen and claimed, for many instances at a time.

::

    wanted --choose--> taken --the ledger wrote it--> claimed
      ^ |                |
      | \--no node is left: failed, and why
      \--somebody else was faster, up to MAX_TRIES_COUNT times: the records of the next best nodes are read, too

Claims of others are known as of when their records were read; before an instance fails for want of a node they are read
again, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from nodestate.errors import BadRequestError, NodestateError
from nodestate.ports import Clock, WriteStatus
from nodestate.ports.ids import IdSource
from nodestate.scheduling import order_ids
from nodestate.scheduling.claims.affinity_seed import AffinitySeed
from nodestate.scheduling.claims.claim_table import ClaimTable
from nodestate.scheduling.claims.placing import NoHostFound, Placing
from nodestate.scheduling.claims.record import UNSURE_S, Claim
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.request import hints_of
from nodestate.scheduling.selection import Selector

MAX_TRIES_COUNT: Final = 16
"""Rounds in which an instance may lose its node to somebody else."""
LOOK_AROUND_COUNT: Final = 64
"""Nodes whose records are read again after a conflict: the best ones for who met it."""


class Placer:
    """Chooses and claims. Belongs to one scheduler, whose ``holder`` name its claims bear. ``look_again`` reads anew
    what the scheduler knows, and says whether anything differs.
    """

    def __init__(
        self,
        holder: str,
        fleet: Fleet,
        selector: Selector,
        claim_table: ClaimTable,
        affinity_seed: AffinitySeed,
        look_again: Callable[[], bool],
        clock: Clock,
        ids: IdSource,
    ) -> None:
        self._holder = holder
        self._refresh_for_retry = look_again
        self._clock = clock
        self._ids = ids
        self._fleet = fleet
        self._selector = selector
        self._claim_table = claim_table
        self._affinity_seed = affinity_seed
        self._unsure: set[int] | None = None

    def place(self, placings: Iterable[Placing]) -> None:
        """Choose and claim until each is settled: one round trip to each server where nobody interferes."""
        waiting = [placing for placing in placings if not placing.settled]
        looked_again = False
        while waiting:
            self._claim_table.expire()
            self._unsure = None
            taken = [placing for placing in waiting if self._take(placing)]
            self._write(taken)
            self._look_around(placing for placing in taken if placing.conflicts and not placing.settled)
            failed = [placing for placing in waiting if placing.failure is not None and placing.failure.remaining]
            if failed and not looked_again:
                # Nobody tells when a claim of somebody else goes: before a node is refused for one, it is looked at again.
                looked_again = True
                if self._refresh_for_retry():
                    for placing in failed:
                        placing.retry()
            waiting = [placing for placing in waiting if not placing.settled]

    def _look_around(self, beaten: Iterable[Placing]) -> None:
        """Where somebody else was faster, he was so on other nodes too: read the records of those that come next."""
        shapes = {placing.request.shape: placing.request for placing in beaten}
        rows = {row for request in shapes.values() for row in self._selector.best(request, LOOK_AROUND_COUNT)}
        if rows:
            self._claim_table.read_records(self._fleet.names[row] for row in rows)

    def give_back(self, placings: Iterable[Placing]) -> None:
        """Drop the claims of these, and write that."""
        for placing in placings:
            if placing.claim is not None and placing.node is not None:
                self._claim_table.drop_claim(placing.node, placing.claim.id)
                placing.release()
        self._claim_table.flush_all()

    def _take(self, placing: Placing) -> bool:
        request = placing.request
        try:
            with self._fleet.excluding(placing.exclusions):
                row = self._row(placing)
                if row is None:
                    placing.fail(self._no_node(placing))
                    return False
        except BadRequestError as error:  # it names a weigher that is not installed (any more); others go on
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
            self._pass_over(placing, row, error)
            return False
        original = placing.original
        had = original.amounts if original is not None and original.row == row else None
        claim = Claim(
            order_ids.new_order_id(self._clock, self._ids),
            placing.instance,
            self._holder,
            until,
            request.resources if had is None else _beyond(request.resources, had),
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

    def _no_node(self, placing: Placing) -> NoHostFound:
        exclude = self._excluded_rows(placing)
        node = ""
        if placing.only_row is not None:
            node = self._fleet.names[placing.only_row]
            exclude = exclude | (set(range(len(self._fleet))) - {placing.only_row})
        remaining = self._selector.remaining(placing.request, exclude)
        if placing.avoid_unsure and not remaining[0].nodes and self._unsure_rows():
            whose = node or f"all {len(self._fleet):,} nodes"
            return NoHostFound(
                remaining, f"claims may be missing from the records of {whose}: they are {UNSURE_S:g} s old at most"
            )
        unknown = "" if node else self._selector.unknown(placing.request)
        return NoHostFound(remaining, unknown, node, self._selector.lacks(placing.request, exclude))

    def _row(self, placing: Placing) -> int | None:
        if placing.only_row is not None:
            return placing.only_row if self._may(placing, placing.only_row) else None
        return next(iter(self._selector.best(placing.request, 1, self._excluded_rows(placing))), None)

    def _may(self, placing: Placing, row: int) -> bool:
        return (
            placing.only_row in (None, row)
            and row not in placing.avoided_rows
            and not (placing.avoid_unsure and row in self._unsure_rows())
            and self._selector.passes(placing.request, row)
        )

    def _excluded_rows(self, placing: Placing) -> set[int]:
        """The rows that it must not go to."""
        return placing.avoided_rows | self._unsure_rows() if placing.avoid_unsure else placing.avoided_rows

    def _unsure_rows(self) -> set[int]:
        """Asked once in a round: right after the start, or a flush, they are all there are."""
        if self._unsure is None:
            self._unsure = {
                self._fleet.rows[node] for node in self._claim_table.unsure_nodes() if node in self._fleet.rows
            }
        return self._unsure

    def _seed_row(self, placing: Placing, row: int) -> int | None:
        """Where the first of an affinity group may go, by what schedulers agreed on; None: look again."""
        group, fleet = placing.request.group, self._fleet
        assert group is not None, "it has a policy"
        there = self._affinity_seed.claim_or_get(group.name, fleet.names[row], placing.claim_ttl_s)
        agreed = fleet.rows.get(there.node)
        if agreed is not None and (agreed == row or self._may(placing, agreed)):
            return agreed
        self._claim_table.read_records([there.node])
        if group.name in fleet.groups or not self._affinity_seed.replace(
            group.name, there, fleet.names[row], placing.claim_ttl_s
        ):
            return None
        self._claim_table.read_records([there.node])
        return row if group.name not in fleet.groups else None

    def _write(self, taken: Sequence[Placing]) -> None:
        outcomes = self._claim_table.flush() if taken else {}
        for placing in taken:
            assert placing.node is not None, "taken, so it has a node"
            outcome = outcomes[placing.node]
            if outcome is WriteStatus.STORED and (not placing.seeds_group or self._still_seeded(placing)):
                continue
            row = self._fleet.rows[placing.node]
            placing.release()
            if isinstance(outcome, NodestateError):
                self._pass_over(placing, row, outcome)
            elif outcome is WriteStatus.FULL:
                placing.avoid([row])
            else:
                self._count_conflict(placing)

    def _still_seeded(self, placing: Placing) -> bool:
        """Whether the group still begins where its first member was claimed; if not, that is given back."""
        group = placing.request.group
        assert group is not None, "it has a policy"
        assert placing.node is not None, "claimed"
        assert placing.claim is not None, "claimed"
        if self._affinity_seed.claim_or_get(group.name, placing.node, placing.claim_ttl_s).node == placing.node:
            return True
        self._claim_table.drop_claim(placing.node, placing.claim.id)
        return False

    @staticmethod
    def _count_conflict(placing: Placing) -> None:
        placing.count_conflict()
        if placing.conflicts >= MAX_TRIES_COUNT:
            placing.fail(NoHostFound(reason=f"lost its node to other schedulers {placing.conflicts} times"))

    def _pass_over(self, placing: Placing, row: int, error: NodestateError) -> None:
        """A server does not answer: none of its nodes can be claimed now."""
        server = self._claim_table.servers.of(self._fleet.names[row])
        placing.avoid(row for row, name in enumerate(self._fleet.names) if self._claim_table.servers.of(name) is server)
        if len(placing.avoided_rows) >= len(self._fleet):
            placing.fail(NoHostFound(reason=f"no claim can be written: {error}"))


def _beyond(wanted: Mapping[str, int], had: Mapping[str, int]) -> dict[str, int]:
    """What is wanted beyond what is there already."""
    return {name: amount - had.get(name, 0) for name, amount in wanted.items() if amount > had.get(name, 0)}
