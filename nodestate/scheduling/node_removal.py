"""Removal of nodes: an operator forgets a node whose agent is gone for good.

Consumers alone write views, from events. So a node is forgotten by events that an operator publishes in the name of
its agent, behind all events of the agent. One consumer folds them and writes the result in every design and replica::

    left with allocations --change: no allocations--> gone
    live, and no sign of life --report: down and empty; leave--> gone
    gone --report of a new incarnation: the agent was started again--> live

An agent that still runs does not know of these events: its next changes have numbers that are taken. When it sends a
later number, consumers ask it for a report, and the node is back.
"""

from __future__ import annotations

from typing import Final

import msgspec

from nodestate.auth import event_auth
from nodestate.config import Config
from nodestate.designs.reader import Reader
from nodestate.errors import NodestateError, NotFoundError
from nodestate.model import Change, Event, Leave, NodeRecord, Report
from nodestate.model.event_fold import has_left
from nodestate.model.partitioning import bucket_of
from nodestate.ports import Clock, Sink, SystemClock
from nodestate.scheduling.fleet_refresh import HEARTBEATS_COUNT

VIEW_AGE_S: Final = 5.0
"""Greatest age in seconds of the view from which a node is forgotten."""
_POLL_S: Final = 0.1
_NO_ALLOCATIONS: Final = msgspec.Raw(msgspec.msgpack.encode({"allocations": None}))
_EMPTY_STATE: Final = msgspec.Raw(msgspec.msgpack.encode({"status": "down"}))
_encode = msgspec.msgpack.Encoder().encode


class NodeAliveError(NodestateError):
    """Raised if a node that is to be forgotten gave a sign of life.

    Attributes:
        node: the node.
        age_s: seconds since its last sign of life.
    """

    kind = "node-alive"

    def __init__(self, node: str, age_s: float, bound_s: float) -> None:
        super().__init__(
            f"{node} gave a sign of life {age_s:.1f} s ago, so its agent seems to run: stop the agent and wait "
            f"{bound_s:g} s, or use 'nodestate node drain' to empty the node; nothing was changed"
        )
        self.node = node
        self.age_s = age_s


class NotForgottenError(NodestateError):
    """Raised if views still show a node after the events that forget it. ``node``: the node."""

    kind = "not-forgotten"

    def __init__(self, node: str, timeout_s: float) -> None:
        super().__init__(
            f"views still show {node} {timeout_s:g} s after the events that forget it: its agent may run and report it "
            f"again ('nodestate resync --node {node}' asks it), or consumers are behind ('nodestate doctor')"
        )
        self.node = node


def forget_node(
    config: Config,
    reader: Reader,
    sink: Sink,
    node: str,
    *,
    force: bool = False,
    timeout_s: float = 30.0,
    clock: Clock | None = None,
) -> int:
    """Remove a node from all views, with its allocations, and wait until views no longer show it.

    Args:
        config: The cell's settings. If ``auth_events`` asks for signatures, ``keys_file`` must have the cell's secrets.
        reader: Reads the views.
        sink: Takes the events.
        node: The node's name.
        force: Forget the node even if it gave a sign of life in the time of three heartbeats and 5 seconds.
        timeout_s: Seconds to wait for a fresh view, and again for the broker and for a view without the node.
        clock: The time; None: the machine's clock.

    Returns the number of allocations that the node had.

    Raises:
        NotFoundError: If no view has the node.
        NodeAliveError: If the node gave a sign of life, it has not left, and ``force`` is False. Nothing was changed.
        StaleViewError: If no view is fresh enough. Nothing was changed.
        NotForgottenError: If views still show the node after the time.
        UnconfirmedError, BrokerUnavailableError: If the broker does not take the events.
    """
    clock = clock or SystemClock()
    bound_s = HEARTBEATS_COUNT * config.heartbeat_s + VIEW_AGE_S
    view = reader.read(max_age=VIEW_AGE_S, timeout=timeout_s)
    view = reader.read(max_age=VIEW_AGE_S, node_max_age=bound_s, on_stale="flag")
    record = view.nodes.record(node)
    if record is None or record.gone:
        raise NotFoundError("node", f"no view has the node {node}; 'nodestate view' lists the nodes")
    if not (force or has_left(record)) and view.node_age(node) <= bound_s:
        raise NodeAliveError(node, view.node_age(node), bound_s)
    allocations = view.nodes[node].state.get("allocations", {}) if record.live and not view.left_out else {}
    auth = event_auth(config, clock).events
    for event in _forgetting_events(record, clock.time()):
        sink.publish(bucket_of(node), auth.sign(node, _encode(event)), lambda _confirmed: None)
    sink.flush(timeout_s)
    ends = clock.monotonic() + timeout_s
    while True:
        record = reader.read(max_age=VIEW_AGE_S, on_stale="flag").nodes.record(node)
        if record is None or record.gone:
            return len(allocations)
        if clock.monotonic() >= ends:
            raise NotForgottenError(node, timeout_s)
        clock.sleep(_POLL_S)


def _forgetting_events(record: NodeRecord, now: float) -> list[Event]:
    """Return the events after which a node is gone. ``now``: in seconds since 1970."""
    incarnation, generation = record.version
    if has_left(record):
        return [
            Change(
                node=record.name,
                incarnation=incarnation,
                generation=generation + 1,
                reported_at=now,
                patch=_NO_ALLOCATIONS,
            )
        ]
    incarnation, generation = max(record.version, record.wanted)  # of an incomplete node, a newer version is known
    name = record.name
    return [
        Report(
            node=name, incarnation=incarnation, generation=generation + 1, reported_at=now, state=_EMPTY_STATE
        ),
        Leave(node=name, incarnation=incarnation, generation=generation + 2, reported_at=now),
    ]  # fmt: skip
