"""A scheduler in a process of its own that boots and terminates tasks on request, by messages to agents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from bench.scheduling.tasks import Task
from bench.worker import ParentLink
from nodestate.broker import KombuCourier
from nodestate.config import Config
from nodestate.scheduling.orders import Booted
from nodestate.scheduling.request import Request
from nodestate.scheduling.scheduler import Scheduler

IDLE_S: Final = 0.02
"""Longest wait for a request between two steps of the scheduler."""
BOOT_S: Final = 60.0
MAX_AGE_S: Final = 5.0


class BootRequest(NamedTuple):
    """A request to boot tasks. The answer is a list with a ``BootResult`` for each task."""

    tasks: Sequence[Task]


class TerminationRequest(NamedTuple):
    """A request to terminate tasks. There is no answer: the caller watches the agents."""

    tasks: Sequence[tuple[str, Task]]
    """Each task with its node."""


class BootResult(NamedTuple):
    """The outcome of a boot."""

    task: str
    node: str
    """The node, or empty if the task was not booted."""
    reason: str
    """Why the task was not booted, or empty."""
    conflicts: int
    refused: tuple[str, ...]
    """The reasons of agents that refused the boot."""


@dataclass(frozen=True, slots=True)
class ClaimCounts:
    """Counts of compare-and-swaps of one scheduler."""

    written: int
    conflicts: int


def serve(parent: ParentLink, config: Config, name: str, weights: Mapping[str, float], seed: int) -> ClaimCounts:
    """Execute requests of the parent until it asks to stop, and step the scheduler in between."""
    courier = KombuCourier(config)
    with Scheduler(config, name=name, seed=seed, max_age=MAX_AGE_S, courier=courier) as scheduler:
        scheduler.refresh()
        parent.report_ready()
        while not parent.should_stop():
            asked = parent.receive(IDLE_S)
            if isinstance(asked, BootRequest):
                parent.send(_boot(scheduler, asked.tasks, weights))
            elif isinstance(asked, TerminationRequest):
                scheduler.terminations.terminate((node, task.name) for node, task in asked.tasks)
            scheduler.step()
        stats = scheduler.claim_table.stats
    courier.close()
    return ClaimCounts(stats.written, stats.conflicts)


def _boot(scheduler: Scheduler, tasks: Sequence[Task], weights: Mapping[str, float]) -> list[BootResult]:
    boots = [
        boot
        for task in tasks
        for boot in scheduler.submit(
            Request(resources=task.resources, instances=(task.name,), any_traits=task.any_traits, weights=dict(weights))
        )
    ]
    scheduler.run(lambda: all(boot.outcome is not None for boot in boots), BOOT_S)
    results = []
    for boot in boots:
        outcome = boot.outcome
        assert outcome is not None, "the scheduler ran until every boot had an outcome"
        refused = tuple(str(one.reason) for one in outcome.refusals)
        node, reason = (outcome.node, "") if isinstance(outcome, Booted) else ("", str(outcome.reason))
        results.append(BootResult(outcome.instance, node, reason, outcome.conflicts, refused))
    return results
