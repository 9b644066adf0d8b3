r"""Name conflicts: two agents, mostly on two machines, report the same node.

Each would build every order for the node, and readers would see the state of one of them alone. So an agent sends a
``Presence`` when it begins to listen for a node, and again every ``PRESENCE_HEARTBEATS_COUNT`` heartbeats. All agents
that listen for the node receive it, also the sender itself::

    reporting --a presence of higher rank--> lost: no events, no orders, no answers; only presences
    reporting --a presence of lower rank--> reporting; its state names both hosts, and it sends its own presence at once
    lost --the other agent answers no presence, or says that the node left--> reporting, as the next incarnation

The agent with the higher incarnation keeps the node, because consumers take its events alone in any case. The other one
stays silent and does not answer orders: the scheduler would take the first of two answers. It does not end, because a
supervisor would start it again, with the highest incarnation.

It still sends presences, and receives its own ones, too, as long as it is connected. The agent that keeps the node
answers each at once. So if ``UNANSWERED_COUNT`` presences come back and no other agent has answered, that agent is
gone. Its incarnation is higher, so consumers would ignore the events of the agent that lost. That agent reports the
node again as a higher incarnation. If the other agent returns, it has the lower rank now, and does not take the node
back.
"""

from __future__ import annotations

import copy
import random
import socket
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import structlog

from nodestate.agent.publisher import Publisher
from nodestate.agent.schedules import HeartbeatSchedule
from nodestate.agent.sources import FullState, NodeGone, StatePatch
from nodestate.errors import BrokerUnavailableError
from nodestate.model import MAX_CLOCK_AHEAD_S, merge_patch
from nodestate.model.presence import Presence
from nodestate.ports import AgentInbox, Clock

PRESENCE_HEARTBEATS_COUNT: Final = 30
"""Heartbeats between two presences of a node."""
MAX_PRESENCES_COUNT: Final = 200
"""Presences that one step sends at most, so that an agent of many nodes is not delayed."""
MAX_REPUBLISHED_COUNT: Final = 1_000
"""Reports that an agent sends at most to get ahead of another agent's generation."""
UNANSWERED_COUNT: Final = 3
"""Presences of an agent that lost its node which the other agent does not answer, until the other agent is gone."""


@dataclass(slots=True)
class LostNode:
    """A node that an agent of higher rank reports."""

    state: Mapping[str, Any] | None
    """The node's present state, as its source has it; None if the node is gone."""
    other_incarnation: int
    """The highest incarnation of the other agents."""
    unanswered_count: int = 0
    """Presences of this agent that came back since another agent of higher rank sent one."""


