"""Node orders: orders that concern whole nodes, cordon and uncordon. They need agents and a broker, but no view.

    unasked --a question for the agent's time--> asked --expired, with the time: the order with a deadline--> ordered
    asked, ordered --``RESEND_S`` without an answer: the same order again--> the same
    asked, ordered --an answer--> carried out, or refused            --the time-out--> no answer

A deadline is a time of the agent's clock, and that clock may be behind. An order with a deadline by the sender's clock
could then be carried out after the sender gave up. So the first order to an agent has a deadline that has passed: the
agent refuses it as expired, and tells its time. From then on the deadline is known to end with the time-out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from msgspec import UNSET, structs

from nodestate.errors import BadRequestError, BrokerUnavailableError
from nodestate.model import MAX_NODE_NAME_CHARS, MAX_WORD_CHARS, NODE_NAME_PATTERN, Version
from nodestate.model.orders import Answer, Cordon, Uncordon
from nodestate.ports import Clock
from nodestate.ports.ids import IdSource
from nodestate.scheduling.orders.boot import NO_ANSWER
from nodestate.scheduling.orders.order_sender import OrderSender
from nodestate.scheduling.orders.refusals import NO_AGENT

RESEND_S: Final = 1.0
"""Seconds without an answer after which an order is sent again. Agents carry out an order once, however often it comes.
"""
_NAME: Final = re.compile(NODE_NAME_PATTERN)
_UPGRADE: Final = (
    "its agent is of an earlier version and does not know this order: upgrade the agent, then repeat the command"
)
_NO_AGENT_TEXT: Final = (
    "no agent listens for this node, so it gets no new instances; start its agent, then repeat the command"
)


class NodeOrderResult(msgspec.Struct, frozen=True):
    """The outcome of an order to one node."""

    node: str
    """The node's name."""
    version: Version | None = None
    """The version of the node's state that shows the effect; None if the order was not carried out."""
    refused: str = ""
    """Why it was not carried out; empty if it was.

    The agent's reason, ``no-agent`` if no agent listens for the node, or ``silent`` if no answer came in time.
    """
    detail: str = ""
    """The reason for people, with the remedy; empty if it was carried out."""


class NodeOrderBatch:
    """Orders to some nodes that are under way together, until each has an answer or the time is over.

    Args:
        orders: The orders.
        sender: Sends the orders, and knows the agents' clocks.
        clock: The time.
        timeout_s: Seconds after which an order without an answer must not be carried out.
    """

    def __init__(
        self, orders: Sequence[Cordon | Uncordon], sender: OrderSender, clock: Clock, timeout_s: float
    ) -> None:
        self.send_at = clock.monotonic()  # when the pending orders are sent next, in monotonic seconds
        self.broker_error = ""  # the last error of the broker; empty if it works
        self._orders = orders  # all orders
        self._sender = sender  # sends the orders
        self._clock = clock  # the time
        self._timeout_s = timeout_s  # seconds for the answers
        self._deadline = clock.time() + timeout_s  # the end of the time by this machine's clock
        # The orders without an answer, by id, as they were sent last.
        self._pending = {order.id: order for order in orders}
        self._results: dict[str, NodeOrderResult] = {}  # by order id, the results of the orders that were answered

    def send_due(self) -> bool:
        """Send the orders without an answer, if that is due. Returns True once no order is without an answer."""
        now = self._clock.monotonic()
        if self._pending and now >= self.send_at:
            self.send_at = now + RESEND_S
            try:
                self._send()
                self.broker_error = ""
            except BrokerUnavailableError as error:
                self.broker_error = str(error)
        return not self._pending

    def _send(self) -> None:
        """Send the pending orders, each with the deadline by its agent's clock. Raises ``BrokerUnavailableError``."""
        reply_to, clocks = self._sender.reply_to, self._sender.clocks
        for order in self._pending.values():
            origin = clocks.origin(order.node)
            until = 0.0 if origin is UNSET else max(0.0, self._deadline + clocks.ahead_s(order.node))
            self._pending[order.id] = structs.replace(order, reply_to=reply_to, deadline=until, clock_origin=origin)
        self._sender.send(list(self._pending.values()))

    def accept_answers(self, answers: Iterable[Answer]) -> None:
        """Note the answers to these orders. Answers to other orders are ignored."""
        for answer in answers:
            order = self._pending.get(answer.id)
            if order is None:
                continue
            if answer.refused != "expired":
                del self._pending[order.id]
                self._results[order.id] = _result_of(order.node, answer)
            elif order.deadline == 0.0:  # the agent has told its time
                self.send_at = self._clock.monotonic()

    def results(self) -> list[NodeOrderResult]:
        """Return one result for each order, in their order. Orders without an answer count as unanswered."""
        silent = _no_answer_text(self._timeout_s, self.broker_error)
        return [
            self._results.get(order.id, NodeOrderResult(order.node, None, NO_ANSWER, silent)) for order in self._orders
        ]


