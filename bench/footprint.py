"""Measures the bytes of a cell: held in memcached or a database for each node, and written for each event.

One consumer commits changes of K nodes, one commit after the other. Everything that the consumer writes passes a
``CountingStore``, which adds up the bytes by kind of key. Checkpoints of the journal and indexes of the snapshot are
written only from time to time. So that each event gets its fair share of them, counting starts when every partition has
just written one, and ends when every partition has just written one again. A database writes neither; there, counting
ends with the next commit of every partition.
"""

from __future__ import annotations

import operator
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from bench.counting_store import CountingStore
from bench.environments import Environment
from bench.record import Case, Measure, Timings
from bench.runs import Runs
from bench.scenario import Findings, ReportProgress, Scenario, Settings
from bench.stepped_cell import MAX_AGE_S, SteppedCell
from bench.workload import SeededFleet, require, require_whole
from nodestate import Reader
from nodestate.journal.format import JOURNAL_SECTION
from nodestate.ports import Store
from nodestate.snapshot.format import SNAPSHOT_SECTION
from nodestate.store.head import Head

CHANGE_BYTES: Final = (1_000, 4_000)
"""Sizes of changes that are measured beside ``--change-bytes``, unless the run is brief."""
BRIEF_S: Final = 1.0
WARM_UP_CHANGES_COUNT: Final = 2_000
"""Largest number of changes in one commit until each partition has written its first checkpoint or index."""
SAMPLE_EVERY_COMMITS: Final = 10
PATIENCE_S: Final = 120.0
REMAKES: Final = {"journal": "checkpoints", "snapshot": "indexes"}
"""The kind of key that a design writes from time to time for all nodes of a partition, see ``counting_store.KINDS``."""


def run(settings: Settings, report_progress: ReportProgress) -> Findings:
    """Measure every design at every size of fleet and of changes."""
    runs = Runs()
    others = CHANGE_BYTES if settings.seconds >= BRIEF_S else ()
    for design in settings.designs:
        for nodes in settings.nodes:
            for change_bytes in sorted({settings.change_bytes, *others}):

                def measure(
                    environment: Environment, nodes: int = nodes, change_bytes: int = change_bytes
                ) -> list[Case]:
                    fleet = SeededFleet(
                        settings.seed, nodes, state_bytes=settings.state_bytes, change_bytes=change_bytes
                    )
                    counters: list[CountingStore] = []

                    def entered(store: Store) -> Store:
                        counters.append(CountingStore(store))
                        return counters[-1]

                    with SteppedCell(fleet, environment, settings, entered) as cell:
                        return [_measure(cell, counters[0], change_bytes, settings, report_progress)]

                runs.measure_in([design], nodes * (settings.state_bytes + change_bytes), measure)
    return runs.findings()


SCENARIO: Final = Scenario("footprint", "bytes held for each node and written for each event", run)


@dataclass(slots=True)
class _CommitCounts:
    """The counts of a stretch of commits."""

    events: int = 0
    event_bytes: int = 0
    commits: int = 0
    remade: int = 0
    """Checkpoints or indexes written, of all partitions."""
    held: list[Mapping[str, int]] = field(default_factory=list)
    """Samples of the bytes that the server holds."""
    tail_bytes: list[int] = field(default_factory=list)
    """Samples of the bytes of the journal's tail, all partitions together."""
    timings: Timings = field(default_factory=Timings)


