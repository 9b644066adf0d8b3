"""The command ``check``: compare the designs with each other and with reports of the agents."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import click

from nodestate.broker import collect_census
from nodestate.cli.command import SECONDS, Run, cell_command
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
from nodestate.designs.inspection import CellInspector, selected_designs
from nodestate.errors import NodestateError
from nodestate.model import Version
from nodestate.model.partitioning import partition_of
from nodestate.ports import Resync
from nodestate.text import age_text, count_text
from nodestate.view.view import View

AGENTS: Final = "agents"
"""Name of the agents as the left side of a comparison."""
RETRY_INTERVAL_S: Final = 0.1
"""Time between two comparisons of the same designs."""
SHOWN_NAMES: Final = 8
"""Names of nodes that a line shows at most."""


class SilentAgentsError(NodestateError):
    """Raised when no agent answered, so that there is nothing to compare the designs with."""

    kind: ClassVar[str] = "silent-agents"


@dataclass(slots=True)
class PairComparison:
    """Comparison of one design with another, or with the agents."""

    left: str
    """Name of the design that is taken as right, or ``AGENTS``."""
    right: str
    """Name of the design that is compared with it."""
    suspects: Differences
    """Nodes whose state differs, and how the right side differs from the left.

    A side lacks all nodes of a partition that it could not read; ``Verdict.found`` leaves these nodes out.
    """


@dataclass(slots=True)
class Verdict:
    """Result of all comparisons of a cell."""

    views: Mapping[str, View]
    """The views that were compared, by name of the design."""
    comparisons: list[PairComparison]
    """One for each pair of designs, then one of each design with the agents."""
    unreadable: dict[str, dict[int, str]]
    """By design, the partitions that could not be read at all, and why."""
    census: Mapping[str, Version] = field(default_factory=dict)
    """Version of each node whose agent answered; empty if agents were not asked."""
    seconds: float = 0.0
    """How long the comparison took."""

    def found(self, comparison: PairComparison) -> Differences:
        """Return the differences of a comparison in partitions that could be read on both sides."""
        sides = [
            (self.views[one], self.unreadable[one]) for one in (comparison.left, comparison.right) if one in self.views
        ]
        return {
            node: difference
            for node, difference in comparison.suspects.items()
            if not any(partition_of(node, len(view.partitions)) in lost for view, lost in sides)
        }

    @property
    def agree(self) -> bool:
        """True if all partitions could be read and no node differs."""
        return not any(comparison.suspects for comparison in self.comparisons) and not any(self.unreadable.values())


def compare(
    read: Callable[[], Mapping[str, View]],
    timeout: float,
    census: Mapping[str, Version] | None = None,
    states: Mapping[str, Mapping[str, Any]] | None = None,
) -> Verdict:
    """Compare the designs repeatedly until they agree or the time is over, and return the last result.

    A node that is written while the designs are read differs for a moment. Only nodes that differ in every comparison
    are reported.

    Args:
        read: Returns a view of each design, by name.
        timeout: Seconds for which a node must differ to be reported.
        census: Version of each node, as its agent reported it; None: do not compare with agents.
        states: State of each node, as its agent reported it; None: compare versions only.
    """
    started = time.monotonic()
    verdict: Verdict | None = None
    while True:
        verdict = _compare_once(read(), verdict, census or {}, states)
        verdict.seconds = time.monotonic() - started
        if verdict.agree or verdict.seconds >= timeout:
            return verdict
        time.sleep(RETRY_INTERVAL_S)


def _compare_once(
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
@click.option(
    "--agents",
    type=SECONDS,
    metavar="S",
    help="Compare with the agents as well: ask all of them, and wait S seconds for answers.",
    show_default="do not ask",
)
@click.option(
    "--timeout",
    type=SECONDS,
    default=5.0,
    metavar="S",
    help="Report a difference only if it persists for S seconds; shorter ones are replication delay.",
)
def command(run: Run, agents: float | None, timeout: float) -> int:
    """Compare the designs of the cell node by node. Exit code 0 if there is no difference, else 1.

    Each design is read as a scheduler reads it. Of two designs, the second one may lack nodes ("missed"), have nodes
    that the first one lacks ("redundant"), have an "older" or a "newer" version of a node, or have a "different" state
    of the same version. With --agents, each design is compared with the agents as well.
    """
    run.require_shared(broker=agents is not None, designs=run.config.designs)
    designs = selected_designs(run.config, None)
    census = {}
    if agents is not None:
        census = collect_census(run.config, Resync(jitter_s=agents / 2), agents)
        if not census:
            raise SilentAgentsError(
                f"no agent of cell {run.config.cell} answered within {agents:g} s: start 'nodestate agent' on the "
                "nodes, or give --agents more seconds"
            )
    inspector = CellInspector(run.config, designs)
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
    """Return a verdict in the form that ``--json`` prints."""
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
            {
                "left": comparison.left,
                "right": comparison.right,
                **by_kind(verdict.found(comparison), _kinds(comparison)),
            }
            for comparison in verdict.comparisons
        ],
        "seconds": round(verdict.seconds, 3),
    }
    if verdict.census:
        known = {record.name for view in verdict.views.values() for record in view.nodes.records() if record.live}
        answer["agents"] = {"answered": len(verdict.census), "silent": sorted(known - verdict.census.keys())}
    return answer


def show(run: Run, verdict: Verdict) -> None:
    """Print a verdict for people."""
    for name, view in verdict.views.items():
        nodes = count_text(len(view.nodes), "node")
        unreadable = verdict.unreadable[name]
        age = f"{age_text(view.age)}, " if not unreadable else ""  # a partition that can't be read has no age
        run.out.print(f"{name}: {nodes}, {age}{len(view.incomplete):,} incomplete")
        if unreadable:
            number, why = next(iter(unreadable.items()))
            run.out.print(
                f"  [red]{count_text(len(unreadable), 'partition')} can't be read[/], for example {number}: {why}; "
                "run 'nodestate doctor'"
            )
        if view.incomplete:
            run.out.print(f"  incomplete: {_names(sorted(view.incomplete))}", markup=False)
    readable = "" if not any(verdict.unreadable.values()) else " in the partitions that can be read"
    for comparison in verdict.comparisons:
        found = verdict.found(comparison)
        if not found:
            run.out.print(f"{comparison.left} and {comparison.right}: [green]no difference[/]{readable}")
            continue
        run.out.print(
            f"{comparison.right}, compared with {comparison.left}: "
            f"[red]{count_text(len(found), 'difference')}[/]{readable}"
        )
        for kind, names in by_kind(found, _kinds(comparison)).items():
            if names:
                run.out.print(f"  {kind}: {len(names):,}: {_names(names)}", markup=False)
    if verdict.census:
        run.out.print(f"{count_text(len(verdict.census), 'agent')} answered")


def _kinds(comparison: PairComparison) -> tuple[str, ...]:
    return (MISSED, OLDER, DIFFERENT) if comparison.left == AGENTS else KINDS


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