class NodeOrderBatches:
    """Makes the batches of one sender, and gives them the answers.

    Args:
        sender: Sends orders to the agents.
        clock: The time.
        ids: The source of order ids.
    """

    def __init__(self, sender: OrderSender, clock: Clock, ids: IdSource) -> None:
        self._sender = sender  # sends orders to the agents
        self._clock = clock  # the time
        self._ids = ids  # the source of order ids
        self._batches: list[NodeOrderBatch] = []  # the batches under way

    def cordon(self, nodes: Sequence[str], *, by: str, reason: str, timeout_s: float) -> NodeOrderBatch:
        """Begin to close nodes to new instances; call ``end`` in the end.

        Raises ``BadRequestError`` if a name or a text is invalid; nothing was begun then.
        """
        for field, text in (("by", by), ("reason", reason)):
            if len(text) > MAX_WORD_CHARS:
                raise BadRequestError(field, f"{len(text)} characters; at most {MAX_WORD_CHARS} are allowed")
        return self._begin(
            [Cordon(id=self._ids.message_id(), node=node, deadline=0.0, by=by, why=reason) for node in nodes], timeout_s
        )

    def uncordon(self, nodes: Sequence[str], *, timeout_s: float) -> NodeOrderBatch:
        """Begin to open nodes again; call ``end`` in the end. Raises ``BadRequestError`` if a name is invalid."""
        return self._begin([Uncordon(id=self._ids.message_id(), node=node, deadline=0.0) for node in nodes], timeout_s)

    def _begin(self, orders: Sequence[Cordon | Uncordon], timeout_s: float) -> NodeOrderBatch:
        for order in orders:
            if not _NAME.fullmatch(order.node):
                raise BadRequestError(
                    "node", f"{order.node!r:.40} is no node's name: 1 to {MAX_NODE_NAME_CHARS} of A-Z a-z 0-9 . _ : -"
                )
        batch = NodeOrderBatch(orders, self._sender, self._clock, timeout_s)
        self._batches.append(batch)
        return batch

    def end(self, batch: NodeOrderBatch) -> list[NodeOrderResult]:
        """Forget a batch, and return its results."""
        self._batches.remove(batch)
        return batch.results()

    def accept_answers(self, answers: Sequence[Answer]) -> None:
        """Give answers to the batches under way."""
        for batch in self._batches:
            batch.accept_answers(answers)


def _result_of(node: str, answer: Answer) -> NodeOrderResult:
    if not answer.refused:
        return NodeOrderResult(node, answer.version)
    if answer.refused == "bad-order":
        return NodeOrderResult(node, None, answer.refused, f"{_UPGRADE} ({answer.detail})")
    if answer.refused == NO_AGENT:
        return NodeOrderResult(node, None, answer.refused, _NO_AGENT_TEXT)
    return NodeOrderResult(node, None, answer.refused, answer.detail)


def _no_answer_text(timeout_s: float, broker_error: str) -> str:
    """Return the detail of a result without an answer. ``broker_error``: the broker's error; empty if it works."""
    unknown = "The order is void now, unless the agent carried it out and only its answer was lost: then views show it"
    if broker_error:
        return f"no answer within {timeout_s:g} s: {broker_error}. {unknown}"
    return f"no answer within {timeout_s:g} s: its agent does not run, or is very busy. {unknown}"
