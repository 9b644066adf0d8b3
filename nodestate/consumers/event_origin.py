"""Checks whether an event came by the way of its node: the queue of its partition, and the user of its node."""

from __future__ import annotations

from nodestate.errors import BadEventError
from nodestate.model import Event
from nodestate.model.partitioning import partition_of
from nodestate.ports import Delivery


def check_origin(event: Event, delivery: Delivery, partitions: int) -> None:
    """Raise ``BadEventError`` if an event belongs to another partition or to another user.

    Args:
        event: the event.
        delivery: the message that it came in.
        partitions: number of partitions of the layout.
    """
    if partition_of(event.node, partitions) != delivery.partition:
        raise BadEventError(
            "wrong-partition",
            f"{event.node} belongs to partition {partition_of(event.node, partitions)} of {partitions}, and came "
            f"in the queue of partition {delivery.partition}: check that its publisher runs the same version of "
            "nodestate",
        )
    if delivery.node and event.node != delivery.node:
        raise BadEventError(
            "wrong-user",
            f"{event.node} was published by the user of node {delivery.node}: give each agent the user of its own "
            "node, and an agent of several nodes a user nodes-NAME",
        )
