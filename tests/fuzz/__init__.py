"""Fuzz tests: generated inputs that no process of the cell may stop at. ``python -m tests.fuzz`` runs them.

A target is a module ``target_NAME.py`` in this folder with ``def run(data: Random) -> bool``. One call makes one input
from ``data``, gives it to the product, and checks the invariants afterwards. It returns True if the input passed the
outer checksum or envelope, so that the inside was reached; at least half of the inputs must. An exception is a failure,
so a target catches only the product's own errors that are allowed.

In the suite (test_fuzz.py) Hypothesis draws ``data`` and shrinks failures. The command uses ``Random("NAME/N")`` for
input N: ``python -m tests.fuzz NAME --first N --inputs 1`` repeats that input alone. A target may keep costly objects,
such as valid values, in a module constant or a cached function; an input must not depend on the inputs before.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final

Target = Callable[[Random], bool]

PREFIX: Final = "target_"
MIN_REACHED_SHARE: Final = 0.5
"""The least share of inputs that must pass the outer checksum or envelope."""


def targets() -> dict[str, Target]:
    """All targets by name, from the modules of this folder."""
    modules = sorted(Path(__file__).parent.glob(f"{PREFIX}*.py"))
    return {
        module.stem.removeprefix(PREFIX): importlib.import_module(f"{__name__}.{module.stem}").run for module in modules
    }
