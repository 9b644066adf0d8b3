r"""Termination orders: an ``End`` order is sent repeatedly until views no longer show the instance.

::

    pending --the view shows the instance: checked every REASSERT_S--> End is sent again --> pending
    pending --the view does not show it, its node has a newer state, and the retry time is over--> done
    pending --TERMINATION_UNCONFIRMED_S--> given up

An agent ends only the allocation that the named order built. So an ``End`` that arrives late or twice
ends nothing else.
If the termination names a lifetime, the instance is also ended on other nodes to which it was migrated meanwhile.
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
"""Minimum time in seconds for which a termination stays pending.

Until then, ``End`` is sent again whenever the view shows the instance.
"""
TERMINATION_CLAIMS_COUNT: Final = 2
"""A second minimum of the same time, as a multiple of ``claim_ttl_s``. The larger of the two applies.

The reason: a scheduler with an older view may still migrate the instance, and that migration is built within one
``claim_ttl_s``.
"""
TERMINATION_UNCONFIRMED_S: Final = 3600.0
"""Time in seconds after which a termination is given up if its node reports no newer state.

Until then, the node may come back with the old instance.
"""


class Termination(NamedTuple):
    """An instance that is to be ended on a node."""

    node: str
    """The node's name."""
    instance: str
    """The instance's id."""
    order_id: str = ""
    """End the instance only if the order with this id built its allocation. Empty: end it whichever order built it."""
    lifetime_id: str = ""
    """End the instance also on other nodes that report it with this lifetime. Empty: end it only on ``node``."""


class TerminationOrders:
    """Ends instances for one scheduler, and keeps each termination until views confirm it.

    Args:
        fleet: The nodes as the last view shows them.
        sender: Sends orders to the agents.
        clock: The time, for the age of terminations.
        claim_ttl_s: Seconds from a claim to its deadline.
    """

    def __init__(self, fleet: Fleet, sender: OrderSender, clock: Clock, claim_ttl_s: float) -> None:
        self._fleet = fleet  # the nodes as the last view shows them
        self._sender = sender  # sends orders to the agents
        self._clock = clock  # for the age of terminations
        self._retry_s = max(TERMINATION_RETRY_S, TERMINATION_CLAIMS_COUNT * claim_ttl_s)  # how long each stays pending
        # The pending terminations. For each, its node's version and the monotonic time when it was requested.
        self._pending: dict[Termination, tuple[Version, float]] = {}
        # By (node, instance), the builds that agents confirmed and no view has shown: how to end each, and the version
        # of the node's state that will show it.
        self._unseen_builds: dict[tuple[str, str], tuple[Termination, Version]] = {}

    def terminate_orders(self, terminations: Iterable[Termination]) -> None:
        """Send ``End`` for each termination, and keep the termination pending, so that ``resend`` repeats it.

        A termination that names neither an order nor a lifetime is sent once and not kept pending. A later view may
        show a newer allocation of the instance, and a repeated ``End`` would end that one by mistake.
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
        """End allocations of instances that stay on another node.

        Ends exactly the allocations that the last view shows. If an allocation was changed after that view, its agent
        keeps it. (An allocation without an order id is ended in any case.) An allocation without a valid tag stays if
        the cell requires tags: it may be the true one, changed by another program than a scheduler.

        Args:
            copies: The allocations to end, as (node, instance).
        """
        self.terminate_orders(
            Termination(node, instance, order_id_of(self._hints(node, instance)))
            for node, instance in copies
            if self._is_believed(node, instance)
        )

    def roll_back(self, orders: Iterable[Build]) -> None:
        """End the allocations that these orders built, also on nodes to which the instances were migrated since.

        Allocations of the same instances from another lifetime stay.
        """
        self.terminate_orders(
            Termination(order.node, order.instance, order.id, lifetime_id_of(order.hints)) for order in orders
        )

    def resend(self) -> None:
        """Send ``End`` again for each pending termination whose instance the last view still shows.

        Removes a termination from the pending ones when it is confirmed: the last view does not show the instance, the
        node has reported a newer state since the request, and the retry time is over. Also removes terminations that
        are older than ``TERMINATION_UNCONFIRMED_S``.
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
        """Return whether the last view still shows an allocation that one of these terminations is to end.

        Allocations of nodes that left do not count, because they stay until the node is forgotten.
        """
        shown = (one for termination in terminations for one in self._still_shown(termination))
        return not all(map(self.is_on_node_that_left, shown))

    def is_on_node_that_left(self, termination: Termination) -> bool:
        """Return whether the node of a termination has left, so that its allocations stay until it is forgotten."""
        row = self._fleet.rows.get(termination.node)
        return row is not None and self._fleet.reports.has_left(row)

    def add_unseen_build(self, order: Build, version: Version) -> None:
        """Remember that an agent built an instance that no view has shown.

        Args:
            order: The order that the agent carried out.
            version: A version of the node's state that shows the instance.
        """
        termination = Termination(order.node, order.instance, order.id, lifetime_id_of(order.hints))
        self._unseen_builds[order.node, order.instance] = termination, version

    def unseen_build(self, node: str, instance: str) -> Termination | None:
        """Return the termination for an instance that its agent built on this node but no view has shown.

        Returns None if no such instance is known.
        """
        return self._unseen_builds.get((node, instance), (None, NEVER))[0]

    def forget_seen_builds(self) -> None:
        """Forget the builds on nodes whose state in the last view shows them."""
        self._unseen_builds = {
            key: build for key, build in self._unseen_builds.items() if build[1] > self._version(key[0])
        }

    def _still_shown(self, termination: Termination) -> list[Termination]:
        """Return one termination for each node on which the last view shows an allocation that is to be ended."""
        shown = []
        for row in self._fleet.instances.reporting_rows(termination.instance):
            hints = self._fleet.reports.hints(row, termination.instance)
            reported = Termination(self._fleet.names[row], termination.instance, order_id_of(hints))
            same_lifetime = termination.lifetime_id and termination.lifetime_id == lifetime_id_of(hints)
            if same_lifetime or reported == termination._replace(lifetime_id=""):
                shown.append(reported)
        return shown

    def _is_believed(self, node: str, instance: str) -> bool:
        """Return whether clean-up believes the last report of an instance on a node; True if the node is unknown."""
        row = self._fleet.rows.get(node)
        return row is None or self._fleet.reports.is_believed(row, instance)

    def _hints(self, node: str, instance: str) -> dict[str, object]:
        """Return the hints of an instance on a node; empty if the fleet does not have the node."""
        row = self._fleet.rows.get(node)
        return dict(self._fleet.reports.hints(row, instance)) if row is not None else {}

    def _version(self, node: str) -> Version:
        """Return the version of a node's state in the last view; ``NEVER`` if the fleet does not have the node."""
        row = self._fleet.rows.get(node)
        return self._fleet.version[row] if row is not None else NEVER

    def _send(self, terminations: Iterable[Termination]) -> None:
        """Send ``End`` for each of these terminations, except on nodes that left: no agent receives orders there."""
        self._sender.send(
            [
                self._sender.end_order(one.node, one.instance, one.order_id)
                for one in terminations
                if not self.is_on_node_that_left(one)
            ]
        )
