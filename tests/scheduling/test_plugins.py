"""Plug-ins: filters and weighers of installed packages, found by entry point; what does not fit is refused by name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nodestate.errors import ConfigError
from nodestate.scheduling.selection import Selector
from nodestate.scheduling.selection.filters import FILTERS
from nodestate.scheduling.selection.plugins import installed, own
from nodestate.scheduling.selection.weighers import WEIGHERS, Weigher
from tests.scheduling.fleets import asked, chosen, fleet_of, host

MODULE = """
import numpy as np
from nodestate.scheduling.selection.weighers import Weigher

number = 3
def odd(fleet, rows, request):
    return np.array([int(name[1:]) % 2 == 1 for name in fleet.names])[rows]
def far(fleet, rows, request):
    return np.array([int(name[1:]) / 10 for name in fleet.names])[rows]
strong = Weigher(far, 100.0)
"""

Install = Callable[[str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package with these entry points."""

    def put(entry_points: str) -> None:
        (tmp_path / "plugged_for_test.py").write_text(MODULE)
        metadata = tmp_path / "plugged_for_test-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged-for-test\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(entry_points)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "plugged_for_test", raising=False)

    return put


def test_a_plugged_in_filter_and_weigher_decide_with_ours(install: Install) -> None:
    """A cloud's own rule is a function in a package of its own; a request may set its multiplier by name."""
    install("[nodestate.filters]\nodd = plugged_for_test:odd\n[nodestate.weighers]\nfar = plugged_for_test:strong\n")
    policies = installed()
    assert list(policies.filters) == [*FILTERS, "odd"]
    assert list(policies.weighers) == [*WEIGHERS, "far"]
    selector = Selector(fleet_of(*(host(f"n{n}") for n in range(6))), policies, 1)
    assert chosen(selector, asked(1)) == ["n5"]
    assert chosen(selector, asked(1, weights={"far": -100.0})) == ["n1"]
    assert {step.filter: step.nodes for step in selector.remaining(asked(1))}["odd"] == 3


def test_a_plain_function_is_a_weigher_of_multiplier_1(install: Install) -> None:
    """The least that there is to write."""
    install("[nodestate.weighers]\nfar = plugged_for_test:far\n")
    assert installed().weighers["far"].multiplier == Weigher(lambda *_: 0.0).multiplier == 1.0


@pytest.mark.parametrize(
    ("entry_points", "named"),
    [
        ("[nodestate.filters]\nodd = plugged_for_test:even\n", "'odd'"),
        ("[nodestate.filters]\nodd = plugged_nowhere:odd\n", "'odd'"),
        ("[nodestate.filters]\nstatus = plugged_for_test:odd\n", "'status'"),
        ("[nodestate.filters]\nodd = plugged_for_test:number\n", "'odd'"),
        ("[nodestate.weighers]\nfar = plugged_for_test:number\n", "'far'"),
        ("[nodestate.weighers]\ncpu = plugged_for_test:far\n", "'cpu'"),
    ],
)
def test_an_entry_point_that_does_not_fit_is_refused_by_name(install: Install, entry_points: str, named: str) -> None:
    """A rule that silently does not hold is worse than a scheduler that does not start; and none takes the place of ours."""
    install(entry_points)
    with pytest.raises(ConfigError, match=named):
        installed()


def test_what_is_plugged_in_changes_nobody_else_s_policies() -> None:
    """Each scheduler has its own."""
    policies = own()
    del policies.filters["status"]
    policies.weighers["mine"] = Weigher(lambda *_: 0.0)
    assert own().filters == FILTERS
    assert own().weighers == WEIGHERS
