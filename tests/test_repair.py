"""Repairs do not wait for a quiet moment, and an event that fits no item does not stop its partition."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from nodestate import Reader
from nodestate.config import Config
from nodestate.consumers.loop import Consumer
from nodestate.errors import StaleViewError
from nodestate.store import keys
from nodestate.store.round_trips import Stores
from nodestate.testing import ManualClock, MemoryBroker, MemoryDatabase, MemoryServer, MemoryStore

PARTITIONS = 1
BESIDE = {"journal": ("journal", "snapshot"), "snapshot": ("journal", "snapshot"), "sql": ("sql",)}
"""By the design that is read: all designs of its cell."""


class OnePartitionCell:
    """One partition, one consumer, one node that reports."""

    def __init__(self, designs: tuple[str, ...] = ("journal", "snapshot"), **server: Any) -> None:
        self.clock = ManualClock()
        self.server = (MemoryDatabase if "sql" in designs else MemoryServer)(clock=self.clock, **server)
        self.broker = MemoryBroker(PARTITIONS, clock=self.clock)
        self.config = Config(partitions=PARTITIONS, designs=designs, heartbeat_s=1.0, resync_jitter_s=0.0)
        self.consumer = self.another_consumer()
        self.sink = self.broker.sink()
        self.generation = 0

    def another_consumer(self, partitions: int = PARTITIONS) -> Consumer:
        config = msgspec.structs.replace(self.config, partitions=partitions)
        source = self.broker.source([0], layout=partitions)
        return Consumer(config, source, self.stores(), self.broker, self.clock, random.Random(1), "m")

    def stores(self) -> Stores:
        connection = MemoryStore(self.server)
        return Stores((), connection) if isinstance(self.server, MemoryDatabase) else Stores([connection])

    def reader(self, design: str, partitions: int = PARTITIONS) -> Reader:
        config = msgspec.structs.replace(self.config, partitions=partitions)
        return Reader(config, design=design, stores=self.stores(), clock=self.clock)

    def publish(self, kind: str = "change", node: str = "n", **content: Any) -> None:
        if kind != "heartbeat":
            self.generation += 1
        event = {
            "v": 1,
            "kind": kind,
            "node": node,
            "incarnation": int(self.clock.time()) if kind == "report" else self.incarnation,
            "generation": self.generation,
            "reported_at": self.clock.time(),
            **content,
        }
        self.incarnation = event["incarnation"]
        self.sink.publish(0, msgspec.msgpack.encode(event), lambda _ok: None)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.consumer.step()
            self.clock.advance(0.5)

    def lose(self, part: str) -> None:
        if part == "rows":
            assert isinstance(self.server, MemoryDatabase)
            self.server.evict_rows(keys.prefix(self.config.cell, 1, 0, keys.DATABASE), {0})
            return
        [key, *_] = [key for key in self.server.keys() if part in key]  # noqa: SIM118 - a server is not a dict
        assert self.server.evict(key)


@pytest.mark.parametrize(("design", "part"), [("snapshot", ":s:node:"), ("journal", ":j:log:"), ("sql", "rows")])
def test_a_lost_item_is_repaired_under_a_steady_stream_of_events(design: str, part: str) -> None:
    """A busy partition has no quiet moment, so a repair that waited for one would never happen."""
    cell = OnePartitionCell(BESIDE[design])
    cell.publish("report", state={"usage": {"VCPU": 1}})
    cell.step(8)
    cell.lose(part)
    for _ in range(20):
        cell.reader(design).read(max_age=1e9, on_stale="flag")
        cell.publish("heartbeat")
        cell.step()
    view = cell.reader(design).read(max_age=10, on_stale="flag")
    assert view.incomplete == frozenset()
    assert view.nodes["n"].state["usage"] == {"VCPU": 1}


@pytest.mark.parametrize("design", BESIDE)
def test_a_new_epoch_is_begun_under_a_steady_stream_of_heartbeats(design: str) -> None:
    """Heartbeats write nothing, so they must not delay the new epoch."""
    cell = OnePartitionCell(BESIDE[design])
    cell.publish("report", state={"usage": {"VCPU": 1}})
    cell.step(8)
    cell.server.flush()
    for _ in range(10):
        cell.publish("heartbeat")
        cell.step()
    view = cell.reader(design).read(max_age=10, on_stale="refuse")
    assert view.nodes["n"].state["usage"] == {"VCPU": 1}


@pytest.mark.parametrize("design", BESIDE)
def test_an_event_over_the_item_limit_is_a_dead_letter_and_later_events_are_written(design: str) -> None:
    """Regression: a change with many removals made an event larger than any item, though the state was small, and the
    consumer retried it for ever.
    """
    cell = OnePartitionCell((design,), max_value_bytes=128 * 1024)
    cell.publish("report", state={"usage": {"VCPU": 1}})
    cell.step(4)
    cell.publish(patch={"namespaces": {f"nothing-{number:06}": None for number in range(12_000)}})
    cell.generation -= 1
    cell.publish(patch={"usage": {"VCPU": 2}})
    cell.step(4)
    assert [letter.reason for letter in cell.broker.dead_letters] == ["too-large"]
    view = cell.reader(design).read(max_age=10, on_stale="flag")
    assert view.nodes["n"].state["usage"] == {"VCPU": 2}


@pytest.mark.parametrize("design", BESIDE)
def test_a_reader_with_another_number_of_partitions_refuses_to_give_a_view(design: str) -> None:
    """I5: a reader of half of the partitions would take half of the fleet for all of it. Layouts share no key."""
    cell = OnePartitionCell(BESIDE[design])
    cell.publish("report", state={})
    cell.step(4)
    with pytest.raises(StaleViewError, match="number of partitions is wrong"):
        cell.reader(design, partitions=2).read(max_age=10)


def test_a_consumer_with_another_number_of_partitions_writes_a_separate_layout() -> None:
    """It takes no event from the consumers of the other layout, and makes no dead letters."""
    cell = OnePartitionCell()
    cell.publish("report", state={"usage": {"VCPU": 1}})
    cell.step(4)
    other = cell.another_consumer(partitions=2)
    cell.publish(patch={"usage": {"VCPU": 2}})
    for _ in range(4):
        other.step()
        cell.step()
    assert cell.broker.dead_letters == []
    assert cell.reader("journal").read(max_age=5).nodes["n"].state["usage"] == {"VCPU": 2}
    assert cell.reader("journal", partitions=2).read(max_age=5, on_stale="flag").incomplete >= {"partition 0"}


def test_a_failed_takeover_is_retried_only_after_a_pause() -> None:
    """Regression: each step tried again, and raised the term of every partition whose store answered."""
    cell = OnePartitionCell()
    cell.publish("report", state={})
    cell.step(4)
    cell.consumer.close()
    cell.consumer = cell.another_consumer()
    cell.publish("heartbeat")
    cell.server.stop()
    for _ in range(10):
        cell.consumer.step()
        cell.clock.advance(0.001)
    assert 1 <= cell.consumer.stats.store_errors <= 4


def test_a_node_without_a_sign_of_life_is_over_every_age_bound() -> None:
    """Regression (I5): the node appeared in a read that did not ask for signs of life, and then the store was down."""
    cell = OnePartitionCell(("journal",))
    cell.publish("report", node="a", state={})
    cell.step(8)
    reader = cell.reader("journal")
    reader.read(max_age=1e9, node_max_age=1e9, on_stale="flag")
    cell.generation = 0
    cell.publish("report", node="b", state={})
    cell.step(8)
    reader.read(max_age=1e9, on_stale="flag")
    cell.server.stop()
    cell.clock.advance(3_600)
    view = reader.read(node_max_age=30, on_stale="exclude")
    assert set(view.nodes) == set()
    assert view.stale == {"a", "b"}
