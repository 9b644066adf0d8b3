"""Comparison of two views: they differ only where a delay cannot explain it."""

from __future__ import annotations

import msgspec
import pytest

from nodestate.designs.comparison import by_kind, differences, differences_from_agents, persisting
from nodestate.model import NodeRecord, Report, Version, fold


def record(name: str, generation: int, *, usage: int = 0, gone: bool = False) -> NodeRecord:
    state = msgspec.Raw(msgspec.msgpack.encode({"inventory": {"VCPU": {"total": 8}}, "usage": {"VCPU": usage}}))
    event = Report(node=name, incarnation=1_700_000_000, generation=generation, reported_at=1.7e9, state=state)
    folded = fold(None, event).record
    assert folded is not None
    if not gone:
        return folded
    return msgspec.structs.replace(
        folded, gone=True, status="down", classes="", columns=b"", usage=b"", metrics=b"", rest=b""
    )


def only_seen(name: str) -> NodeRecord:
    """A node of which a change arrived, and no report yet."""
    return NodeRecord(name, 0, 0, 1_700_000_000, 5, 1.7e9, False, "down", "", b"", b"", b"", b"")


def records(*some: NodeRecord) -> dict[str, NodeRecord]:
    return {one.name: one for one in some}


def version(generation: int) -> Version:
    return Version(1_700_000_000, generation)


NOTHING: dict[str, list[str]] = {"missed": [], "redundant": [], "older": [], "newer": [], "different": []}


@pytest.mark.parametrize(
    ("left", "right", "kind"),
    [
        (record("a", 2), None, "missed"),
        (None, record("a", 2), "redundant"),
        (record("a", 2), only_seen("a"), "missed"),
        (record("a", 3), record("a", 2), "older"),
        (record("a", 2), record("a", 3), "newer"),
        (record("a", 2), record("a", 3, gone=True), "newer"),
        (record("a", 2, usage=1), record("a", 2, usage=2), "different"),
        (record("a", 2), record("a", 2, gone=True), "different"),
    ],
)
def test_each_kind_of_difference_is_named(left: NodeRecord | None, right: NodeRecord | None, kind: str) -> None:
    found = differences({"a": left} if left else {}, {"a": right} if right else {})
    assert by_kind(found) == NOTHING | {kind: ["a"]}


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (record("a", 2), record("a", 2)),
        (record("a", 2, gone=True), None),
        (None, record("a", 2, gone=True)),
        (only_seen("a"), None),
    ],
)
def test_nodes_that_look_the_same_to_a_scheduler_do_not_differ(
    left: NodeRecord | None, right: NodeRecord | None
) -> None:
    assert differences({"a": left} if left else {}, {"a": right} if right else {}) == {}


def test_order_of_keys_in_a_state_is_no_difference() -> None:
    """msgpack keeps the order in which a map was built, which depends on the order of events."""
    one = msgspec.structs.replace(record("a", 2), rest=msgspec.msgpack.encode({"status": "up", "zone": "a"}))
    fields = msgspec.msgpack.decode(one.rest)
    other = msgspec.structs.replace(one, rest=msgspec.msgpack.encode(dict(reversed(fields.items()))))
    assert one.body != other.body
    assert differences(records(one), records(other)) == {}


class TestPersisting:
    """Views are read one after the other while events arrive."""

    def test_side_that_reaches_the_version_of_the_other_is_cleared(self) -> None:
        suspects = differences(records(record("a", 7)), records(record("a", 5)))
        assert suspects["a"].kind == "older"

        assert persisting(suspects, records(record("a", 9)), records(record("a", 7))) == {}

    def test_side_that_stays_behind_stays_suspect(self) -> None:
        suspects = differences(records(record("a", 7)), records(record("a", 5)))

        for newest in (8, 9, 10):
            suspects = persisting(suspects, records(record("a", newest)), records(record("a", 6)))
            assert by_kind(suspects)["older"] == ["a"]

    def test_same_version_with_another_state_is_never_a_delay(self) -> None:
        """Even if both sides advanced: a version names one state for ever."""
        suspects = differences(records(record("a", 5, usage=1)), records(record("a", 5, usage=2)))

        suspects = persisting(suspects, records(record("a", 9)), records(record("a", 8)))
        assert list(suspects) == ["a"]
        assert persisting(suspects, records(record("a", 9)), records(record("a", 9))) == {}

    def test_side_that_catches_up_with_another_state_stays_suspect(self) -> None:
        suspects = differences(records(record("a", 7)), records(record("a", 5)))

        suspects = persisting(suspects, records(record("a", 7, usage=1)), records(record("a", 7, usage=2)))
        assert by_kind(suspects)["different"] == ["a"]

    def test_new_difference_is_left_to_a_later_comparison(self) -> None:
        suspects = differences(records(record("a", 7)), records(record("a", 5)))

        left, right = records(record("a", 7), record("b", 2)), records(record("a", 7))
        assert persisting(suspects, left, right) == {}

    def test_node_that_leaves_meanwhile_is_cleared(self) -> None:
        suspects = differences(records(record("a", 7)), {})
        assert suspects["a"].kind == "missed"

        gone = record("a", 8, gone=True)
        assert persisting(suspects, records(gone), records(gone)) == {}


class TestAgents:
    def test_view_must_be_as_new_as_the_census_before_it(self) -> None:
        census = {"a": version(5), "b": version(5), "c": version(5), "d": version(1)}
        view = records(record("a", 5), record("b", 6), record("c", 4))

        found = differences_from_agents(census, view)

        assert by_kind(found) == NOTHING | {"missed": ["d"], "older": ["c"]}

    def test_node_whose_agent_did_not_answer_is_not_compared(self) -> None:
        assert differences_from_agents({}, records(record("a", 5))) == {}

    def test_states_of_agents_are_compared_with_the_view(self) -> None:
        view = records(record("a", 5, usage=1), record("b", 5, usage=1))
        census = {"a": version(5), "b": version(5)}

        found = differences_from_agents(census, view, {"a": view["a"].state(), "b": record("b", 5, usage=2).state()})

        assert by_kind(found) == NOTHING | {"different": ["b"]}