class NameConflicts:
    """Sends the presences of one agent's nodes, and gives up the nodes that an agent of higher rank reports.

    Args:
        inbox: Sends and receives presences.
        clock: Wall-clock and monotonic time.
        publishers: The agent's publishers, by name of the node.
        publish: Publishes a reading of a node.
        life: A random token of this process; empty for a new one.
        host: The name of this machine; empty to ask the machine.
        heartbeat_s: Seconds between two heartbeats of a node.
    """

    def __init__(
        self,
        inbox: AgentInbox,
        clock: Clock,
        publishers: Mapping[str, Publisher],
        publish: Callable[[FullState | StatePatch], None],
        life: str,
        host: str,
        heartbeat_s: float,
    ) -> None:
        self.lost: dict[str, LostNode] = {}
        """The nodes that an agent of higher rank reports, by name."""
        self._inbox = inbox
        """Sends and receives presences."""
        self._clock = clock
        """Wall-clock and monotonic time."""
        self._publishers = publishers
        """The agent's publishers, by name of the node."""
        self._publish = publish
        """Publishes a reading of a node."""
        self._life = life or uuid.uuid4().hex
        """The random token of this process."""
        self._host = host or socket.gethostname()
        """The name of this machine."""
        self._schedule = HeartbeatSchedule(PRESENCE_HEARTBEATS_COUNT * heartbeat_s, random.Random(self._life))
        """When each node's next presence is due, after the first one."""
        self._scheduled: set[str] = set()
        """The nodes in the schedule."""
        self._due: list[str] = []
        """Nodes whose presence must be sent now."""
        self._rivals: dict[str, dict[str, Any]] = {}
        """By node, the agents of lower rank: what the node's state says of them."""
        self._log = structlog.get_logger("nodestate.agent")
        """The agent's logger."""

    def add(self, nodes: Sequence[str]) -> None:
        """Send the presences of these nodes with the next step, and repeat them from then on."""
        now = self._clock.monotonic()
        for node in nodes:
            if node not in self._scheduled:
                self._scheduled.add(node)
                self._schedule.add(node, now)
        self._due += nodes

    def send_due(self) -> None:
        """Send the presences that are due. Raises ``BrokerUnavailableError``: they are sent later then."""
        self._due = list(dict.fromkeys([*self._due, *self._schedule.due(self._clock.monotonic())]))
        nodes = self._due[:MAX_PRESENCES_COUNT]
        for node in nodes:
            self._send(node)
        self._due = self._due[len(nodes) :]

    def announce_contested(self) -> None:
        """Send the presences of all nodes that agents of lower rank report, too, with the next step."""
        self._due += self._rivals

    def announce_leave(self, node: str) -> None:
        """Tell the other agents of a node that left that they may report it now."""
        publisher = self._publishers[node]
        if node in self._rivals:
            with suppress(BrokerUnavailableError):  # they notice it later
                self._inbox.announce(msgspec.structs.replace(self._presence(node, publisher), left=True))

    def receive(self, presences: Sequence[Presence]) -> None:
        """Compare the agent with the senders of presences, and give up the nodes that agents of higher rank report."""
        for presence in presences:
            node, publisher = presence.node, self._publishers.get(presence.node)
            if publisher is None:
                continue
            lost = self.lost.get(node)
            if presence.life == self._life:
                if lost is not None:
                    lost.unanswered_count += 1
                continue
            if presence.incarnation > self._clock.time() + MAX_CLOCK_AHEAD_S:
                continue  # consumers refuse the events of that agent, because its clock was far ahead when it began
            is_higher = presence.rank > self._presence(node, publisher).rank
            if lost is not None:
                if is_higher:
                    lost.other_incarnation = max(lost.other_incarnation, presence.incarnation)
                    lost.unanswered_count = UNANSWERED_COUNT if presence.left else 0
                continue
            if presence.left:
                continue
            if is_higher:
                self._give_up(presence, publisher)
            else:
                self._note(presence, publisher)
            self._due.append(node)

    def keep(self, reading: FullState | StatePatch | NodeGone) -> bool:
        """Keep the state of a lost node, for the time when this agent reports it again. Returns whether it is lost."""
        lost = self.lost.get(reading.node)
        if lost is None:
            return False
        if isinstance(reading, NodeGone):
            lost.state = None
        elif isinstance(reading, FullState):
            lost.state = reading.state
        elif lost.state is not None:
            lost.state = merge_patch(copy.deepcopy(lost.state), reading.patch)
        return True

    def unanswered(self) -> list[str]:
        """Return the lost nodes whose other agent is gone, and that this agent may take back."""
        return [
            node
            for node, lost in self.lost.items()
            if lost.unanswered_count >= UNANSWERED_COUNT and lost.state is not None
        ]

    def take_back(self, node: str) -> Mapping[str, Any]:
        """Regard a lost node as reported by this agent. Returns its present state."""
        state = self.lost.pop(node).state
        assert state is not None, "the source has the node"
        self._rivals.pop(node, None)
        self._log.warning(
            "the other agent of this node is gone; this one reports the node again", node=node, host=self._host
        )
        return state

    def merged_into(self, node: str, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return ``state``, the node's full state from its source, with the other agent that reports the node."""
        rival = self._rivals.get(node)
        if rival is None:
            return state
        namespaces = dict(state.get("namespaces", {}))
        namespaces["nodestate"] = {**namespaces.get("nodestate", {}), "same_name": rival}
        return {**state, "namespaces": namespaces}

    def _give_up(self, presence: Presence, publisher: Publisher) -> None:
        node = presence.node
        self.lost[node] = LostNode(publisher.state() if publisher.live else None, presence.incarnation)
        self._log.error(
            "another agent reports this node and was started later; this one no longer reports it or takes orders for "
            "it until the other one is gone: stop one of the two, or give its node another name",
            node=node,
            host=self._host,
            other_host=presence.host,
        )

    def _note(self, presence: Presence, publisher: Publisher) -> None:
        """Name both hosts in the node's state, and get ahead of an agent that has the same incarnation."""
        node = presence.node
        rival = {"hosts": [self._host, presence.host], "at": round(self._clock.time(), 3)}
        if node not in self._rivals:
            self._log.error(
                "another agent reports this node; it was started earlier and is told to stop: give its node another "
                "name",
                node=node,
                host=self._host,
                other_host=presence.host,
            )
        self._rivals[node] = rival
        if not publisher.live:
            return
        self._publish(StatePatch(node, {"namespaces": {"nodestate": {"same_name": rival}}}))
        if presence.incarnation == publisher.version.incarnation:
            for _ in range(MAX_REPUBLISHED_COUNT):
                publisher.republish()
                if publisher.version.generation > presence.generation:
                    break

    def _send(self, node: str) -> None:
        publisher = self._publishers.get(node)
        if publisher is not None and (publisher.live or node in self.lost):
            self._inbox.announce(self._presence(node, publisher))

    def _presence(self, node: str, publisher: Publisher) -> Presence:
        incarnation, generation = publisher.version
        return Presence(node=node, incarnation=incarnation, generation=generation, life=self._life, host=self._host)
