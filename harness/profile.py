"""How thorough a run of the tests is: one environment variable chooses the depth of every test that has two depths."""

from __future__ import annotations

import os
from typing import Final, TypeVar

from hypothesis import HealthCheck, settings

T = TypeVar("T")

FAST: Final = "fast"
THOROUGH: Final = "thorough"
VARIABLE: Final = "HYPOTHESIS_PROFILE"
PROFILE: Final = os.environ.get(VARIABLE, FAST)
"""The profile of this run: ``make test`` runs the fast one, ``make test-all`` the thorough one."""


def by_profile(fast: T, thorough: T) -> T:
    """Return the value for the profile of this run, such as the seconds for which faults are injected."""
    return thorough if PROFILE == THOROUGH else fast


def load_profiles() -> None:
    """Register Hypothesis' two profiles and load that of this run. No example has a deadline: the machine may be busy.

    The fast profile generates the same examples in every run, so a failure is due to the change and not to chance. The
    thorough profile searches for new examples.
    """
    settings.register_profile(FAST, max_examples=50, derandomize=True, deadline=None)
    settings.register_profile(
        THOROUGH,
        max_examples=2_000,
        stateful_step_count=100,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile(PROFILE)
