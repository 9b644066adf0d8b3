"""Measures how many events a second one consumer process moves from RabbitMQ to a store, and its processor time.

In each round a new consumer process takes over all partitions, whose queues are empty. Then the queues are filled with
changes, the clock starts, and the consumer drains them. The same messages are then drained by bare kombu, which
acknowledges in batches of the same size.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from bench.baseline_kombu import NOTHING, DrainTimes, StopWatch, drain_queues
from bench.design_names import DEFAULT_DESIGNS
from bench.environments import Environment, config_for
from bench.fresh_process import run_in_fresh_process
from bench.record import Case, Goal, Measure
from bench.runs import Runs
from bench.scenario import Findings, ReportProgress, Scenario, Settings
from bench.workload import SeededFleet, buckets_of, require, require_whole
from harness.servers import RabbitServer
from nodestate import Reader, Receipt
from nodestate.broker import KombuResyncSender, KombuSink, KombuSource, Topology, connect_check, queue_depths
from nodestate.config import Config
from nodestate.consumers.loop import Consumer
from nodestate.consumers.watermarks import is_marker
from nodestate.designs.connections import open_stores
from nodestate.ports import SystemClock

ROUNDS_MAX: Final = 3
EVENTS_MIN: Final = 4_000
"""Events of a round, which are several batches, so that the clock can start and stop between two of them."""
EVENTS_PER_S: Final = 8_000
"""The goal. Its events during the seconds to measure are divided among the rounds."""
PATIENCE_S: Final = 60.0
SWEEP_S: Final = 0.2
GOAL_NODES: Final = 10_000


def run(settings: Settings, report_progress: ReportProgress) -> Findings:
    """Measure each design alone, then all designs of memcached together."""
    runs = Runs()
    of_memcached = [design for design in settings.designs if design in DEFAULT_DESIGNS]
    together = [of_memcached] if len(of_memcached) > 1 else []
    with RabbitServer() as rabbit:
        runs.servers["rabbitmq"] = connect_check(Config(broker=rabbit.url)).version
        for nodes in settings.nodes:
            for designs in [*([design] for design in settings.designs), *together]:

                def measure(environment: Environment, nodes: int = nodes) -> list[Case]:
                    cell = f"bench-{environment.slug}-{nodes}"
                    config = config_for(environment, settings, broker=rabbit.url, cell=cell, broker_heartbeat_s=60)
                    return [_measure(environment, config, nodes, settings, report_progress)]

                runs.measure_in(designs, nodes * settings.state_bytes, measure)
    return runs.findings()


SCENARIO: Final = Scenario("apply", "one consumer process that moves events from RabbitMQ to a store", run)


def _measure(
    environment: Environment, config: Config, nodes: int, settings: Settings, report_progress: ReportProgress
) -> Case:
    name = environment.label
    fleet = SeededFleet(settings.seed, nodes, state_bytes=settings.state_bytes, change_bytes=settings.change_bytes)
    buckets = buckets_of(fleet)
    picks = random.Random(settings.seed)
    queues = [queue for _, queue in Topology.of(config).queues()]
    report_progress(f"{name}: loads {nodes:,} nodes", 0.0)
    fill(config, [(buckets[number], fleet.report(number)) for number in range(nodes)])
    loaded = run_in_fresh_process(load, config, nodes, f"{settings.seed}/load")
    require_applied(loaded, config, nodes)
    rounds, count = rounds_of(settings)
    ack_every = min(config.batch_events, config.prefetch)  # a larger batch would never fill at the end of a queue
    sizes: list[int] = []
    ours: list[ConsumerOutcome] = []
    bare: list[DrainTimes] = []
    for number in range(rounds):
        report_progress(f"{name}, {nodes:,} nodes: {count:,} events, round {number + 1}", number / rounds)
        messages = [(buckets[node], fleet.change(node)) for node in picks.choices(range(nodes), k=count)]
        sizes += [len(body) for _, body in messages]
        ours.append(run_in_fresh_process(drain, config, messages, f"{settings.seed}/{number}"))
        require_applied(ours[-1], config, count)
        require_views(config, fleet)
        report_progress(
            f"{name}, {nodes:,} nodes: the same with bare kombu, round {number + 1}", (number + 0.5) / rounds
        )
        refill = partial(fill, config, messages)
        drained = run_in_fresh_process(drain_queues, config.broker, queues, refill, config.prefetch, ack_every)
        require(drained.size_bytes == sum(sizes[-count:]), "bare kombu received other messages than were published")
        _require_empty(config)
        bare.append(drained.stretch)
    measures = {
        "consumer": Measure.of("events/s", [one.stretch.rate for one in ours]),
        "consumer, CPU": Measure.of("us/event", [one.stretch.cpu_us for one in ours]),
        "bare kombu": Measure.of("events/s", [stretch.rate for stretch in bare]),
        "bare kombu, CPU": Measure.of("us/event", [stretch.cpu_us for stretch in bare]),
        "takeover": Measure.of("ms", [one.takeover_s * 1e3 for one in ours]),
    }
    rate = measures["consumer"].p50
    return Case(
        name,
        nodes,
        {
            "events": count,
            "message_bytes": sum(sizes) / len(sizes),
            "state_bytes": len(fleet.body(0, 1)),
            "batch_events": config.batch_events,
            "prefetch": config.prefetch,
            "events_per_commit": len(config.designs) * count / Measure.of("", [one.commits for one in ours]).p50,
        },
        measures,
        {
            "consumer / bare kombu": rate / measures["bare kombu"].p50,
            "CPU, consumer / bare kombu": measures["consumer, CPU"].p50 / measures["bare kombu, CPU"].p50,
        },
        [
            f"in each of {rounds} rounds all {count:,} events were applied and acknowledged, and no other event came",
            f"after each, views of {name} showed version and state of the last event of all {nodes:,} nodes",
            f"bare kombu took {count:,} messages of the same bytes and left none",
            environment.require_nothing_lost(nodes),
        ],
        [
            Goal.at_least(f"{name}: consumer, p50", rate, EVENTS_PER_S, "events/s"),
            Goal.at_least(f"{name}: consumer / bare kombu", rate / measures["bare kombu"].p50, 0.6, "x"),
        ]
        if nodes == GOAL_NODES and name in DEFAULT_DESIGNS
        else [],
    )


def rounds_of(settings: Settings) -> tuple[int, int]:
    """Return the number of rounds, and the number of events in each."""
    wanted = int(settings.seconds * EVENTS_PER_S)
    rounds = max(1, min(ROUNDS_MAX, wanted // EVENTS_MIN))
    return rounds, max(EVENTS_MIN, wanted // rounds)


def fill(config: Config, messages: list[tuple[int, bytes]]) -> int:
    """Publish messages and wait for every confirm; return the number of messages."""
    sink = KombuSink(config, control=False)
    confirmed: list[bool] = []
    for bucket, body in messages:
        sink.publish(bucket, body, confirmed.append)
    sink.flush(PATIENCE_S)
    sink.close()
    require(confirmed.count(True) == len(messages), "RabbitMQ did not confirm every message")
    return len(messages)


def _sweep(config: Config) -> None:
    """Remove the watermark messages that the consumer sent to itself and did not receive before it ended."""
    source = KombuSource(config, range(config.partitions))
    while deliveries := source.receive(config.prefetch, SWEEP_S):
        require(all(is_marker(delivery.body) for delivery in deliveries), "events were left in queues")
        source.ack(deliveries)
    source.close()


def require_views(config: Config, fleet: SeededFleet) -> None:
    """Require that views of all designs show the last event of every node."""
    # Read by receipt, not by age: the owner has ended, so no view is fresh.
    receipt = Receipt(fleet.names[0], fleet.version(0))
    for design in config.designs:
        with Reader(config, design=design) as reader:
            require_whole(reader.read(at_least=receipt), fleet)


def require_applied(consumed: ConsumerOutcome, config: Config, count: int) -> None:
    """Require that a consumer applied ``count`` events and no other outcome, and that it left no message."""
    _sweep(config)
    outcomes = {outcome: times for outcome, times in consumed.outcomes.items() if times}
    require(
        outcomes == {"applied": count}, f"{count} events should have been applied, but the outcomes were {outcomes}"
    )
    require(not consumed.dead_letters, f"events were dead-lettered: {consumed.dead_letters}")
    _require_empty(config)


def _require_empty(config: Config) -> None:
    left = {depth.queue: depth.ready for depth in queue_depths(config) if depth.ready}
    require(not left, f"messages were left in queues: {left}")


# -- in a process of its own ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ConsumerOutcome:
    """The outcomes of one consumer process."""

    outcomes: dict[str, int]
    dead_letters: dict[str, int]
    commits: int
    takeover_s: float = 0.0
    stretch: DrainTimes = NOTHING


class _ConsumerLoop:
    """The consumer of a process, and its loop."""

    def __init__(self, config: Config, seed: str) -> None:
        self._config = config
        self._resync = KombuResyncSender(config)
        clock, source = SystemClock(), KombuSource(config, range(config.partitions))
        stores = open_stores(config, clock, config.designs)
        self._consumer = Consumer(config, source, stores, self._resync, clock, random.Random(seed), "bench")

    def take_over(self) -> None:
        """Step until the consumer owns every partition and has declared it complete."""
        self._step_until(lambda: self._owns_all)

    def drain(self, count: int) -> None:
        """Step until ``count`` events have been folded, written and acknowledged."""
        counts = self._consumer.stats.counts
        self._step_until(lambda: sum(counts.by_outcome.values()) + sum(counts.dead_letters.values()) >= count)
        self._step_until(lambda: not any(held.pending or held.backlog for held in self._consumer.owned.values()))

    def close(self) -> None:
        """Close all connections."""
        self._consumer.close()
        self._resync.close()

    def consumed(self, takeover_s: float = 0.0, stretch: DrainTimes = NOTHING) -> ConsumerOutcome:
        """Return the outcomes so far."""
        stats = self._consumer.stats
        return ConsumerOutcome(stats.counts.by_outcome, stats.counts.dead_letters, stats.commits, takeover_s, stretch)

    @property
    def _owns_all(self) -> bool:
        held = self._consumer.owned
        return len(held) == self._config.partitions and all(one.complete for one in held.values())

    def _step_until(self, done: Callable[[], bool]) -> None:
        acked, deadline = -1, 0.0
        while not done():
            if self._consumer.stats.acked > acked:
                acked, deadline = self._consumer.stats.acked, time.monotonic() + PATIENCE_S
            require(
                time.monotonic() < deadline,
                f"the consumer acknowledged nothing for {PATIENCE_S:g} s: {self._consumer.stats}",
            )
            self._consumer.step()


def load(config: Config, count: int, seed: str) -> ConsumerOutcome:
    """Drain ``count`` events from the queues, and step on until every partition is complete."""
    process = _ConsumerLoop(config, seed)
    process.drain(count)
    process.take_over()
    process.close()
    return process.consumed()


def drain(config: Config, messages: list[tuple[int, bytes]], seed: str) -> ConsumerOutcome:
    """Take over all partitions, fill the queues, and time how long they take to drain."""
    began = time.perf_counter()
    process = _ConsumerLoop(config, seed)
    process.take_over()
    takeover_s = time.perf_counter() - began
    count = fill(config, messages)
    watch = StopWatch()
    process.drain(count)
    stretch = watch.stretch(count)
    process.close()
    return process.consumed(takeover_s, stretch)
