"""A process with the agents of many nodes. The nodes change at a constant rate, and instances are booted on some."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from bench.outage.messages import (
    BUSY,
    REPORT_EVERY_S,
    Command,
    Confirm,
    InstanceChange,
    NodeStates,
    NodeVersions,
    WorkerLog,
)
from bench.outage.worker_logs import log_to_file
from bench.worker import ParentLink
from nodestate.agent.agent import Agent
from nodestate.agent.allocation_file import AllocationFile, AllocationJson
from nodestate.agent.incarnation import state_directory
from nodestate.agent.sources import FullState, Reading, StatePatch
from nodestate.agent.sources.static_fleet import StaticFleet
from nodestate.broker import KombuSink
from nodestate.config import Config
from nodestate.errors import UnconfirmedError
from nodestate.model import Heartbeat, Inventory, parse_event
from nodestate.ports import SystemClock

STEP_S: Final = 0.02
"""Longest wait of one step."""
MAX_BURST_S: Final = 1.0
"""After a delay of more than this, the nodes do not catch up on the changes that they did not make."""
BUSY_VCPUS: Final = 8
"""Capacity of a busy node: a few instances fill it, so schedulers compete."""


def states_of(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the state at the start of each node; the names of busy nodes begin with ``BUSY``."""
    return {
        name: {
            "status": "up",
            "zone": BUSY if name.startswith(BUSY) else "idle",
            "inventory": {"VCPU": {"total": BUSY_VCPUS if name.startswith(BUSY) else 64}},
            "traits": ["HW_CPU_X86_AVX2"],
            "metrics": {"cpu.percent": 0.0},
        }
        for name in names
    }


class LoadedFleet(StaticFleet):
    """A fleet whose nodes together change ``rate`` times a second, and that logs the instances on them.

    Args:
        states: The states at the start.
        name: The fleet's name.
        rate: Changes per second, all nodes together.
        rng: Chooses nodes and values.
        allocations: Stores the instances over a restart of the process.
    """

    def __init__(
        self,
        states: Mapping[str, Mapping[str, Any]],
        *,
        name: str,
        rate: float,
        rng: random.Random,
        allocations: AllocationFile | None = None,
    ) -> None:
        super().__init__(states, name=name, allocations=allocations)
        self.rate = rate
        self.changes: list[InstanceChange] = []
        """Instances that were built or ended since the last log."""
        self.overfull: list[str] = []
        """Sentences on nodes that were over their capacity since the last log."""
        self._rng = rng
        # Number of changes that are due.
        self._due = 0.0
        # Time of the last poll.
        self._polled_at: float | None = None

    def poll(self, now: float) -> Iterator[Reading]:
        """Yield the readings of the base class, and the changes that are due."""
        yield from super().poll(now)
        passed_s = 0.0 if self._polled_at is None else min(now - self._polled_at, MAX_BURST_S)
        self._polled_at = now
        self._due += passed_s * self.rate
        while self._due >= 1.0:
            self._due -= 1.0
            name = self._rng.choice(self._names)
            metrics = {"cpu.percent": round(100 * self._rng.random(), 2)}
            self._nodes[name].fixed["metrics"] = metrics
            yield StatePatch(name, {"metrics": metrics})

    def build(self, node: str, instance: str, allocation: AllocationJson) -> FullState | StatePatch:
        """Build an instance as the base class does, log it, and check the node."""
        reading = super().build(node, instance, allocation)
        self.changes.append(InstanceChange(time.monotonic(), node, instance, built=True))
        resources = self.resources_of(node)
        for name, used in resources.usage.items():
            capacity = Inventory(**resources.inventory[name]).capacity  # type: ignore[arg-type]  # numbers by name
            if used > capacity:
                self.overfull.append(f"{node} had {used} of {capacity} {name} in use after {instance} was built")
        return reading

    def end(self, node: str, instance: str) -> FullState | StatePatch:
        """End an instance as the base class does, and log it."""
        reading = super().end(node, instance)
        self.changes.append(InstanceChange(time.monotonic(), node, instance, built=False))
        return reading


class WitnessedSink:
    """A ``ports.Sink`` around the real one that logs when the broker confirmed which version of a busy node."""

    def __init__(self, inner: KombuSink) -> None:
        self.confirms: list[Confirm] = []
        """Confirms since the last log."""
        self._inner = inner

    def publish(self, bucket: int, body: bytes, on_done: Callable[[bool], None]) -> None:
        """Publish an event, and log its confirm if it is one of a busy node."""
        event = parse_event(body) if BUSY.encode() in body else None
        if event is None or type(event) is Heartbeat or not event.node.startswith(BUSY):
            self._inner.publish(bucket, body, on_done)
            return

        def done(ok: bool) -> None:
            if ok:
                self.confirms.append(Confirm(time.monotonic(), event.node, event.version))
            on_done(ok)

        self._inner.publish(bucket, body, done)

    def flush(self, timeout_s: float) -> None:
        """Wait until the broker has confirmed everything, at most ``timeout_s``."""
        self._inner.flush(timeout_s)

    def close(self) -> None:
        """Close the real sink."""
        self._inner.close()


def run_agents(parent: ParentLink, config: Config, name: str, nodes: Sequence[str], rate: float, seed: int) -> None:
    """Run the agents of ``nodes`` until the parent asks to stop. They start again with the instances that they had."""
    log_to_file(config, name)
    rng = random.Random(seed)
    stored = AllocationFile(state_directory(config), name)
    fleet = LoadedFleet(states_of(nodes), name=name, rate=rate, rng=rng, allocations=stored)
    inbox = KombuSink(config)
    sink = WitnessedSink(inbox)
    agent = Agent(config, [fleet], sink, SystemClock(), rng, inbox=inbox)
    told, report_at, wait_s = 0, 0.0, 0.0

    def send_log() -> None:
        nonlocal told
        now, events = time.monotonic(), agent.stats.changes + agent.stats.reports
        confirms, sink.confirms = sink.confirms, []
        changes, fleet.changes = fleet.changes, []
        overfull, fleet.overfull = fleet.overfull, []
        parent.send(WorkerLog(now, confirms, changes, overfull, events - told))
        told = events

    parent.report_ready()
    while not parent.should_stop():
        wait_s = agent.step(min(wait_s, STEP_S))
        match parent.receive(0.0):
            case Command.PAUSE:
                fleet.rate = 0.0
            case Command.VERSIONS:
                parent.send(NodeVersions({node: one.version for node, one in agent.publishers.items()}))
            case Command.STATES:
                parent.send(NodeStates({node: (one.version, one.state()) for node, one in agent.publishers.items()}))
        if time.monotonic() >= report_at:
            report_at = time.monotonic() + REPORT_EVERY_S
            send_log()
    with suppress(UnconfirmedError):  # the next process reports all states
        agent.close()
    inbox.close()
    send_log()
