"""Hint updates: orders that ask an agent to keep other hints with an allocation that it has.

They serve reservations: once all members of a reservation are built, each member's allocation gets the hint ``placed``
(see ``reconciler``). And they serve ``updates``, which changes the request of an instance.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

import msgspec

from nodestate.model.orders import Answer, Build
from nodestate.ports import Clock
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.order_ids import order_id_of
from nodestate.scheduling.orders.order_sender import OrderSender

RESEND_S: Final = 1.0
"""Seconds after which an update that was not answered is sent again."""


class HintUpdate:
    """One order that replaces the hints of an allocation, and its answer.

    Args:
        order: The order.
        sender: Sends the order again.
        clock: The time of the next repetition.
    """

    def __init__(self, order: Build, sender: OrderSender, clock: Clock) -> None:
        self.order = order  # the order, as it was sent last
        self.answer: Answer | None = None  # the agent's answer; None before it arrived
        self._sender = sender  # sends the order again
        self._clock = clock  # the time of the next repetition
        self._resend_at = clock.monotonic() + RESEND_S  # when the order is sent again, in monotonic seconds

    def resend(self) -> None:
        """Send the order again if it was not answered for ``RESEND_S`` seconds.

        The order or its answer may be lost. If the agent has carried the order out before, it answers that again. An
        answer that the order is expired does not count, because it tells the agent's time, for the next order.
        """
        now, order = self._clock.monotonic(), self.order
        if self.answer is None and now >= self._resend_at:
            self._resend_at = now + RESEND_S
            again = self._sender.build_in_place(
                order.node, order.instance, order.resources, order.group, order.hints, order.of
            )
            self.order = msgspec.structs.replace(again, id=order.id)
            self._sender.send([self.order])


class HintUpdates:
    """Sends the hint updates of one scheduler, and knows which ones were answered.

    Args:
        fleet: The nodes as the last view shows them.
        sender: Sends orders to the agents.
        clock: The time at which updates are sent again.
    """

    def __init__(self, fleet: Fleet, sender: OrderSender, clock: Clock) -> None:
        self._clock = clock  # the time at which updates are sent again
        self._fleet = fleet  # the nodes as the last view shows them
        self._sender = sender  # sends orders to the agents
        self._unacknowledged: set[str] = set()  # ids of updates that no agent has answered
        self._awaited: dict[str, HintUpdate] = {}  # the updates whose answer is kept, by id

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
            if answer.id in self._awaited and answer.refused != "expired":
                self._awaited[answer.id].answer = answer

    def acknowledged(self, ids: Collection[str]) -> bool:
        """Return whether every update with one of these ids was answered, or abandoned."""
        return self._unacknowledged.isdisjoint(ids)

    def abandon(self, ids: Collection[str]) -> None:
        """Stop waiting for the answers to these updates."""
        self._unacknowledged -= set(ids)
        for order_id in ids:
            self._awaited.pop(order_id, None)

    def begin(
        self,
        node: str,
        instance: str,
        allocation: Mapping[str, Any],
        hints: Mapping[str, Any],
        expected_order_id: str,
    ) -> HintUpdate:
        """Ask an agent to replace the hints of an allocation, and keep the answer until ``abandon`` is called.

        Args:
            node: The node.
            instance: The instance's id.
            allocation: The allocation as the node reports it.
            hints: All hints of the new allocation.
            expected_order_id: The agent refuses unless the order with this id built the allocation.
        """
        order = self._sender.build_in_place(
            node, instance, allocation["resources"], allocation.get("group"), hints, expected_order_id
        )
        update = self._awaited[order.id] = HintUpdate(order, self._sender, self._clock)
        self._sender.send([order])
        return update

    def set_placed(self, node: str, instance: str) -> None:
        """Ask an agent to add the hint ``placed`` to an allocation: all members of its reservation are built.

        The method does not wait for an answer. The caller calls it again until a view shows the hint. If the last view
        does not show the allocation, or the allocation is not believed, nothing is sent.
        """
        row = self._fleet.rows.get(node)
        allocation = self._fleet.reports.allocations(row).get(instance) if row is not None else None
        if allocation and row is not None and self._fleet.reports.is_believed(row, instance):
            hints = {**allocation.get("hints", {}), "placed": True}
            update = self._sender.build_in_place(
                node, instance, allocation["resources"], allocation.get("group"), hints, order_id_of(hints)
            )
            self._sender.send([update])
