"""How differences between host states of nodestate and of the database are named."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from nodestate.integrations.nova.comparison import ATTRIBUTES, compare_host_states, count_by_kind

TIME = datetime(2026, 11, 30, 12, tzinfo=UTC)


def state(**attributes: Any) -> SimpleNamespace:
    """A host state, of which a test gives the attributes that matter."""
    plain: dict[str, Any] = {**dict.fromkeys(ATTRIBUTES), "instances": {}, "aggregates": [], "service": {"host": "c1"}}
    return SimpleNamespace(**{**plain, "host": "c1", "nodename": "c1", "updated": TIME, **attributes})


def test_equal_host_states_have_no_difference() -> None:
    numa = SimpleNamespace(obj_to_primitive=lambda: {"cells": [3, 1, 2], "nova_object.changes": ["cells"]})
    same = SimpleNamespace(obj_to_primitive=lambda: {"cells": [1, 2, 3]})
    aggregates = [SimpleNamespace(uuid="b"), SimpleNamespace(uuid="a")]
    ours = state(numa_topology=numa, aggregates=aggregates, service={"host": "c1", "report_count": 1})
    theirs = state(numa_topology=same, aggregates=aggregates[::-1], service={"host": "c1", "report_count": 7})
    assert compare_host_states([ours], [theirs]) == []


@pytest.mark.parametrize(
    ("ours", "theirs", "kind", "detail"),
    [
        ([], [state()], "missing", ""),
        ([state()], [], "redundant", ""),
        ([state(updated=TIME - timedelta(seconds=3))], [state()], "older", "3 s"),
        ([state(updated=TIME + timedelta(seconds=3))], [state()], "newer", "3 s"),
        ([state(updated=None)], [state()], "older", "the row as it was inserted"),
        ([state()], [state(updated=None)], "older", "another row"),
        ([state(vcpus_used=1)], [state(vcpus_used=2)], "other", "vcpus_used: 1 instead of 2"),
        ([state(vcpus_used=1)], [state(vcpus_used=1.0)], "other", "vcpus_used: 1 instead of 1.0"),
        ([state(instances={"a": 1})], [state()], "other", "instances: ['a'] instead of []"),
    ],
)
def test_each_difference_has_its_kind(ours: list[Any], theirs: list[Any], kind: str, detail: str) -> None:
    [found] = compare_host_states(ours, theirs)
    assert found == (kind, "c1", "c1", detail)
    assert count_by_kind([found]) == {kind: 1}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_each_attribute_that_is_missing_is_a_difference(name: str) -> None:
    """An attribute that the integration leaves out must not pass as equal."""
    ours = state()
    if name in ("host", "nodename"):
        setattr(ours, name, "another")
    else:
        delattr(ours, name) if name not in ("instances", "aggregates", "updated") else setattr(ours, name, {"x": 1})
    if name == "aggregates":
        ours.aggregates = [SimpleNamespace(uuid="x")]
    if name == "updated":
        ours.updated = None
    assert compare_host_states([ours], [state()])
