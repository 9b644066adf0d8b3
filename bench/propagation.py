"""Measures the time from publishing a change until the view of a reader shows it, by the rate of changes.

A publisher, a consumer (``nodestate consume``) and a reader that reads all the time are processes of their own, joined
by RabbitMQ and by memcached or a database. Publisher and reader note times of the monotonic clock, which all processes
of a machine share: the publisher before it publishes an event, the reader after the read whose view has the version of
the event.
"""

from __future__ import annotations

import math
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from bench.consumer_process import consumer_running
from bench.design_names import DEFAULT_DESIGNS
from bench.environments import Environment, config_for
from bench.publisher_process import PublishTimes, send
from bench.record import Case, Goal, Measure
from bench.runs import Runs
from bench.scenario import Findings, ReportProgress, Scenario, Settings
from bench.stepped_cell import MAX_AGE_S
from bench.worker import ParentLink, Worker
from bench.workload import SeededFleet, buckets_of, require, require_whole
from harness.servers import RabbitServer
from nodestate import Reader, View
from nodestate.broker import connect_check
from nodestate.config import Config

RATES: Final = (100, 1_000, 4_000)
"""Events per second, all nodes together. The rates share the seconds to measure."""
RATES_BRIEF: Final = (100, 1_000)
BRIEF_S: Final = 1.0
"""A run with fewer seconds leaves out the highest rate and measures each of the others for all of the seconds."""
PATIENCE_S: Final = 60.0
PAUSE_S: Final = 0.02
GOAL_NODES, GOAL_RATE = 10_000, 1_000
GOAL_OVER_FLUSH_MS: Final = 20.0


def run(settings: Settings, report_progress: ReportProgress) -> Findings:
    """Measure every design at every size and every rate."""
    runs = Runs()
    with RabbitServer() as rabbit:
        runs.servers["rabbitmq"] = connect_check(Config(broker=rabbit.url)).version
        for design in settings.designs:
            for nodes in settings.nodes:

                def measure(environment: Environment, nodes: int = nodes) -> list[Case]:
                    cell = f"bench-{environment.slug}-{nodes}"
                    config = config_for(environment, settings, broker=rabbit.url, cell=cell, broker_heartbeat_s=60)
                    return _measure(environment, config, nodes, settings, report_progress)

                runs.measure_in([design], nodes * settings.state_bytes, measure)
    return runs.findings()


SCENARIO: Final = Scenario("propagation", "time from publishing a change until a view shows it", run)


def _measure(
    environment: Environment, config: Config, nodes: int, settings: Settings, report_progress: ReportProgress
) -> list[Case]:
    fleet = SeededFleet(settings.seed, nodes, state_bytes=settings.state_bytes, change_bytes=settings.change_bytes)
    name, buckets = f"{environment.label}, {nodes:,} nodes", buckets_of(fleet)
    picks = random.Random(settings.seed)
    brief = settings.seconds < BRIEF_S
    rates = RATES_BRIEF if brief else RATES
    seconds = settings.seconds / (1 if brief else len(rates))
    cases: list[Case] = []
    with consumer_running(config):
        report_progress(f"{name}: loads", 0.0)
        with Worker(send, config, [(buckets[number], fleet.report(number)) for number in range(nodes)]) as load:
            load.wait_until_ready()
            load.result()
        with Reader(config) as reader:
            _wait_until_whole(reader, fleet)
        for rate in rates:
            numbers = picks.choices(range(nodes), k=max(1, int(rate * seconds)))
            planned: list[deque[PlannedEvent]] = [deque() for _ in range(config.partitions)]
            events = []
            for at, number in enumerate(numbers):
                events.append((buckets[number], fleet.change(number)))
                planned[buckets[number] % config.partitions].append(
                    (at, fleet.names[number], fleet.generations[number])
                )
            with Worker(watch, config, planned, fleet) as watcher:
                watcher.wait_until_ready()
                with Worker(send, config, events, rate) as sender:
                    sender.wait_until_ready()
                    began = time.monotonic()
                    while not watcher.has_ended(0.1):
                        report_progress(f"{name}: {rate:,} events/s", (time.monotonic() - began) / seconds)
                        if sender.has_ended(0.0):
                            sender.result()  # if the sender failed, raise its error instead of waiting
                    cases.append(_case(environment, config, fleet, rate, sender.result(), watcher.result()))
            cases[-1] = replace(cases[-1], shown=[*cases[-1].shown, environment.require_nothing_lost(nodes)])
    return cases


