"""The outages of single servers: how each one begins and ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from bench.outage.cell import OutageCell
from harness.keyspace import KeySpace

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


def _nothing(_cell: OutageCell) -> Undo:
    return lambda: None


def _kill_memcached(cell: OutageCell) -> Undo:
    server = cell.memcacheds[KILLED]
    server.kill()
    return server.start


def _freeze_memcached(cell: OutageCell) -> Undo:
    server = cell.memcacheds[FROZEN]
    server.pause()
    return server.resume


def _flush_memcached(cell: OutageCell) -> Undo:
    with KeySpace(cell.config, cell.memcacheds[KILLED].address) as space:
        space.flush_all()
    return lambda: None


def _cut_memcached_off(cell: OutageCell) -> Undo:
    cell.memcached_gate.close()
    return cell.memcached_gate.open


def _by_leaders(cell: OutageCell) -> list[int]:
    """Return the numbers of the RabbitMQ nodes, first the leader of the most queues."""
    nodes = cell.rabbit.nodes
    listed = msgspec.json.decode(nodes[0].control("list_queues", "leader", "--formatter", "json"))
    leaders = [one.get("leader", "") for one in listed]
    return sorted(range(len(nodes)), key=lambda number: -leaders.count(nodes[number].node_name))


def _kill_leader(cell: OutageCell) -> Undo:
    node = cell.rabbit.nodes[_by_leaders(cell)[0]]
    node.kill()
    return node.start


def _kill_follower(cell: OutageCell) -> Undo:
    node = cell.rabbit.nodes[_by_leaders(cell)[-1]]
    node.kill()
    return node.start


def _kill_two(cell: OutageCell) -> Undo:
    nodes = [cell.rabbit.nodes[number] for number in _by_leaders(cell)[:2]]
    for node in nodes:
        node.kill()
    return lambda: [node.start() for node in nodes]


def _freeze_rabbit(cell: OutageCell) -> Undo:
    node = cell.rabbit.nodes[_by_leaders(cell)[0]]
    node.pause()
    return node.resume


def _cut_rabbit_off(cell: OutageCell) -> Undo:
    cell.rabbit_gate.close()
    return cell.rabbit_gate.open


OUTAGES: Final = (
    Outage("none", "no outage, for comparison", _nothing),
    Outage("memcached-killed", "a memcached is killed, and returns empty", _kill_memcached),
    Outage("memcached-frozen", "a memcached is frozen (SIGSTOP), and returns with its old contents", _freeze_memcached),
    Outage("memcached-flushed", "a memcached loses everything at once", _flush_memcached, lasts=False),
    Outage("memcached-cut-off", "no process reaches a memcached; it returns with its old contents", _cut_memcached_off),
    Outage("rabbit-cut-off", "no process of nodestate reaches a RabbitMQ node; the other nodes do", _cut_rabbit_off),
    Outage("rabbit-leader-killed", "the RabbitMQ node that leads most queues is killed", _kill_leader),
    Outage("rabbit-follower-killed", "the RabbitMQ node that leads fewest queues is killed", _kill_follower),
    Outage("rabbit-two-killed", "two of three RabbitMQ nodes are killed, and return", _kill_two),
    Outage("rabbit-frozen", "the RabbitMQ node that leads most queues is frozen (SIGSTOP)", _freeze_rabbit),
)
"""All outages, in the order in which they are caused."""
