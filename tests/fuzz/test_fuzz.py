"""A slice of each fuzz target, and the command that runs all of them for as long as one likes."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.waiting import PATIENCE_S
from tests.fuzz import MIN_REACHED_SHARE, targets
from tests.fuzz.judge import TRACEBACK, judged_logs

ROOT = Path(__file__).parents[2]
TARGETS = targets()
INPUTS_COUNT = 40
"""Inputs of each target in the suite; `make fuzz` takes 200,000."""


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=INPUTS_COUNT, deadline=None)
@given(data=st.randoms(use_true_random=False))
def test_no_input_stops_the_product(name: str, data: Random) -> None:
    with judged_logs() as judge:
        TARGETS[name](data)
        judge.require_none()


def test_the_judge_finds_tracebacks_in_logs_and_threads_that_die() -> None:
    def fail() -> None:
        raise ValueError

    def log(logger: Any) -> None:
        try:
            fail()
        except ValueError:
            logger.exception("failed")

    causes = (
        lambda: log(structlog.get_logger("x")),
        lambda: log(logging.getLogger("x")),
        lambda: structlog.get_logger("x").warning("failed", reason=f"{TRACEBACK} …"),
        lambda: run_thread(fail),
    )
    with judged_logs() as judge:
        structlog.get_logger("x").warning("failed", reason="an error")
        judge.require_none()
        for cause in causes:
            cause()
            with pytest.raises(AssertionError):
                judge.require_none()


def run_thread(function: Callable[[], None]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


@pytest.mark.parametrize("name", TARGETS)
def test_most_inputs_reach_the_inside(name: str) -> None:
    """Random bytes fail at the outer checksum or envelope, and would test nothing else."""
    reached = [TARGETS[name](Random(f"{name}/{n}")) for n in range(INPUTS_COUNT)]
    assert sum(reached) >= MIN_REACHED_SHARE * len(reached)


def test_the_command_runs_the_chosen_target() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "wire", "--inputs", "20"]
    done = subprocess.run(  # noqa: S603 - our own command
        command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert "wire: 20 inputs" in done.stdout