def _measure(
    cell: SteppedCell, counter: CountingStore, change_bytes: int, settings: Settings, report_progress: ReportProgress
) -> Case:
    fleet = cell.fleet
    name = f"{cell.label}, {len(fleet):,} nodes, changes of {change_bytes:,} bytes"
    picks = random.Random(settings.seed)
    changed = min(settings.changed, len(fleet))
    cell.load(report_progress)
    if cell.design in REMAKES:
        cell.repair()
    report_progress(f"{name}: warms up", 0.0)
    _until_remade(cell, counter, picks, min(WARM_UP_CHANGES_COUNT, len(fleet)), 0.0, lambda _share: None)
    counter.clear()
    received_before, logged_before = cell.environment.bytes_received(), cell.environment.log_bytes()
    counted = _until_remade(
        cell, counter, picks, changed, settings.seconds, lambda share: report_progress(f"{name}: commits", share)
    )
    written_bytes, deleted = dict(counter.written_bytes), counter.deleted.total()
    total_bytes = sum(written_bytes.values())
    shown = []
    if (received := cell.environment.bytes_received()) is not None and received_before is not None:
        read_bytes = received - received_before
        require(
            total_bytes <= read_bytes, f"{total_bytes:,} bytes were counted, but the server read only {read_bytes:,}"
        )
        shown.append("the server read at least the bytes that were counted")
    if remakes := REMAKES.get(cell.design):
        shown.append(f"each partition wrote its {remakes} again, {counted.remade} times in all")
    if "segments" in written_bytes:
        require(written_bytes["segments"] >= counted.event_bytes, "the segments can't hold all events")
    with Reader(cell.config) as reader:
        require_whole(reader.read(max_age=MAX_AGE_S, on_stale="flag"), fleet)
    state_bytes = len(fleet.body(0, fleet.generations[0]))
    measures = {
        **_held(counted, len(fleet)),
        "write amplification": Measure.of("x", [total_bytes / counted.event_bytes]),
        **_parts(written_bytes, counted.event_bytes),
        "written": Measure.of("bytes/event", [total_bytes / counted.events]),
        **counted.timings.measures,
    }
    if remakes:
        measures["trimmed"] = Measure.of("keys/event", [deleted / counted.events])
        measures[f"events between {remakes}"] = Measure.of("events", [counted.events / counted.remade])
    if (logged := cell.environment.log_bytes()) is not None and logged_before is not None:
        measures["written to the database's log"] = Measure.of(
            "bytes/event", [(logged - logged_before) / counted.events]
        )
    if counted.tail_bytes:
        measures["tail"] = Measure.of("bytes/node", [bytes_ / len(fleet) for bytes_ in counted.tail_bytes])
    return Case(
        cell.label,
        len(fleet),
        {
            "changed": changed,
            "change_bytes": change_bytes,
            "event_bytes": counted.event_bytes / counted.events,
            "state_bytes": state_bytes,
            "events": counted.events,
            "commits": counted.commits,
        },
        measures,
        {"stored / states": measures["stored"].p50 / state_bytes},
        [
            f"after {counted.events:,} changes all {len(fleet):,} nodes showed version and state of their last event",
            *shown,
            cell.environment.require_nothing_lost(len(fleet)),
        ],
    )


def _until_remade(
    cell: SteppedCell,
    counter: CountingStore,
    picks: random.Random,
    changed: int,
    seconds: float,
    report_share: Callable[[float], None],
) -> _CommitCounts:
    """Commit changes for ``seconds``, and then until each partition has written its checkpoint or index once more.

    ``report_share`` takes the share of the time that has passed.
    """
    counted, remakes = _CommitCounts(), REMAKES.get(cell.design, "")
    since = made = _made(cell)
    began = time.monotonic()
    while True:
        passed_s = time.monotonic() - began
        if passed_s < seconds:
            since = made
        elif all(map(operator.ne, since, made)):
            return counted
        require(
            passed_s < seconds + PATIENCE_S,
            f"the partitions of {cell.design} wrote no {remakes or 'commits'} within {PATIENCE_S:g} s",
        )
        report_share(passed_s / max(seconds, 1.0))
        numbers = picks.sample(range(len(cell.fleet)), changed)
        events = [(number, cell.fleet.change(number)) for number in numbers]
        before = counter.deleted.total(), counter.written_bytes[remakes]
        took_ms = cell.commit(events) * 1e3
        trimmed, remade = counter.deleted.total() > before[0], counter.written_bytes[remakes] > before[1]
        counted.timings.note("commit that trims" if trimmed else "commit", took_ms)
        counted.events += len(events)
        counted.event_bytes += sum(len(event) for _, event in events)
        counted.commits += 1
        if remade or not remakes:
            then, made = made, _made(cell)
            counted.remade += sum(map(operator.ne, then, made))
        if counted.commits % SAMPLE_EVERY_COMMITS == 1:
            counted.held.append(cell.environment.bytes_held())
            if cell.design == "journal":
                counted.tail_bytes.append(sum(JOURNAL_SECTION.of(head).tail_bytes for head in cell.heads()))


def _made(cell: SteppedCell) -> list[int]:
    """Return the offset of the checkpoint or index of each partition.

    If the design writes neither, return the offset of the next commit.
    """
    return [_offset_made(cell.design, head) for head in cell.heads()]


def _offset_made(design: str, head: Head) -> int:
    if design == "journal":
        return JOURNAL_SECTION.of(head).checkpoint.offset
    if design == "snapshot":
        return SNAPSHOT_SECTION.of(head).index.offset
    return head.next


def _held(counted: _CommitCounts, nodes: int) -> dict[str, Measure]:
    """Return the bytes that the server held, over all samples."""
    return {name: Measure.of("bytes/node", [held[name] / nodes for held in counted.held]) for name in counted.held[0]}


def _parts(written_bytes: Mapping[str, int], event_bytes: int) -> dict[str, Measure]:
    """Return the write amplification by kind of key."""
    parts = {kind: size / event_bytes for kind, size in written_bytes.items() if size}
    return {
        f"write amplification, {kind}": Measure.of("x", [part])
        for kind, part in sorted(parts.items(), key=lambda one: -one[1])
    }
