"""Orders that concern whole nodes: cordon and uncordon. They need agents and a broker, but no view and no store.

    unasked --a question for the agent's time--> asked --expired, with the time: the order with a deadline--> ordered
    asked, ordered --``RESEND_S`` without an answer: the same order again--> the same
    asked, ordered --an answer--> carried out, or refused            --``timeout_s``--> no answer

A deadline is a time of the agent's clock, and that clock may be behind. An order with a deadline by the sender's clock
could then be carried out after the sender gave up. So the first order to an agent has a deadline that has passed: the
agent refuses it as expired, and tells its time. From then on the deadline is known to end with ``timeout_s``.
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
from nodestate.ports import Clock, Courier, SystemClock
from nodestate.ports.ids import IdSource, SystemIds
from nodestate.scheduling.orders import NO_ANSWER, OrderSender

RESEND_S: Final = 1.0
"""Seconds without an answer after which an order is sent again. Agents carry out an order once, however often it comes.
"""
_NAME: Final = re.compile(NODE_NAME_PATTERN)
_UPGRADE: Final = (
    "its agent is of an earlier version and does not know this order: upgrade the agent, then repeat the command"
)
_NO_AGENT: Final = (
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


class NodeOrders:
    """Cordons and uncordons nodes through their agents.

    Nothing is queued: an order that its agent has not carried out when the call returns is never carried out. A node
    whose agent is away gets no instances anyway.

    Args:
        courier: The connection to the agents. The object uses it alone: a scheduler needs another one.
        clock: The time; None: the machine's clock.
        ids: The source of order ids; None: random ids.
    """

    def __init__(self, courier: Courier, clock: Clock | None = None, ids: IdSource | None = None) -> None:
        self._courier = courier  # the connection to the agents
        self._clock = clock or SystemClock()  # the time
        self._ids = ids or SystemIds()  # the source of order ids

    def cordon(
        self, nodes: Sequence[str], *, by: str, reason: str = "", timeout_s: float = 10.0
    ) -> list[NodeOrderResult]:
        """Close nodes to new instances until ``uncordon``. Their instances stay.

        Each agent stores the cordon, refuses new instances from then on, and reports the node as ``draining`` with
        ``namespaces.nodestate.cordon``. Cordoning a node again replaces the name and the reason.

        Args:
            nodes: The names of the nodes.
            by: The name of the person or program that closes them, at most 255 characters.
            reason: Why, at most 255 characters; may be empty.
            timeout_s: Seconds to wait for the answers.

        Returns one result for each node, in the order of ``nodes``.

        Raises ``BadRequestError`` if a name or a text is invalid; no node was asked then.
        """
        for field, text in (("by", by), ("reason", reason)):
            if len(text) > MAX_WORD_CHARS:
                raise BadRequestError(field, f"{len(text)} characters; at most {MAX_WORD_CHARS} are allowed")
        orders = [Cordon(id=self._ids.message_id(), node=node, deadline=0.0, by=by, why=reason) for node in nodes]
        return self._carry_out(orders, timeout_s)

    def uncordon(self, nodes: Sequence[str], *, timeout_s: float = 10.0) -> list[NodeOrderResult]:
        """Open nodes again that were closed by ``cordon``. A node that is not cordoned stays as it is.

        ``timeout_s``: seconds to wait for the answers. Returns one result for each node, in the order of ``nodes``.
        Raises ``BadRequestError`` if a name is invalid; no node was asked then.
        """
        return self._carry_out(
            [Uncordon(id=self._ids.message_id(), node=node, deadline=0.0) for node in nodes], timeout_s
        )

    def _carry_out(self, orders: Sequence[Cordon | Uncordon], timeout_s: float) -> list[NodeOrderResult]:
        for order in orders:
            if not _NAME.fullmatch(order.node):
                raise BadRequestError(
                    "node", f"{order.node!r:.40} is no node's name: 1 to {MAX_NODE_NAME_CHARS} of A-Z a-z 0-9 . _ : -"
                )
        clock = self._clock
        sender = OrderSender(self._courier, clock, self._ids, timeout_s)
        pending = {order.id: order for order in orders}  # as they were sent last
        results: dict[str, NodeOrderResult] = {}
        ends, deadline = clock.monotonic() + timeout_s, clock.time() + timeout_s
        send_at, cause = clock.monotonic(), ""
        while pending and (now := clock.monotonic()) < ends:
            try:
                if now >= send_at:
                    send_at = now + RESEND_S
                    pending = _sent(sender, pending.values(), deadline)
                answers = sender.answers(min(ends, send_at) - now)
                cause = ""
            except BrokerUnavailableError as error:
                cause = str(error)
                clock.sleep(max(0.0, min(ends, send_at) - clock.monotonic()))
                continue
            for answer in answers:
                if answer.id not in pending:
                    continue
                order = pending[answer.id]
                if answer.refused == "expired":
                    if order.deadline == 0.0:  # the agent has told its time
                        send_at = now
                else:
                    del pending[order.id]
                    results[order.id] = _result_of(order.node, answer)
        for order in pending.values():
            results[order.id] = NodeOrderResult(order.node, None, NO_ANSWER, _no_answer_text(timeout_s, cause))
        return [results[order.id] for order in orders]


def _sent(sender: OrderSender, orders: Iterable[Cordon | Uncordon], deadline: float) -> dict[str, Cordon | Uncordon]:
    """Send orders, each with the deadline by its agent's clock. Returns the orders as sent, by id.

    ``deadline``: in seconds since 1970 by this machine's clock. Raises ``BrokerUnavailableError``.
    """
    reply_to, clocks = sender.reply_to, sender.clocks
    sent: dict[str, Cordon | Uncordon] = {}
    for order in orders:
        origin = clocks.origin(order.node)
        until = 0.0 if origin is UNSET else max(0.0, deadline + clocks.ahead_s(order.node))
        sent[order.id] = structs.replace(order, reply_to=reply_to, deadline=until, clock_origin=origin)
    sender.send(list(sent.values()))
    return sent


def _result_of(node: str, answer: Answer) -> NodeOrderResult:
    if not answer.refused:
        return NodeOrderResult(node, answer.version)
    if answer.refused == "bad-order":
        return NodeOrderResult(node, None, answer.refused, f"{_UPGRADE} ({answer.detail})")
    if answer.refused == "no-agent":
        return NodeOrderResult(node, None, answer.refused, _NO_AGENT)
    return NodeOrderResult(node, None, answer.refused, answer.detail)


def _no_answer_text(timeout_s: float, cause: str) -> str:
    """Return the detail of a result without an answer. ``cause``: the error of the broker; empty if it works."""
    unknown = "The order is void now, unless the agent carried it out and only its answer was lost: then views show it"
    if cause:
        return f"no answer within {timeout_s:g} s: {cause}. {unknown}"
    return f"no answer within {timeout_s:g} s: its agent does not run, or is very busy. {unknown}"
