"""The explorer: a slice of each world in every run, and each fault that was fixed is found again without its fix."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from tests.explorer.fixes import FIXES, without
from tests.explorer.search import explore, judge_path, walk
from tests.explorer.worlds import COUNTEREXAMPLES, WORLDS

SLICE_STATES_COUNT = 60
"""States of each world that every run explores."""
SEARCH_STATES_COUNT = 200_000
"""Most states in which the search must find a fault again."""


@pytest.mark.parametrize("name", WORLDS)
def test_no_invariant_is_broken_in_the_first_states_of_a_world(name: str) -> None:
    with capture_logs():
        result = explore(WORLDS[name], max_states=SLICE_STATES_COUNT, settle_one_in=64)
        assert result.violations == []
        assert result.states_count >= SLICE_STATES_COUNT
        assert walk(WORLDS[name], seed=1, steps=15) is None


@pytest.mark.parametrize("fix", FIXES)
def test_a_fault_returns_if_its_fix_is_taken_out(fix: str) -> None:
    """Each counterexample is the shortest sequence that the search found before the fix."""
    world, path = COUNTEREXAMPLES[fix]
    with capture_logs():
        assert judge_path(WORLDS[world], path) is None
        with without(fix):
            violation = judge_path(WORLDS[world], path)
    assert violation is not None
    assert violation.path == path


@pytest.mark.thorough
@pytest.mark.parametrize("fix", FIXES)
def test_the_search_finds_a_fault_whose_fix_is_taken_out(fix: str) -> None:
    world, path = COUNTEREXAMPLES[fix]
    with capture_logs(), without(fix):
        result = explore(WORLDS[world], max_states=SEARCH_STATES_COUNT, workers=2)
    assert result.violations, f"not found in {result.states_count} states of depth {result.depth}"
    assert min(len(violation.path) for violation in result.violations) <= len(path)


def test_a_boot_whose_answer_is_late_succeeds_if_a_view_shows_it_before_its_instance_is_ended() -> None:
    path = ("s1 boots a", "s1", "answers are late", "12 s", "s2 evacuates a", "s1", "agents", "12 s", "answers arrive")
    with capture_logs():
        assert judge_path(WORLDS["late answers"], path, settle=True) is None


def test_the_same_choices_lead_to_the_same_state() -> None:
    """Also in another process and after a snapshot, or the search would merge states that differ."""
    make, choices = WORLDS["crashes"], ("A:pause", "event", "A: crash", "1 s", "B", "reader")
    digests = set()
    for _ in range(2):
        world = make()
        for choice in choices:
            world.take(choice)
        digests.add(world.fingerprint())
        world.close()
    assert len(digests) == 1
