"""Run the command ``nodestate`` in a process of its own, as an operator does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from harness.processes import COMMAND, ModuleProcess, start_module
from harness.waiting import PATIENCE_S

STEPS_THAT_WAIT: Final = ("prepare", "cutover", "retire")
COMMAND_TIMEOUT_S: Final = PATIENCE_S + 60.0
"""Longer than a command waits, so that it can report its own timeout."""


def start_command(environment: Mapping[str, str], *words: str) -> ModuleProcess:
    """Start ``nodestate WORDS`` with these settings; the caller waits for it or kills it."""
    return start_module(COMMAND, words, environment)


def run_command(environment: Mapping[str, str], *words: str, code: int = 0) -> tuple[str, str]:
    """Run ``nodestate WORDS`` with these settings; it must exit with ``code``. Returns its stdout and its stderr."""
    with start_command(environment, *words) as process:
        out, err = (told.decode() for told in process.communicate(timeout=COMMAND_TIMEOUT_S))
    assert process.returncode == code, f"nodestate {' '.join(words)} exited with {process.returncode}: {out}{err}"
    return out, err


def run_design(environment: Mapping[str, str], *words: str, code: int = 0) -> Any:
    """Run ``nodestate design WORDS --json``; returns its result, or with a ``code`` other than 0 its error.

    A step that waits for consumers waits for as long as a test does, unless the words give another ``--timeout``.
    """
    patience = ["--timeout", f"{PATIENCE_S:g}"] if words[0] in STEPS_THAT_WAIT and "--timeout" not in words else []
    out, err = run_command(environment, "design", *words, *patience, "--json", code=code)
    return json.loads((err if code else out).splitlines()[-1])
