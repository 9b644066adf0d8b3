"""The suite keeps its promises: `make test` covers each fault, no test compares seconds, a run prints its costs."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.run_cost import processor_seconds
from harness.waiting import PATIENCE_S, wait_until

ROOT = Path(__file__).parents[1]
FAULTS = ROOT / "docs" / "concepts" / "consistency.md"
TEST_ID = re.compile(r"`(tests/[\w/]+)\.py::([\w:]+)`")
FAULT_ROWS = [line for line in FAULTS.read_text(encoding="utf-8").splitlines() if TEST_ID.search(line)]


def fault_of(row: str) -> str:
    return row.strip("| ").partition("|")[0].strip()


def runs_in_make_test(module: str, name: str) -> bool:
    """True if at least one case of this test lacks the marker "thorough"."""
    holder: Any = importlib.import_module(module.replace("/", "."))
    marks = list(_marks_of(holder))
    for part in name.split("::"):
        holder = getattr(holder, part)
        marks += _marks_of(holder)
    if any(mark.name == "thorough" for mark in marks):
        return False
    cases = [mark.args[1] for mark in marks if mark.name == "parametrize"]
    return all(any(not _is_thorough(case) for case in of_one) for of_one in cases)


def _marks_of(holder: Any) -> Iterator[pytest.Mark]:
    marks = getattr(holder, "pytestmark", [])
    for mark in marks if isinstance(marks, list) else [marks]:
        yield getattr(mark, "mark", mark)


def _is_thorough(case: object) -> bool:
    return any(mark.name == "thorough" for mark in getattr(case, "marks", ()))


@pytest.mark.parametrize("row", FAULT_ROWS, ids=fault_of)
def test_make_test_covers_each_fault_of_the_table(row: str) -> None:
    """A fault whose only tests run in `make test-all` could break between two thorough runs without notice."""
    assert any(runs_in_make_test(module, name) for module, name in TEST_ID.findall(row)), row


CLOCKS = {"monotonic", "perf_counter"}
"""Functions of the module time. The clock of a simulated cell has a method of such a name: its seconds are exact."""


def wall_clock_comparisons(tree: ast.AST) -> Iterator[int]:
    """Yield the lines of assertions that subtract from the time of this machine, such as ``time.monotonic() -
    began``.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            for inner in ast.walk(node.test):
                if isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Sub) and _reads_clock(inner.left):
                    yield node.lineno


def _reads_clock(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in CLOCKS
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "time"
    )


OWN_CLOCKS = {"tests/contract/store.py"}
"""Compares the clock of a server with that of this machine: the time that passed here is the measure, not the limit."""


def test_no_test_asserts_how_long_something_takes() -> None:
    """A busy machine is slow. A test waits for a condition (`harness.waiting`) or asserts an order of events."""
    found = [
        f"{file.relative_to(ROOT)}:{line}"
        for folder in ("tests", "harness")
        for file in sorted((ROOT / folder).rglob("*.py"))
        if str(file.relative_to(ROOT)) not in OWN_CLOCKS
        for line in wall_clock_comparisons(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert found == []


def test_the_check_finds_an_assertion_on_seconds() -> None:
    code = (
        "began = time.monotonic()\nassert ok\nassert time.monotonic() - began < 5\nassert clock.monotonic() - began < 5"
    )
    assert list(wall_clock_comparisons(ast.parse(code))) == [3]


def test_the_cost_of_a_test_includes_its_child_processes() -> None:
    """A consumer or a server runs in a process of its own; without its time most fault tests would look cheap."""
    busy = [sys.executable, "-c", "while True: pass"]
    before = processor_seconds()
    with subprocess.Popen(busy) as process:  # noqa: S603 - a constant
        wait_until(lambda: processor_seconds() - before > 0.5, "the time of a running process does not count")
        process.kill()
        process.wait(PATIENCE_S)
    assert processor_seconds() - before > 0.5, "the time of a process that ended does not count"


def test_a_run_prints_its_dearest_tests_and_the_budget(tmp_path: Path) -> None:
    (tmp_path / "test_two.py").write_text("def test_one(): pass\ndef test_two(): pass\n")
    command = [sys.executable, "-m", "pytest", "-p", "harness.run_cost", "-q", str(tmp_path), "-p", "no:cacheprovider"]
    done = subprocess.run(  # noqa: S603 - our own plugin
        command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert "the 2 dearest of 2 tests" in done.stdout
    assert re.search(r"wall time of the run: \d+ s of \d+ s, (kept|EXCEEDED)", done.stdout)
