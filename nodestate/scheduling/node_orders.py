"""Cordon and uncordon: close nodes to new instances, and open them again, by orders to their agents.

``NodeOrders`` needs a connection to the agents only, and waits for the answers. The operations ``cordoning`` and
``uncordoning`` use the connection of a scheduler, so that other work of it goes on meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from nodestate.errors import BrokerUnavailableError
from nodestate.ports import Clock, Courier, SystemClock
from nodestate.ports.ids import IdSource, SystemIds
from nodestate.scheduling.orders import NodeOrderBatch, NodeOrderBatches, NodeOrderResult, OrderSender
from nodestate.scheduling.session import Operation, Session, Wait


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
        return self._carry_out(
            lambda batches: batches.cordon(nodes, by=by, reason=reason, timeout_s=timeout_s), timeout_s
        )

    def uncordon(self, nodes: Sequence[str], *, timeout_s: float = 10.0) -> list[NodeOrderResult]:
        """Open nodes again that were closed by ``cordon``. A node that is not cordoned stays as it is.

        ``timeout_s``: seconds to wait for the answers. Returns one result for each node, in the order of ``nodes``.
        Raises ``BadRequestError`` if a name is invalid; no node was asked then.
        """
        return self._carry_out(lambda batches: batches.uncordon(nodes, timeout_s=timeout_s), timeout_s)

    def _carry_out(
        self, begin: Callable[[NodeOrderBatches], NodeOrderBatch], timeout_s: float
    ) -> list[NodeOrderResult]:
        clock = self._clock
        sender = OrderSender(self._courier, clock, self._ids, timeout_s)
        ends = clock.monotonic() + timeout_s
        batch = begin(NodeOrderBatches(sender, clock, self._ids))
        while (now := clock.monotonic()) < ends and not batch.send_due():
            wait_until = min(ends, batch.send_at)
            try:
                batch.accept_answers(sender.answers(wait_until - now))
            except BrokerUnavailableError as error:
                batch.broker_error = str(error)
                clock.sleep(max(0.0, wait_until - clock.monotonic()))
        return batch.results()


def cordoning(
    session: Session, nodes: Sequence[str], *, by: str, reason: str = "", timeout_s: float = 10.0
) -> Operation[list[NodeOrderResult]]:
    """Cordon nodes as ``NodeOrders.cordon`` does, as an operation that other work of a scheduler can interleave.

    Raises ``ConfigError`` if the scheduler has no courier.
    """
    orders = session.orders.node_orders
    return (yield from _answered(orders, orders.cordon(nodes, by=by, reason=reason, timeout_s=timeout_s), timeout_s))


def uncordoning(session: Session, nodes: Sequence[str], *, timeout_s: float = 10.0) -> Operation[list[NodeOrderResult]]:
    """Uncordon nodes as ``NodeOrders.uncordon`` does, as an operation that other work of a scheduler can interleave.

    Raises ``ConfigError`` if the scheduler has no courier.
    """
    orders = session.orders.node_orders
    return (yield from _answered(orders, orders.uncordon(nodes, timeout_s=timeout_s), timeout_s))


def _answered(orders: NodeOrderBatches, batch: NodeOrderBatch, timeout_s: float) -> Operation[list[NodeOrderResult]]:
    with suppress(TimeoutError):  # the results name the nodes without an answer
        yield Wait(batch.send_due, timeout_s)
    return orders.end(batch)