def _wait_until_whole(reader: Reader, fleet: SeededFleet) -> None:
    """Wait until the view shows the whole fleet and the owner has declared all partitions complete."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        view = reader.read(max_age=MAX_AGE_S, on_stale="flag")
        if len(view.nodes) == len(fleet) and not view.incomplete:
            require_whole(view, fleet)
            return
        require(time.monotonic() < deadline, f"the view was not complete within {PATIENCE_S:g} s: {view}")
        time.sleep(PAUSE_S)


def _case(
    environment: Environment, config: Config, fleet: SeededFleet, rate: int, sent: PublishTimes, shown: VisibleTimes
) -> Case:
    ms = sorted((at - called) * 1e3 for at, called in zip(shown.at, sent.called, strict=True))
    require(ms[0] > 0, "a view showed an event before it was published: the processes do not share a clock")
    measures = {
        "propagation": Measure.of("ms", ms),
        "propagation, p99.9": Measure.of("ms", [ms[math.ceil(len(ms) * 0.999) - 1]]),
        "publisher behind its rate": Measure.of(
            "ms", [(called - due) * 1e3 for called, due in zip(sent.called, sent.due, strict=True)]
        ),
        "read": Measure.of("ms", shown.read_ms),
    }
    flush_ms = config.flush_s * 1e3
    bound_ms = flush_ms + GOAL_OVER_FLUSH_MS
    what = f"{environment.label}, {len(fleet):,} nodes: propagation at {rate:,} events/s, p99"
    return Case(
        environment.label,
        len(fleet),
        {"rate": rate, "flush_ms": flush_ms, "events": len(ms)},
        measures,
        {"propagation, p99 / flush": measures["propagation"].p99 / flush_ms},
        [
            f"all {len(ms):,} events were confirmed and became visible in the view of the reader",
            f"afterwards the view showed version and state of the last event of all {len(fleet):,} nodes",
        ],
        [Goal.at_most(what, measures["propagation"].p99, bound_ms, "ms")]
        if (len(fleet), rate) == (GOAL_NODES, GOAL_RATE) and environment.label in DEFAULT_DESIGNS
        else [],
    )


# -- in a process of its own ----------------------------------------------------------------------

PlannedEvent = tuple[int, str, int]
"""An event that will be published: its index among all events, its node, and the generation of the node."""


@dataclass(frozen=True, slots=True)
class VisibleTimes:
    """The reads of the reader."""

    at: Sequence[float]
    """For each event, the monotonic time at the end of the first read that showed it."""
    read_ms: Sequence[float]
    """Milliseconds of each read."""


def watch(
    parent: ParentLink, config: Config, planned: Sequence[deque[PlannedEvent]], fleet: SeededFleet
) -> VisibleTimes:
    """Read until a view shows every planned event, and require that it shows the whole fleet then.

    The events of a partition are checked in their order: an event counts as shown when a view shows it and all events
    of the partition before it.
    """
    at = [0.0] * sum(map(len, planned))
    read_ms: list[float] = []
    with Reader(config) as reader:
        view = reader.read(max_age=MAX_AGE_S, on_stale="flag")
        parent.report_ready()
        deadline = time.monotonic() + PATIENCE_S
        while any(planned):
            began = time.monotonic()
            view = reader.read(max_age=MAX_AGE_S, on_stale="flag")
            now = time.monotonic()
            read_ms.append((now - began) * 1e3)
            for index in _newly_shown(view, planned):
                at[index] = now
                deadline = now + PATIENCE_S
            require(
                now < deadline, f"{sum(map(len, planned))} events of {len(at)} were not visible after {PATIENCE_S:g} s"
            )
        require_whole(view, fleet)
    return VisibleTimes(at, read_ms)


def _newly_shown(view: View, planned: Sequence[deque[PlannedEvent]]) -> Iterator[int]:
    """Remove the events that a view shows from ``planned``, and yield their indexes."""
    for waiting in planned:
        while waiting:
            index, name, generation = waiting[0]
            record = view.nodes.record(name)
            if record is None or record.generation < generation:
                break
            waiting.popleft()
            yield index
