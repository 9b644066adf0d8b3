"""The sender of orders: one scheduler's way to the agents and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from nodestate.errors import BrokerUnavailableError
from nodestate.model.orders import Answer, Build, End, Order
from nodestate.ports import Clock, Courier
from nodestate.ports.ids import IdSource


class OrderSender:
    """Sends orders to agents, and receives the answers.

    Nothing is confirmed when ``send`` returns: an order or its answer may be lost. A part whose order must arrive sends
    it again until a view shows its effect.

    Args:
        courier: The connection to the broker.
        clock: For deadlines: seconds since 1970.
        ids: For the ids of messages.
        answer_timeout_s: Seconds that an agent has to answer; agents refuse an order that arrives later.
    """

    def __init__(self, courier: Courier, clock: Clock, ids: IdSource, answer_timeout_s: float) -> None:
        self._courier = courier  # the connection to the broker
        self._clock = clock  # for deadlines
        self._ids = ids  # for the ids of messages
        self._answer_timeout_s = answer_timeout_s  # how long an order is valid

    @property
    def reply_to(self) -> str:
        """The queue for answers to this scheduler. Raises ``BrokerUnavailableError`` if there is no connection."""
        return self._courier.reply_to

    @property
    def deadline(self) -> float:
        """The deadline of an order that is sent now, in seconds since 1970."""
        return self._clock.time() + self._answer_timeout_s

    def send(self, orders: Sequence[Order]) -> None:
        """Send orders to the agents of their nodes. Whether they arrived is unknown if the broker is unavailable."""
        if orders:
            with suppress(BrokerUnavailableError):
                self._courier.send(orders, self._answer_timeout_s)

    def end_order(self, node: str, instance: str, expected_order_id: str) -> End:
        """Return an order to end an instance, if the order of this id built its allocation (empty: any order)."""
        return End(id=self._ids.message_id(), node=node, instance=instance, of=expected_order_id)

    def answers(self, timeout_s: float) -> list[Answer]:
        """Return answers that arrived since the last call; wait up to ``timeout_s`` seconds for the first one.

        Raises ``BrokerUnavailableError`` if there is no connection.
        """
        return self._courier.answers(timeout_s)

    def build_in_place(
        self,
        node: str,
        instance: str,
        resources: Mapping[str, int],
        group: str | None,
        hints: Mapping[str, Any],
        expected_order_id: str,
    ) -> Build:
        """Return an order that replaces an allocation where it is, with other hints or resources.

        The agent refuses it unless the order ``expected_order_id`` built the allocation that the node has now: so a
        late order does not undo a change that was made since.
        """
        return Build(
            id=self._ids.message_id(),
            node=node,
            instance=instance,
            resources=dict(resources),
            group=group,
            hints=dict(hints),
            deadline=self.deadline,
            in_place=True,
            of=expected_order_id,
        )
