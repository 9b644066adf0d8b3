"""A cell of two partitions, of which one is attacked while the views of the other must stay right."""

from __future__ import annotations

import math
import random
from typing import Any, Final

import msgpack

from nodestate.config import Config
from nodestate.consumers.loop import Consumer
from nodestate.designs.reader import Reader
from nodestate.model import NodeRecord
from nodestate.model.partitioning import bucket_of, partition_of
from nodestate.store.round_trips import Stores
from nodestate.testing import ManualClock, MemoryBroker
from nodestate.view.view import View

ATTACKED: Final = ("n", "m")
"""The nodes of partition 0."""
HONEST: Final = "h"
"""The node of partition 1."""
assert [partition_of(node, 2) for node in (*ATTACKED, HONEST)] == [0, 0, 1]
USED_AT_FIRST: Final = 1
"""The amount that the honest node uses until ``publish_again``."""
MAX_AGE_S: Final = 6.0
"""Seconds within which the owner of the honest partition confirms its head again, while it runs."""
STEP_S: Final = 1.0
"""Time between two steps of the consumer."""
STEPS_COUNT: Final = 6
"""Steps after which the nodes that reported again must be right."""


class TwoPartitionCell:
    """A consumer, readers, and the publisher of three nodes.

    Args:
        designs: the designs that the consumer writes.
        stores: where they are stored; the clock of these is ``clock``.
        clock: the clock of all processes.
    """

    def __init__(self, designs: tuple[str, ...], stores: Stores, clock: ManualClock) -> None:
        self.clock = clock
        self._stores = stores
        self._broker = MemoryBroker(2, clock=clock)
        self._config = Config(partitions=2, designs=designs, heartbeat_s=1.0, resync_jitter_s=0.0)
        source = self._broker.source([0, 1])
        rng = random.Random(int(clock.monotonic()))  # another consumer draws other epochs
        self.consumer = Consumer(self._config, source, stores, self._broker, clock, rng, "m")
        self.readers = [self._reader(design) for design in designs]
        self._sink = self._broker.sink()
        self._version = (0, 0)
        self._honest_used = USED_AT_FIRST

    def _reader(self, design: str) -> Reader:
        return Reader(self._config, design=design, stores=self._stores, clock=self.clock)

    def publish(self, kind: str, node: str, **more: Any) -> None:
        """Publish an event of a new version; of the present one if it is a heartbeat."""
        incarnation, generation = self._version
        self._version = incarnation or int(self.clock.time()), generation + (kind != "heartbeat")
        names = ("incarnation", "generation")
        head = {"v": 1, "kind": kind, "node": node, "reported_at": self.clock.time()}
        event = {**head, **dict(zip(names, self._version, strict=True)), **more}
        self._sink.publish(bucket_of(node), msgpack.packb(event), lambda _ok: None)

    def step(self, count: int = 1) -> None:
        """Let the consumer work, and time pass."""
        for _ in range(count):
            self.consumer.step()
            self.clock.advance(STEP_S)

    def fill(self) -> None:
        """Store the first states of all nodes, and end the consumer."""
        self.step(2)
        for node in (*ATTACKED, HONEST):
            self.publish("report", node, state={"usage": {"VCPU": USED_AT_FIRST}, "inventory": {"VCPU": {"total": 8}}})
        self.step(3)
        self.publish("change", ATTACKED[1], patch={"usage": {"VCPU": 2}})
        self.step(3)
        self.consumer.close()

    def take_over(self) -> None:
        """Readers meet the stored values; then a consumer takes over, and views show the honest node."""
        for reader in self.readers:
            self._check_honest(self._view(reader), owned=False)
        self.step(2)
        self._version = int(self.clock.time()), 10
        for node in ATTACKED:
            self.publish("heartbeat", node)
            self.publish("change", node, patch={"usage": {"VCPU": 3}})
        self.step()
        for reader in self.readers:
            self._check_honest(self._view(reader), owned=False)

    def heal(self) -> None:
        """After ``take_over``: the nodes report, and all views are right."""
        for node in (*ATTACKED, HONEST):
            self.publish("report", node, state={"usage": {"VCPU": 4}})
        self._honest_used = 4
        self.step(STEPS_COUNT)
        for reader in (*self.readers, *(self._reader(design) for design in self._config.designs)):
            view = self._view(reader)
            self._check_honest(view, owned=True)
            for node in ATTACKED:
                if not self._is_from_the_future(view.nodes.record(node)):
                    assert node not in view.incomplete, f"{node} is not repaired"
                    assert view.nodes[node].state == {"usage": {"VCPU": 4}}

    @staticmethod
    def _view(reader: Reader) -> View:
        return reader.read(max_age=math.inf, node_max_age=math.inf, on_stale="flag")

    def _check_honest(self, view: View, *, owned: bool) -> None:
        """The view shows the honest node, and does not doubt it (I5: right or refused; here it must be right)."""
        assert not {HONEST, "partition 1"} & view.incomplete, view.incomplete
        assert view.nodes[HONEST].state["usage"] == {"VCPU": self._honest_used}
        age_s = self.clock.monotonic() - view.partitions[1].confirmed_at
        assert age_s >= 0.0
        assert not owned or age_s < MAX_AGE_S

    def _is_from_the_future(self, record: NodeRecord | None) -> bool:
        """True for a record of a version that its agent has not had: no process can tell that the agent never will."""
        return record is not None and max(record.version, record.wanted) > self._version
