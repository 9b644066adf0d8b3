"""A pytest plugin that prints the cost of the dearest tests and compares the whole run with its budget.

The wall time of a test includes its fixtures; the first test that uses a server of the whole run pays for its start.
The processor time includes all child processes, such as servers and consumers, while they run. At the end of a run the
plugin prints the dearest tests, and compares the run with ``tests/budget.toml``. It never fails a run: seconds depend
on the machine, so a budget that is exceeded is a line to look at.
"""

from __future__ import annotations

import os
import time
import tomllib
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import pytest

BUDGET: Final = Path(__file__).parent.parent / "tests" / "budget.toml"
COST: Final = "cost"
"""Name of the report property that carries the cost of a test from a worker process to the main process."""
CPU_OF_WORKER: Final = "cpu_s"
DEAREST_COUNT: Final = 30
OVER_COUNT: Final = 10
"""How many of the tests that exceed the budget of one test are listed."""
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class TestCost:
    """Wall time and processor time of one test."""

    __test__ = False

    test: str
    wall_s: float
    cpu_s: float


def processor_seconds() -> float:
    """The processor time of this process and all its descendants, including ended ones."""
    return sum(os.times()[:4]) + sum(map(_ticks_of, _descendants(os.getpid()))) / _TICKS_PER_S


def _descendants(pid: int) -> Iterator[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # the process ended meanwhile, or this is not Linux
        return
    for child in children:
        yield child
        yield from _descendants(child)


def _ticks_of(pid: int) -> int:
    """User and system time of a process and of its children that ended, in clock ticks."""
    try:
        # The name of the program, in parentheses, may contain spaces: count the fields after it.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0
    return sum(map(int, fields[11:15]))


@dataclass(eq=False)  # pytest keeps plugins in sets, by identity
class CostRecorder:
    """Measures tests in the process that runs them, and collects the costs in the process that reports them."""

    began: float = field(default_factory=time.monotonic)
    """Start of the run, by this process's monotonic clock."""
    costs: list[TestCost] = field(default_factory=list)
    """Of the tests that have finished; complete in the main process only."""
    workers_cpu_s: float = 0.0
    """Processor time of the worker processes that have ended."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Note where a test begins."""
        item.stash[_BEGAN] = (time.monotonic(), processor_seconds())
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Add the cost of the test to its last report."""
        report = yield
        if call.when == "teardown":
            wall, cpu = item.stash[_BEGAN]
            report.user_properties.append((COST, (time.monotonic() - wall, processor_seconds() - cpu)))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect costs, wherever the test ran."""
        if report.when == "teardown":
            for name, value in report.user_properties:
                if name == COST:
                    wall_s, cpu_s = cast("tuple[float, float]", value)
                    self.costs.append(TestCost(report.nodeid, wall_s, cpu_s))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Report the processor time of this worker to the main process."""
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output[CPU_OF_WORKER] = processor_seconds()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Add up the processor time of the workers."""
        self.workers_cpu_s += getattr(node, "workeroutput", {}).get(CPU_OF_WORKER, 0.0)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the dearest tests and the budget."""
        if len(self.costs) > 1:
            wall_s = time.monotonic() - self.began
            own = os.times()
            cpu_s = (self.workers_cpu_s + own.user + own.system) if self.workers_cpu_s else processor_seconds()
            write_costs(terminalreporter, self.costs)
            write_budget(terminalreporter, self.costs, wall_s, cpu_s)


_BEGAN: Final = pytest.StashKey[tuple[float, float]]()


def write_costs(terminal: pytest.TerminalReporter, costs: list[TestCost]) -> None:
    """Print the dearest tests by wall time."""
    terminal.section(f"the {min(DEAREST_COUNT, len(costs))} dearest of {len(costs)} tests")
    terminal.write_line(f"{'wall':>8} {'CPU':>8}")
    for cost in sorted(costs, key=lambda cost: -cost.wall_s)[:DEAREST_COUNT]:
        terminal.write_line(f"{cost.wall_s:6.1f} s {cost.cpu_s:6.1f} s  {cost.test}")


def write_budget(terminal: pytest.TerminalReporter, costs: list[TestCost], wall_s: float, cpu_s: float) -> None:
    """Compare a run with the budget, which is for a run of ``make test``."""
    budget = tomllib.loads(BUDGET.read_text(encoding="utf-8"))
    run, test = budget["run"], budget["test"]
    terminal.section("budget of make test")
    for name, used, allowed in (("wall time", wall_s, run["wall_s"]), ("processor time", cpu_s, run["cpu_s"])):
        over = f"EXCEEDED by {used - allowed:.0f} s" if used > allowed else "kept"
        terminal.write_line(f"{name} of the run: {used:.0f} s of {allowed:.0f} s, {over}")
    dear = sorted((cost for cost in costs if cost.wall_s > test["wall_s"]), key=lambda cost: -cost.wall_s)
    terminal.write_line(f"tests over the budget of one test, {test['wall_s']:.0f} s of wall time: {len(dear)}")
    for cost in dear[:OVER_COUNT]:
        terminal.write_line(f"{cost.wall_s:6.1f} s  {cost.test}")


def pytest_configure(config: pytest.Config) -> None:
    """Register the recorder."""
    config.pluginmanager.register(CostRecorder(), "nodestate-run-cost")
