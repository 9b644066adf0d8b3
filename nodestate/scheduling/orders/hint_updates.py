"""Hint updates: orders that ask an agent to keep more hints with an allocation that it has.

They serve reservations: once all members of a reservation are built, each member's allocation gets the hint ``placed``
(see ``reconciler``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from nodestate.model.orders import Answer, Build
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.order_ids import order_id_of
from nodestate.scheduling.orders.order_sender import OrderSender


class HintUpdates:
    """Sends the hint updates of one scheduler, and knows which ones were answered.

    Args:
        fleet: The nodes as the last view shows them.
        sender: Sends orders to the agents.
    """

    def __init__(self, fleet: Fleet, sender: OrderSender) -> None:
        self._fleet = fleet  # the nodes as the last view shows them
        self._sender = sender  # sends orders to the agents
        self._unacknowledged: set[str] = set()  # ids of updates that no agent has answered

    def update_hints(self, order: Build, hints: Mapping[str, Any]) -> str:
        """Ask an agent to add hints to the allocation that an order built.

        The agent refuses if the allocation was changed after that order.

        Args:
            order: The order that built the allocation.
            hints: The hints to add.

        Returns the id of the update. Pass it to ``acknowledged`` to learn whether the agent has answered.
        """
        update = self._sender.build_in_place(
            order.node, order.instance, order.resources, order.group, {**order.hints, **hints}, order.id
        )
        self._unacknowledged.add(update.id)
        self._sender.send([update])
        return update.id

    def accept_answers(self, answers: Iterable[Answer]) -> None:
        """Note which updates these answers belong to. Answers to other orders are ignored."""
        for answer in answers:
            self._unacknowledged.discard(answer.id)

    def acknowledged(self, ids: Collection[str]) -> bool:
        """Return whether every update with one of these ids was answered, or abandoned."""
        return self._unacknowledged.isdisjoint(ids)

    def abandon(self, ids: Collection[str]) -> None:
        """Stop waiting for the answers to these updates."""
        self._unacknowledged -= set(ids)

    def set_placed(self, node: str, instance: str) -> None:
        """Ask an agent to add the hint ``placed`` to an allocation: all members of its reservation are built.

        The method does not wait for an answer. The caller calls it again until a view shows the hint. If the last view
        does not show the allocation, nothing is sent.
        """
        row = self._fleet.rows.get(node)
        allocation = self._fleet.reports.allocations(row).get(instance) if row is not None else None
        if allocation:
            hints = {**allocation.get("hints", {}), "placed": True}
            update = self._sender.build_in_place(
                node, instance, allocation["resources"], allocation.get("group"), hints, order_id_of(hints)
            )
            self._sender.send([update])
