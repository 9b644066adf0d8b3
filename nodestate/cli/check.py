"""``nodestate check``: do the designs agree with each other, and with the agents?"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import click

from nodestate.broker import collect_census
from nodestate.cli.command import SECONDS, Run, cell_command
from nodestate.cli.inspection import CellInspector, selected_designs
from nodestate.designs.comparison import (
    DIFFERENT,
    KINDS,
    MISSED,
    OLDER,
    Differences,
    Records,
    by_kind,
    differences,
    differences_from_agents,
    persisting,
)
from nodestate.errors import NodestateError
from nodestate.model import Version
from nodestate.ports import Resync
from nodestate.view.view import View

AGENTS: Final = "agents"
RETRY_INTERVAL_S: Final = 0.1
SHOWN_NAMES: Final = 8


class SilentAgentsError(NodestateError):
    """Raised when no agent answered a census: there is nothing to compare with."""

    kind: ClassVar[str] = "silent-agents"


@dataclass(slots=True)
class PairComparison:
    """One comparison: what is suspect of the ``right`` side, measured by the ``left``."""

    left: str
    right: str
    suspects: Differences


@dataclass(slots=True)
class Verdict:
    """All comparisons of a cell, of views by what to call their designs. ``unreadable``: by design, partitions that could not
    be read at all, and why.
    """

    views: Mapping[str, View]
    comparisons: list[PairComparison]
    unreadable: dict[str, dict[int, str]]
    census: Mapping[str, Version] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def agree(self) -> bool:
        """True if everything could be read and nothing differs."""
        return not any(comparison.suspects for comparison in self.comparisons) and not any(self.unreadable.values())


def compare(
    read: Callable[[], Mapping[str, View]],
    timeout: float,
    census: Mapping[str, Version] | None = None,
    states: Mapping[str, Mapping[str, Any]] | None = None,
) -> Verdict:
    """Read every design again and again, until nothing is suspect or ``timeout`` seconds are over.

    ``census`` and ``states``: what agents said of themselves before.
    """
    started = time.monotonic()
    verdict: Verdict | None = None
    while True:
        verdict = _look(read(), verdict, census or {}, states)
        verdict.seconds = time.monotonic() - started
        if verdict.agree or verdict.seconds >= timeout:
            return verdict
        time.sleep(RETRY_INTERVAL_S)


def _look(
    views: Mapping[str, View],
    before: Verdict | None,
    census: Mapping[str, Version],
    states: Mapping[str, Mapping[str, Any]] | None,
) -> Verdict:
    records: dict[str, Records] = {
        name: {record.name: record for record in view.nodes.records()} for name, view in views.items()
    }
    unreadable = {name: {p.partition: p.lost for p in view.partitions if p.lost} for name, view in views.items()}
    comparisons: list[PairComparison] = []
    earlier = iter(before.comparisons if before is not None else ())
    for (left, ours), (right, theirs) in itertools.combinations(records.items(), 2):
        suspects = differences(ours, theirs) if before is None else persisting(next(earlier).suspects, ours, theirs)
        comparisons.append(PairComparison(left, right, suspects))
    if census:
        comparisons += [
            PairComparison(AGENTS, name, differences_from_agents(census, have, states))
            for name, have in records.items()
        ]
    return Verdict(views, comparisons, unreadable, census)


@cell_command("check", example="nodestate check --agents 3 --json")
@click.option("--agents", type=SECONDS, metavar="S", help="Ask the agents too, and wait S seconds for their answers.")
@click.option(
    "--timeout", type=SECONDS, default=5.0, metavar="S", help="What differs for so long is a difference, not a delay."
)
def command(run: Run, agents: float | None, timeout: float) -> int:
    """Compare what the designs say of every node, read as schedulers read them. Exit code 0: no difference.

    Of two designs, the second has "missed" nodes, "redundant" ones, an "older" or "newer" version, or a "different"
    state of the same version. With --agents the designs are compared with what the agents say of themselves.
    """
    run.require_shared(broker=agents is not None, designs=run.config.designs)
    every = selected_designs(run.config, None)
    census = {}
    if agents is not None:
        census = collect_census(run.config, Resync(jitter_s=agents / 2), agents)
        if not census:
            raise SilentAgentsError(f"no agent of cell {run.config.cell} answered within {agents:g} s: are there any?")
    inspector = CellInspector(run.config, every)
    try:
        verdict = compare(inspector.views, timeout, census)
    finally:
        inspector.close()
    if run.as_json:
        run.print_json(as_json(verdict))
    else:
        show(run, verdict)
    return 0 if verdict.agree else 1


def as_json(verdict: Verdict) -> dict[str, object]:
    """A verdict for programs."""
    answer: dict[str, object] = {
        "agree": verdict.agree,
        "designs": {
            name: {
                "nodes": len(view.nodes),
                "age": view.age,
                "incomplete": sorted(view.incomplete),
                "unreadable": {str(number): why for number, why in verdict.unreadable[name].items()},
            }
            for name, view in verdict.views.items()
        },
        "pairs": [
            {"left": comparison.left, "right": comparison.right, **by_kind(comparison.suspects, _kinds(comparison))}
            for comparison in verdict.comparisons
        ],
        "seconds": round(verdict.seconds, 3),
    }
    if verdict.census:
        known = {record.name for view in verdict.views.values() for record in view.nodes.records() if record.live}
        answer["agents"] = {"answered": len(verdict.census), "silent": sorted(known - verdict.census.keys())}
    return answer


def show(run: Run, verdict: Verdict) -> None:
    """A verdict for people."""
    for name, view in verdict.views.items():
        age = f"{view.age:.1f} s old" if math.isfinite(view.age) else "never known to be caught up"
        run.out.print(f"{name}: {len(view.nodes):,} nodes, {age}, {len(view.incomplete):,} incomplete")
        unreadable = verdict.unreadable[name]
        if unreadable:
            number, why = next(iter(unreadable.items()))
            run.out.print(
                f"  [red]{len(unreadable)} partitions can't be read[/], as {number}: {why}; see 'nodestate doctor'"
            )
        if view.incomplete:
            run.out.print(f"  incomplete: {_names(sorted(view.incomplete))}", markup=False)
    readable = "" if not any(verdict.unreadable.values()) else " in what can be read"
    for comparison in verdict.comparisons:
        if not comparison.suspects:
            run.out.print(f"{comparison.left} and {comparison.right}: [green]no difference[/]{readable}")
            continue
        run.out.print(
            f"{comparison.right}, measured by {comparison.left}: [red]{len(comparison.suspects):,} differences[/]"
        )
        for kind, names in by_kind(comparison.suspects, _kinds(comparison)).items():
            if names:
                run.out.print(f"  {kind}: {len(names):,}: {_names(names)}", markup=False)
    if verdict.census:
        run.out.print(f"{len(verdict.census):,} agents answered")


def _kinds(comparison: PairComparison) -> tuple[str, ...]:
    return (MISSED, OLDER, DIFFERENT) if comparison.left == AGENTS else KINDS


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
