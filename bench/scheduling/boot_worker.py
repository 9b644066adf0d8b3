"""A scheduler in a process of its own that boots and ends what it is told, by messages to agents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from bench.scheduling.tasks import Task
from bench.worker import ParentLink
from nodestate.broker import KombuCourier
from nodestate.config import Config
from nodestate.scheduling.orders.boot import Booted
from nodestate.scheduling.request import Request
from nodestate.scheduling.scheduler import Scheduler

IDLE_S: Final = 0.02
BOOT_S: Final = 60.0
MAX_AGE_S: Final = 5.0


class BootThese(NamedTuple):
    """To be answered with one ``Told`` for each."""

    tasks: Sequence[Task]


class EndThese(NamedTuple):
    """On these nodes; not answered, as who asks sees it in what agents have."""

    tasks: Sequence[tuple[str, Task]]


class Told(NamedTuple):
    """What became of a boot: ``node``, or ``why`` there is none."""

    task: str
    node: str
    why: str
    conflicts: int
    refused: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Served:
    """Counters of one scheduler."""

    written: int
    conflicts: int


def serve(parent: ParentLink, config: Config, name: str, weights: Mapping[str, float], seed: int) -> Served:
    """Do what is said until told to stop; be a scheduler meanwhile."""
    courier = KombuCourier(config)
    with Scheduler(config, name=name, seed=seed, max_age=MAX_AGE_S, courier=courier) as scheduler:
        scheduler.refresh()
        parent.report_ready()
        while not parent.should_stop():
            asked = parent.receive(IDLE_S)
            if isinstance(asked, BootThese):
                parent.send(_boot(scheduler, asked.tasks, weights))
            elif isinstance(asked, EndThese):
                scheduler.terminations.terminate((node, task.name) for node, task in asked.tasks)
            scheduler.step()
        stats = scheduler.claim_table.stats
    courier.close()
    return Served(stats.written, stats.conflicts)


def _boot(scheduler: Scheduler, tasks: Sequence[Task], weights: Mapping[str, float]) -> list[Told]:
    boots = [
        boot
        for task in tasks
        for boot in scheduler.submit(
            Request(resources=task.resources, instances=(task.name,), any_traits=task.any_traits, weights=dict(weights))
        )
    ]
    scheduler.run(lambda: all(boot.outcome is not None for boot in boots), BOOT_S)
    told = []
    for boot in boots:
        outcome = boot.outcome
        assert outcome is not None, "it ran until there was one"
        refused = tuple(str(one.reason) for one in outcome.refusals)
        node, why = (outcome.node, "") if isinstance(outcome, Booted) else ("", str(outcome.reason))
        told.append(Told(outcome.instance, node, why, outcome.conflicts, refused))
    return told
