"""The outages of single servers, and the restarts of servers and processes: how each one begins and ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

import msgspec

from bench.outage.cell import SERVERS_COUNT, OutageCell
from harness.keyspace import KeySpace
from harness.servers import RabbitServer, Server

KILLED, FROZEN = 0, 1
"""Numbers, from 0, of the memcacheds that are killed or flushed, and frozen."""

Undo = Callable[[], object]
"""Ends an outage."""


class Outage(NamedTuple):
    """An outage that can be caused."""

    name: str
    """The name by which the user chooses it."""
    what: str
    """One line of help."""
    begin: Callable[[OutageCell], Undo]
    """Begins the outage, and returns the function that ends it."""
    lasts: bool = True
    """False if the cause is over at once."""
    cuts_links: bool = False
    """True if it needs a RabbitMQ cluster whose links pass through this process. That costs time in all other
    outages, so it is caused only if the user chooses it.
    """
    has_quorum: bool = True
    """False if too few RabbitMQ nodes are left, so that no goal applies."""


def _nothing(_cell: OutageCell) -> Undo:
    return lambda: None


def _kill(cell: OutageCell, servers: Sequence[Server]) -> Undo:
    for server in servers:
        server.kill()
    return lambda: [cell.call(server.start, f"starting {server.address}") for server in servers]


def _freeze(server: Server) -> Undo:
    server.pause()
    return server.resume


def _flush_memcached(cell: OutageCell) -> Undo:
    with KeySpace(cell.config, cell.memcacheds[KILLED].address) as space:
        space.flush_all()
    return lambda: None


def _cut_memcached_off(cell: OutageCell) -> Undo:
    cell.memcached_gate.close()
    return cell.memcached_gate.open


def _cut_rabbit_off(cell: OutageCell) -> Undo:
    cell.rabbit_gate.close()
    return cell.rabbit_gate.open


def _by_leaders(cell: OutageCell) -> list[RabbitServer]:
    """Return the RabbitMQ nodes, first the leader of the most queues."""
    nodes = cell.rabbit.nodes
    words = ("list_queues", "leader", "--formatter", "json")
    listed = msgspec.json.decode(cell.call(lambda: nodes[0].control(*words), "asking for the leaders of queues"))
    leaders = [one.get("leader", "") for one in listed]
    return sorted(nodes, key=lambda node: -leaders.count(node.name))


def _cut_links(cell: OutageCell) -> Undo:
    cell.rabbit.cut_off(_by_leaders(cell)[0])
    return cell.rabbit.cut_off


OUTAGES: Final = (
    Outage("none", "no outage, for comparison", _nothing),
    Outage(
        "memcached-killed",
        "a memcached is killed, and returns empty",
        lambda cell: _kill(cell, [cell.memcacheds[KILLED]]),
    ),
    Outage(
        "memcached-frozen",
        "a memcached is frozen (SIGSTOP), and returns with its old contents",
        lambda cell: _freeze(cell.memcacheds[FROZEN]),
    ),
    Outage("memcached-flushed", "a memcached loses everything at once", _flush_memcached, lasts=False),
    Outage("memcached-cut-off", "no process reaches a memcached; it returns with its old contents", _cut_memcached_off),
    Outage("rabbit-cut-off", "no process of nodestate reaches a RabbitMQ node; the other nodes do", _cut_rabbit_off),
    Outage(
        "rabbit-frozen",
        "the RabbitMQ node that leads most queues is frozen (SIGSTOP)",
        lambda cell: _freeze(_by_leaders(cell)[0]),
    ),
    Outage(
        "rabbit-leader-killed",
        "the RabbitMQ node that leads most queues is killed",
        lambda cell: _kill(cell, _by_leaders(cell)[:1]),
    ),
    Outage(
        "rabbit-follower-killed",
        "the RabbitMQ node that leads fewest queues is killed",
        lambda cell: _kill(cell, _by_leaders(cell)[-1:]),
    ),
    Outage(
        "rabbit-two-killed",
        "two of three RabbitMQ nodes are killed, and return",
        lambda cell: _kill(cell, _by_leaders(cell)[:2]),
        has_quorum=False,
    ),
    Outage(
        "rabbit-links-cut",
        "the RabbitMQ node that leads most queues is cut off from the others; only if chosen",
        _cut_links,
        cuts_links=True,
    ),
)
"""All outages, in the order in which they are caused."""


def _restart_memcached(cell: OutageCell, number: int) -> Undo:
    return _kill(cell, [cell.memcacheds[number]])  # it has nothing to save


def _restart_rabbit(cell: OutageCell, number: int) -> Undo:
    node = cell.rabbit.nodes[number]
    cell.call(node.stop, f"stopping {node.address}")
    return lambda: cell.call(node.start, f"starting {node.address}")


def _restart_consumer(cell: OutageCell, number: int) -> Undo:
    member = cell.members[number]
    cell.call(member.stop, f"stopping {member.name}")
    return member.start


def _restart_agents(cell: OutageCell, number: int) -> Undo:
    cell.stop_agents(number)
    return lambda: cell.start_agents(number)


RESTARTS: Final = tuple(
    Outage(f"{kind} {number + 1} restarted", "", partial(restart, number=number))
    for kind, restart in (
        ("memcached", _restart_memcached),
        ("rabbit", _restart_rabbit),
        ("consumer", _restart_consumer),
        ("agents", _restart_agents),
    )
    for number in range(SERVERS_COUNT)
)
"""The restarts of all servers and processes, in their order. None of them is away for longer than its restart takes."""
