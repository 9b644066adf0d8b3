"""The sender of orders: one scheduler's connection to the agents, for orders and their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Final

import msgspec

from nodestate.auth import NO_TAGS, AllocationTags
from nodestate.errors import BrokerUnavailableError
from nodestate.model.orders import Answer, Build, End, Order
from nodestate.ports import Clock, Courier
from nodestate.ports.ids import IdSource
from nodestate.scheduling.orders.agent_clocks import AgentClocks
from nodestate.scheduling.scheduler_stats import SchedulerStats

MAX_SENT_COUNT: Final = 100_000
"""Orders whose nodes and times are kept, to compare them with the answers."""


class OrderSender:
    """Sends orders to agents, and receives the answers.

    When ``send`` returns, it is unknown whether an order arrived, and its answer may be lost, too. So if an order must
    not be lost, its sender repeats the order until a view shows the effect. An answer counts only if it comes from the
    node to which its order was sent.

    Args:
        courier: The connection to the broker.
        clock: The time for deadlines, which are seconds since 1970.
        ids: The source of message ids.
        answer_timeout_s: Seconds after which an order's deadline passes. Agents refuse an order after its deadline.
        tags: Adds tags to the hints of builds.
        stats: Counts answers; None for counters of this sender alone.
    """

    def __init__(
        self,
        courier: Courier,
        clock: Clock,
        ids: IdSource,
        answer_timeout_s: float,
        tags: AllocationTags = NO_TAGS,
        stats: SchedulerStats | None = None,
    ) -> None:
        self._stats = stats or SchedulerStats()  # counts answers
        self.clocks = AgentClocks()  # how far the agents' clocks are ahead of this machine's
        # By id of an order that asks for an answer, its node and when it was sent; the oldest first.
        self._sent: dict[str, tuple[str, float]] = {}
        self.foreign_answers = 0  # answers that were dropped because another node gave them
        self._courier = courier  # the connection to the broker
        self._clock = clock  # the time for deadlines
        self._ids = ids  # the source of message ids
        self._answer_timeout_s = answer_timeout_s  # how long an order is valid
        self._tags = tags  # adds tags to the hints of builds

    @property
    def reply_to(self) -> str:
        """The queue for answers to this scheduler. Raises ``BrokerUnavailableError`` if there is no connection."""
        return self._courier.reply_to

    def refused_answers(self) -> tuple[int, str]:
        """Return how many answers the courier refused so far, and why the last one was, for people."""
        return self._courier.refused_answers()

    def can_answer(self, order: Order) -> bool:
        """Return whether an answer to an order can still arrive.

        Each connection has a queue of its own for answers. So if the connection that the order was sent on has broken,
        its answer is lost, and perhaps the order as well.
        """
        try:
            return order.reply_to == self.reply_to
        except BrokerUnavailableError:
            return False

    def send(self, orders: Sequence[Order]) -> None:
        """Send each order to the agent of its node. If the broker is unavailable, nothing is raised, and it is unknown
        which orders arrive.

        A tag proves to all schedulers that a scheduler ordered the allocation. So every build gets a tag here. Its
        hints must be the scheduler's own, or hints of an allocation that it believes: otherwise a node could have
        any allocation tagged.
        """
        if orders:
            self.clocks.on_sent(orders, self._clock.time())
            now = self._clock.monotonic()
            self._sent.update((order.id, (order.node, now)) for order in orders if order.reply_to)
            for oldest in list(islice(self._sent, max(0, len(self._sent) - MAX_SENT_COUNT))):
                del self._sent[oldest]
            with suppress(BrokerUnavailableError):
                self._courier.send([self._tagged(order) for order in orders], self._answer_timeout_s)

    def _tagged(self, order: Order) -> Order:
        """Return an order with the tag of the allocation that it asks for."""
        if not self._tags.checks or not isinstance(order, Build):
            return order
        hints = self._tags.tagged(order.node, order.instance, order.resources, order.group, order.hints)
        return msgspec.structs.replace(order, hints=hints)

    def end_order(self, node: str, instance: str, expected_order_id: str) -> End:
        """Return an order that ends an instance.

        Args:
            node: The node that has the instance.
            instance: The instance's id.
            expected_order_id: The agent ends the instance only if the order with this id built its allocation. Empty:
                the agent ends it whichever order built it.
        """
        return End(id=self._ids.message_id(), node=node, instance=instance, of=expected_order_id)

    def answers(self, timeout_s: float) -> list[Answer]:
        """Return the answers that arrived since the last call. Waits up to ``timeout_s`` seconds for the first one.

        Raises ``BrokerUnavailableError`` if there is no connection.
        """
        received = self._courier.answers(timeout_s)
        answers = [answer for answer in received if self._sent.get(answer.id, (answer.node,))[0] == answer.node]
        for answer in answers:
            self._count(answer)
        self.foreign_answers += len(received) - len(answers)
        self.clocks.on_answers(answers, self._clock.time())
        return answers

    def _count(self, answer: Answer) -> None:
        """Count an answer to an order of this scheduler."""
        sent = self._sent.get(answer.id)
        if sent is not None:
            self._stats.durations_s["answer"].observe(self._clock.monotonic() - sent[1])
            if answer.refused:
                self._stats.count_refusal(answer.refused)

    def build_in_place(
        self,
        node: str,
        instance: str,
        resources: Mapping[str, int],
        group: str | None,
        hints: Mapping[str, Any],
        expected_order_id: str,
    ) -> Build:
        """Return an order that replaces an allocation on its node by one with other hints or resources.

        Args:
            node: The node.
            instance: The instance's id.
            resources: The resources of the new allocation, by class.
            group: The instance's group; None if it has none.
            hints: All hints of the new allocation.
            expected_order_id: The agent refuses unless the order with this id built the allocation that the node has
                now. So if the order arrives late, it does not undo a change that was made meanwhile.
        """
        reply_to = ""
        with suppress(BrokerUnavailableError):
            reply_to = self.reply_to  # each answer tells the agent's time
        return Build(
            id=self._ids.message_id(),
            node=node,
            instance=instance,
            resources=dict(resources),
            group=group,
            hints=dict(hints),
            deadline=self._clock.time() + self._answer_timeout_s + self.clocks.ahead_s(node),
            in_place=True,
            of=expected_order_id,
            reply_to=reply_to,
            clock_origin=self.clocks.origin(node),
        )
