r"""Termination orders: an ``End`` is sent again until views no longer show the instance.

::

    pending --a view shows the instance, every REASSERT_S--> sent again --> pending
    pending --no view shows it for retry_s, and the node reported a newer state--> done
    pending --TERMINATION_UNCONFIRMED_S--> given up

An agent ends only the allocation that the named order built, so an ``End`` that is late or repeated ends nothing else.
If the termination names a lifetime, the instance is also ended on nodes that it was migrated to meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from nodestate.model import NEVER, Version
from nodestate.model.orders import Build
from nodestate.ports import Clock
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.order_ids import lifetime_id_of, order_id_of
from nodestate.scheduling.orders.order_sender import OrderSender

TERMINATION_RETRY_S: Final = 60.0
"""Minimum time for which ``End`` is sent again while a view still shows the instance."""
TERMINATION_CLAIMS_COUNT: Final = 2
"""The same minimum in multiples of ``claim_ttl_s``; the larger of the two holds.

A scheduler with an older view may still migrate the instance; that migration is built within one ``claim_ttl_s``.
"""
TERMINATION_UNCONFIRMED_S: Final = 3600.0
"""Time for which ``End`` is kept if the node reports no newer state: it may come back with the old instance."""


class Termination(NamedTuple):
    """An instance to end on a node.

    ``order_id``: end it only if this order built its allocation; empty: whichever order did. ``lifetime_id``: end the
    instance also on other nodes that report the same lifetime; empty: only on this node.
    """

    node: str
    instance: str
    order_id: str = ""
    lifetime_id: str = ""


class TerminationOrders:
    """The terminations of one scheduler that no view has confirmed.

    Args:
        fleet: The nodes as the last view shows them.
        sender: The way to the agents.
        clock: For the age of terminations: monotonic seconds.
        claim_ttl_s: How long a claim lives, in seconds.
    """

    def __init__(self, fleet: Fleet, sender: OrderSender, clock: Clock, claim_ttl_s: float) -> None:
        self._fleet = fleet  # the nodes as the last view shows them
        self._sender = sender  # the way to the agents
        self._clock = clock  # for the age of terminations
        self._retry_s = max(TERMINATION_RETRY_S, TERMINATION_CLAIMS_COUNT * claim_ttl_s)  # see TERMINATION_RETRY_S
        self._pending: dict[Termination, tuple[Version, float]] = {}  # the node's version at the request, and its time
        self._unseen_builds: dict[tuple[str, str], tuple[Termination, Version]] = {}  # built, and in no view

    def terminate_orders(self, terminations: Iterable[Termination]) -> None:
        """Send ``End`` for each of these, and repeat it as the module's docstring says.

        A termination that names neither an order nor a lifetime is sent once only.
        """
        terminations = list(terminations)
        now = self._clock.monotonic()
        self._pending.update(
            (termination, (self._version(termination.node), now))
            for termination in terminations
            if termination.order_id or termination.lifetime_id
        )
        self._send(terminations)

    def terminate_duplicates(self, copies: Iterable[tuple[str, str]]) -> None:
        """End instances on nodes, as (node, instance), that live on elsewhere.

        Ends exactly the allocations that the last view shows: an allocation that was changed since is kept.
        """
        self.terminate_orders(
            Termination(node, instance, order_id_of(self._hints(node, instance))) for node, instance in copies
        )

    def roll_back(self, orders: Iterable[Build]) -> None:
        """End the instances that these orders built, also on nodes to which they were migrated, and nothing else."""
        self.terminate_orders(
            Termination(order.node, order.instance, order.id, lifetime_id_of(order.hints)) for order in orders
        )

    def resend(self) -> None:
        """Send ``End`` again for each instance that the last view still shows.

        Forget the terminations that are confirmed, or older than ``TERMINATION_UNCONFIRMED_S``.
        """
        now = self._clock.monotonic()
        shown: list[Termination] = []
        for termination, (before, since) in list(self._pending.items()):
            still_there = self._still_shown(termination)
            shown += still_there
            has_newer_state = self._version(termination.node) > before
            confirmed = not still_there and has_newer_state and now > since + self._retry_s
            if confirmed or now > since + TERMINATION_UNCONFIRMED_S:
                del self._pending[termination]
        self._send(shown)

    def is_any_shown(self, terminations: Iterable[Termination]) -> bool:
        """Whether the last view still shows an instance of one of these."""
        return any(map(self._still_shown, terminations))

    def add_unseen_build(self, order: Build, version: Version) -> None:
        """Remember that an agent carried out an order; its node's state of ``version`` will show it."""
        termination = Termination(order.node, order.instance, order.id, lifetime_id_of(order.hints))
        self._unseen_builds[order.node, order.instance] = termination, version

    def unseen_build(self, node: str, instance: str) -> Termination | None:
        """Return the termination of an instance that was built and that no view has shown; None if there is none."""
        return self._unseen_builds.get((node, instance), (None, NEVER))[0]

    def forget_seen_builds(self) -> None:
        """Forget the builds that the last view shows."""
        self._unseen_builds = {
            key: build for key, build in self._unseen_builds.items() if build[1] > self._version(key[0])
        }

    def _still_shown(self, termination: Termination) -> list[Termination]:
        """Return one termination for each node on which the last view shows the instance that is to be ended."""
        shown = []
        for row in self._fleet.instances.reporting_rows(termination.instance):
            hints = self._fleet.reports.hints(row, termination.instance)
            reported = Termination(self._fleet.names[row], termination.instance, order_id_of(hints))
            same_lifetime = termination.lifetime_id and termination.lifetime_id == lifetime_id_of(hints)
            if same_lifetime or reported == termination._replace(lifetime_id=""):
                shown.append(reported)
        return shown

    def _hints(self, node: str, instance: str) -> dict[str, object]:
        row = self._fleet.rows.get(node)
        return dict(self._fleet.reports.hints(row, instance)) if row is not None else {}

    def _version(self, node: str) -> Version:
        row = self._fleet.rows.get(node)
        return self._fleet.version[row] if row is not None else NEVER

    def _send(self, terminations: Iterable[Termination]) -> None:
        self._sender.send([self._sender.end_order(one.node, one.instance, one.order_id) for one in terminations])
