"""Plug-ins: filters and weighers of installed packages are found by entry points, and refused by name if invalid."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from nodestate import Reader
from nodestate.config import load
from nodestate.errors import ConfigError
from nodestate.scheduling import Scheduler
from nodestate.scheduling.selection import Selector
from nodestate.scheduling.selection.filters import FILTERS
from nodestate.scheduling.selection.plugins import installed, own
from nodestate.scheduling.selection.weighers import WEIGHERS, Weigher
from nodestate.store.round_trips import Stores
from nodestate.testing import MemoryStore
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


def test_installed_filter_and_weigher_take_part_in_decisions(install: Install) -> None:
    """A cloud's own rule is a function in a package of its own. A request may set the weigher's multiplier by name."""
    install("[nodestate.filters]\nodd = plugged_for_test:odd\n[nodestate.weighers]\nfar = plugged_for_test:strong\n")
    policies = installed()
    assert list(policies.filters) == [*FILTERS, "odd"]
    assert list(policies.weighers) == [*WEIGHERS, "far"]
    selector = Selector(fleet_of(*(host(f"n{n}") for n in range(6))), policies, 1)
    assert chosen(selector, asked(1)) == ["n5"]
    assert chosen(selector, asked(1, weights={"far": -100.0})) == ["n1"]
    assert {step.filter: step.nodes for step in selector.remaining(asked(1))}["odd"] == 3


def test_plain_function_becomes_a_weigher_of_multiplier_1(install: Install) -> None:
    """This is the shortest way to write a weigher."""
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
def test_invalid_entry_point_is_refused_by_name(install: Install, entry_points: str, named: str) -> None:
    """A scheduler that does not start is better than a rule that silently does not hold. An entry point cannot replace
    a policy of nodestate.
    """
    install(entry_points)
    with pytest.raises(ConfigError, match=named):
        installed()


def test_changes_of_one_schedulers_policies_do_not_affect_another() -> None:
    """Each scheduler has its own copy."""
    policies = own()
    del policies.filters["status"]
    policies.weighers["mine"] = Weigher(lambda *_: 0.0)
    assert own().filters == FILTERS
    assert own().weighers == WEIGHERS


def test_plug_ins_of_packages_that_the_setting_does_not_name_are_not_run(install: Install) -> None:
    """Importing a module runs its code. A warning names the filters, because nodes that they exclude may be used."""
    install("[nodestate.filters]\nodd = plugged_for_test:odd\n[nodestate.weighers]\nfar = plugged_for_test:far\n")
    with capture_logs() as logs:
        policies = installed([])
    assert (policies.filters, policies.weighers) == (FILTERS, WEIGHERS)
    assert "plugged_for_test" not in sys.modules
    [warning] = [each for each in logs if each["package"] == "plugged-for-test"]
    assert warning["names"] == ["odd", "far"]
    assert "the setting plugins" in warning["event"]
    assert installed(["Plugged.for_test"]).filters.keys() - FILTERS.keys() == {"odd"}


def test_a_missing_package_of_the_setting_is_an_error() -> None:
    """Without its filters, instances would get nodes that the operator excluded."""
    with pytest.raises(ConfigError, match="setting plugins names 'night-shift', but no installed package"):
        installed(["night-shift"])


def test_a_scheduler_loads_the_plug_ins_of_its_settings(install: Install) -> None:
    install("[nodestate.filters]\nodd = plugged_for_test:odd\n")

    def last_filter(plugins: str) -> str:
        config = load({"plugins": plugins}, environ={})
        scheduler = Scheduler(config, reader=Reader(config, stores=Stores([MemoryStore()])), claims=[MemoryStore()])
        return list(scheduler.selector.policies.filters)[-1]

    assert (last_filter("*"), last_filter("plugged-for-test")) == ("odd", "odd")
    assert last_filter(",") == list(FILTERS)[-1]
