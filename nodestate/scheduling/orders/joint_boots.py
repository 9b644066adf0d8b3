r"""Joint boots: the members of a hard group that were begun at once are all built, or none is built.

All members have a claim before the first order is sent. But an agent may still refuse some of them, because its node
changed meanwhile. If the other members of an affinity group stayed, the group could never be completed: it is bound to
a node without room. So a member gets its outcome only when all members have a result::

    a member is refused, anti-affinity    --> it is placed again
    all members are refused, affinity     --> all are placed again, on another node
    some are refused and some built, affinity: the refused ones have no other node --> they fail
    all have a result, and all are built  --> all succeed
    all have a result, and some failed    --> all fail: boots that were built are ended, and migrated instances stay on
                                              their original node (not on one that is unresponsive: they have moved)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from nodestate.scheduling.claims import ClaimTable, NoHostFound
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.orders.boot import Boot, Booted, BootOutcome, Failed
from nodestate.scheduling.orders.supersession import Supersessions
from nodestate.scheduling.orders.termination_orders import Termination, TerminationOrders
from nodestate.scheduling.scheduler_stats import SchedulerStats


class JointBoots:
    """Decides when joint boots are placed again, and how they end, for one scheduler.

    Args:
        fleet: The nodes as the last view shows them.
        claim_table: The claims of this scheduler and of others.
        terminations: Ends boots that were built although another member failed.
        supersessions: Keeps the originals of such migrations authoritative, and ends the migrated copies.
        stats: Counts the outcomes of boots.
    """

    def __init__(
        self,
        fleet: Fleet,
        claim_table: ClaimTable,
        terminations: TerminationOrders,
        supersessions: Supersessions,
        stats: SchedulerStats,
    ) -> None:
        self._stats = stats  # counts the outcomes of boots
        self._fleet = fleet  # the nodes as the last view shows them
        self._claim_table = claim_table  # the claims of this scheduler and of others
        self._terminations = terminations  # ends boots that were built
        self._supersessions = supersessions  # keeps the originals of migrations authoritative
        self._held: list[Boot] = []  # boots without a node that wait until the other members have an answer

    def __len__(self) -> int:
        return len(self._held)

    @staticmethod
    def join(boots: Iterable[Boot]) -> None:
        """Join the boots of each hard group: they get their nodes at once, and succeed or fail together."""
        by_placing = {id(boot.placing): boot for boot in boots}
        joined: dict[int, list[Boot]] = {}
        for boot in by_placing.values():
            whole = boot.placing.together
            if whole:
                boot.together = joined.setdefault(id(whole), [by_placing[id(placing)] for placing in whole])

    def hold(self, boot: Boot) -> None:
        """Keep a member of an affinity group that needs another node until the other members have an answer."""
        self._held.append(boot)

    def release(self, sent: Collection[Boot]) -> list[Boot]:
        """Hold the boots no longer in whose groups no boot waits for an answer, and return them.

        The caller chooses another node for them, or fails them.

        Args:
            sent: The boots that wait for an answer to their order.
        """
        waiting = {id(boot) for boot in sent}
        released = [boot for boot in self._held if not any(id(other) in waiting for other in boot.together)]
        self._held = [boot for boot in self._held if any(id(other) in waiting for other in boot.together)]
        return released

    def conclude(self, boot: Boot, result: BootOutcome) -> None:
        """Set the result of a boot. When all boots of its group have a result, give all of them their outcome.

        An instance that was migrated from an unresponsive node is not sent back, as it would not run there.
        """
        boot.result = result
        members = boot.together or [boot]
        results = [one.result for one in members if one.result is not None]
        if len(results) < len(members):
            return
        failed = next((one for one in results if isinstance(one, Failed)), None)
        for one, own in zip(members, results, strict=True):
            original = one.placing.original
            can_return = original is None or self._fleet.is_responsive(original.row)
            if failed is not None and isinstance(own, Booted) and can_return:
                self._roll_back(one, own)
                reason = NoHostFound(reason=f"{failed.instance} of the same group could not be built: {failed.reason}")
                own = Failed(own.instance, reason, own.refusals, own.conflicts)
            self._stats.decisions["booted" if isinstance(own, Booted) else "failed"] += 1
            one.finish(own)

    def _roll_back(self, boot: Boot, booted: Booted) -> None:
        """Undo a boot or a migration that succeeded."""
        order, claim, original = boot.order, boot.placing.claim, boot.placing.original
        if order is None:
            return
        if original is not None:
            # A copy that an earlier order built is ended by the reconciler, once the original has a newer order id.
            copies = [Termination(booted.node, booted.instance, order.id)] if order.node == booted.node else []
            self._supersessions.supersede_original(original, order.id, copies)
        else:
            self._terminations.roll_back([order])
        if claim is not None:
            self._claim_table.drop_claim(booted.node, claim.id, booted.version)


def is_partly_built(boots: Sequence[Boot]) -> bool:
    """Return whether a boot has a result already, so that the others can no longer go to another node."""
    return any(boot.result is not None for boot in boots)
