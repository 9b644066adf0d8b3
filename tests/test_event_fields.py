"""Fields and values of events: fields of later versions, amounts in other notations, and the words of refusals."""

from __future__ import annotations

import itertools
import string
from typing import Any, Final

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodestate.cli.publish import _without_bom
from nodestate.errors import BadEventError
from nodestate.model import MAX_FREE_DEPTH, Event, NodeRecord, event_from_json, fold, merge_patch, parse_event
from nodestate.model.orders import Build, End, decode_answer, decode_order

LIFE: Final = 1_763_787_600
LATER: Final = {"later": {"a": [1, None, "x"]}}
"""A field that this version does not know."""


def event(kind: str, generation: int, **more: Any) -> Event:
    fields = {"v": 1, "kind": kind, "node": "n1", "incarnation": LIFE, "generation": generation, "reported_at": 1.0}
    return parse_event(msgpack.packb({**fields, **more}))


def report(state: dict[str, Any], generation: int = 1) -> Event:
    return event("report", generation, state=state)


def folded(*events: Event) -> NodeRecord:
    record = None
    for one in events:
        record = fold(record, one).record
    assert record is not None
    return record


def refusal(one: dict[str, Any] | Event, record: NodeRecord | None = None) -> str:
    with pytest.raises(BadEventError) as caught:
        fold(record, one if isinstance(one, Event) else report(one))
    return caught.value.detail


# -- fields of later versions ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["report", "change", "heartbeat", "leave"])
def test_event_with_a_field_of_a_later_version_is_taken(kind: str) -> None:
    """A newer agent's field must not make its events dead letters."""
    content = {"report": {"state": {}}, "change": {"patch": {}}}.get(kind, {})
    assert event(kind, 2, **content, **LATER) == event(kind, 2, **content)


def test_a_huge_whole_float_in_a_field_of_a_later_version_is_kept() -> None:
    """Regression: msgpack cannot encode its integer, and the error ended every consumer of the partition."""
    inventory = {"VCPU": {"total": 8.0, "later": 1e300, "least": -1e300}}
    kept = {"VCPU": {"total": 8, "later": 1e300, "least": -1e300}}
    assert folded(report({"inventory": inventory})).state() == {"inventory": kept}
    assert folded(report({}), event("change", 2, patch={"inventory": inventory})).state() == {"inventory": kept}
    assert "usage of VCPU is 1e+300" in refusal({"usage": {"VCPU": 1e300}})


@pytest.mark.parametrize("error", [OverflowError, TypeError, KeyError, RecursionError])
def test_an_error_that_no_check_foresees_refuses_the_event(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """A consumer that ends at a message ends again after each restart."""

    def fail(_body: object) -> None:
        raise error("unforeseen")

    monkeypatch.setattr("nodestate.model.event_fold.normalize_state", fail)
    assert "unforeseen" in refusal({})


def test_fields_of_a_later_version_are_kept_in_the_state() -> None:
    """The owner of the field reads it back from a view, whichever version the consumer has."""
    state = {
        "zone": "z",
        "inventory": {"VCPU": {"total": 4, **LATER}},
        "usage": {"VCPU": 1},
        "allocations": {"vm": {"resources": {"VCPU": 1}, **LATER}},
        **LATER,
    }
    record = folded(report(state))
    assert record.state() == state
    patch = {"later": {"b": 1}, "allocations": {"vm": {"later": None}}, "inventory": {"VCPU": {"more": 1}}, "other": 2}
    assert folded(report(state), event("change", 2, patch=patch)).state() == merge_patch(
        msgspec.msgpack.decode(msgspec.msgpack.encode(state)), patch
    )


@given(
    count=st.sampled_from([0, 1, 5, 12, 13, 14, 15, 16, 17, 300]),
    parts=st.fixed_dictionaries({}, optional={"usage": st.just({"VCPU": 1}), "metrics": st.just({"m": 1.5})}),
)
def test_state_may_have_any_number_of_fields(count: int, parts: dict[str, Any]) -> None:
    """The header of the encoded state counts its fields, in one byte up to 15 and in three beyond."""
    state = {**{f"later{n}": n for n in range(count)}, **parts}
    record = folded(report(state))
    assert record.state() == msgpack.unpackb(record.body) == state


def test_state_with_more_fields_than_two_bytes_count_is_kept_whole() -> None:
    """The largest header of a map has five bytes."""
    names = ["".join(letters) for letters in itertools.product(string.ascii_letters, repeat=3)][:66_000]
    state: dict[str, Any] = dict.fromkeys(names[:40_000], 0)
    record = folded(report(state | {"usage": {"VCPU": 1}}))
    assert len(record.state()) == 40_001
    more: dict[str, Any] = dict.fromkeys(names[40_000:], 0)
    after = fold(record, event("change", 2, patch={**more, "usage": {"V": 1}})).record
    assert after is not None
    assert after.state() == state | more | {"usage": {"VCPU": 1, "V": 1}}


def test_order_with_a_field_of_a_later_version_is_carried_out_and_keeps_its_hints() -> None:
    """A newer scheduler's field is ignored; what must outlive the order stands in its hints."""
    fields = {"id": "o", "node": "n1", "instance": "vm", **LATER}
    build = decode_order(msgpack.packb({"kind": "build", **fields, "resources": {}, "deadline": 1.0, "hints": LATER}))
    assert isinstance(build, Build)
    assert build.hints == LATER
    assert isinstance(decode_order(msgpack.packb({"kind": "end", **fields})), End)


def test_answer_with_a_reason_of_a_later_version_is_a_failure_that_names_the_reason() -> None:
    """An unknown word must not make the answer vanish: the scheduler would wait for its time-out."""
    body = msgpack.packb({"id": "o", "node": "n1", "instance": "vm", "refused": "too-hot", "detail": "88 C", **LATER})
    answer = decode_answer(body)
    assert (answer.refused, answer.detail) == ("failed", "too-hot: 88 C")


# -- other notations ------------------------------------------------------------------------------


def test_whole_floats_are_integers() -> None:
    """Many languages have no integers in JSON."""
    line = b"""{"v":1.0,"kind":"report","node":"n1","incarnation":1763787600.0,"generation":1.0,"reported_at":1,
        "state":{"inventory":{"VCPU":{"total":8.0,"reserved":1.0,"allocation_ratio":2}},"usage":{"VCPU":4.0},
        "allocations":{"vm":{"resources":{"VCPU":4.0}}},"metrics":{"load":2.0}}}"""
    record = folded(parse_event(event_from_json(line.replace(b"\n", b""))))
    assert msgspec.json.encode(record.state()["inventory"]) == b'{"VCPU":{"total":8,"reserved":1,"allocation_ratio":2}}'
    assert msgspec.json.encode(record.state()["usage"]) == b'{"VCPU":4}'
    assert (
        record.columns
        == folded(report({"inventory": {"VCPU": {"total": 7, "allocation_ratio": 2.0}}, "usage": {"VCPU": 4}})).columns
    )
    after = fold(record, event("change", 2, patch={"usage": {"VCPU": 3.0}})).record
    assert after is not None
    assert msgspec.json.encode(after.state()["usage"]) == b'{"VCPU":3}'
    assert "want an integer" in refusal({"usage": {"VCPU": 1.5}})


def test_null_in_a_report_means_that_the_field_is_absent() -> None:
    """Serializers of other languages write absent fields as null."""
    state = {
        "zone": None,
        "traits": None,
        "later": None,
        "inventory": {"VCPU": {"total": 1, "reserved": None, "allocation_ratio": None}, "GPU": None},
        "usage": {"VCPU": None},
        "metrics": {"m": None},
        "allocations": {"vm": {"resources": {"VCPU": 1, "GPU": None}, "group": None, "hints": None}, "gone": None},
    }
    assert folded(report(state)).state() == {
        "inventory": {"VCPU": {"total": 1}},
        "usage": {},
        "metrics": {},
        "allocations": {"vm": {"resources": {"VCPU": 1}}},
    }


def test_inventory_of_placement_is_taken_as_it_is() -> None:
    """Its six fields, with the values that Placement gives to a host without settings."""
    placement = {
        "total": 16, "reserved": 0, "min_unit": 1, "max_unit": 16, "step_size": 1, "allocation_ratio": 16.0,
    }  # fmt: skip
    record = folded(report({"inventory": {"VCPU": placement}}))
    assert record.state()["inventory"] == {"VCPU": placement}
    after = fold(record, event("change", 2, patch={"inventory": {"VCPU": {"max_unit": 8, "step_size": None}}})).record
    assert after is not None
    assert after.state()["inventory"]["VCPU"]["max_unit"] == 8
    assert "max_unit of VCPU is 0" in refusal({"inventory": {"VCPU": {**placement, "max_unit": 0}}})


# -- the words of refusals ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"usage": {"VCPU": -1}}, ["n1", "usage of VCPU is -1", "unlimited", "integer from 0 to 281474976710656"]),
        ({"inventory": {"VCPU": {"total": -1}}}, ["n1", "total of VCPU is -1", "unlimited"]),
        ({"inventory": {"VCPU": {"total": 1, "max_unit": -1}}}, ["max_unit of VCPU is -1", "unlimited", "from 1 to"]),
        (
            {"inventory": {"VCPU": {"total": 1, "allocation_ratio": 0.0}}},
            ["allocation_ratio of VCPU is 0.0", "above 0"],
        ),
        ({"inventory": {"VCPU": {"reserved": 1}}}, ["n1", "inventory of VCPU has no total"]),
        ({"usage": {"vcpu": 1}}, ["n1", "'vcpu' is no resource class", "A to Z"]),
        ({"allocations": {"vm": {"resources": {"VCPU": "4"}}}}, ["n1", "allocation 'vm'", "VCPU is '4'"]),
        ({"allocations": {"vm": {}}}, ["n1", "allocation 'vm' has no resources"]),
        ({"status": "sleeping"}, ["n1", "'sleeping'", "up, draining, maintenance or down"]),
    ],
)
def test_refusal_of_a_state_names_node_class_and_allowed_values(state: dict[str, Any], words: list[str]) -> None:
    """The reader of a dead letter sees which number to change, and to what."""
    patch = state if "inventory" not in state or "total" in str(state) else {"inventory": {"VCPU": {"total": "x"}}}
    for detail in (refusal(state), refusal(event("change", 2, patch=patch), folded(report({})))):
        assert detail.startswith("n1: ")
    for word in words:
        assert word in refusal(state)


def test_refusal_of_an_envelope_names_the_node() -> None:
    """Otherwise a dead letter must be decoded by hand to find the agent."""
    with pytest.raises(BadEventError) as caught:
        event("heartbeat", 0)
    assert "n1" in caught.value.detail


@given(depth=st.integers(1, MAX_FREE_DEPTH + 4), where=st.sampled_from(["event", "state", "inventory", "allocation"]))
def test_field_of_a_later_version_nests_as_deep_as_hints_may(depth: int, where: str) -> None:
    """Each reader decodes the whole value, so its depth is limited at the way in."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    later = {"later": value}
    states: dict[str, dict[str, Any]] = {
        "event": {},
        "state": later,
        "inventory": {"inventory": {"VCPU": {"total": 1, **later}}},
        "allocation": {"allocations": {"vm": {"resources": {}, **later}}},
    }
    refused_for = ""
    try:
        fold(None, event("report", 1, state=states[where], **(later if where == "event" else {})))
    except BadEventError as error:
        refused_for = error.reason
    assert refused_for == ("too-deep" if depth > MAX_FREE_DEPTH + 1 else "")


# -- leaves of nodes with allocations -------------------------------------------------------------

FULL: Final = {
    "inventory": {"VCPU": {"total": 4}},
    "usage": {"VCPU": 1},
    "allocations": {"vm": {"resources": {"VCPU": 1}}},
}


def test_node_that_leaves_with_allocations_stays_down_until_they_are_gone() -> None:
    """Its instances may still run, so they can be evacuated, and their ids are not given again."""
    left = folded(report(FULL), event("leave", 2))
    assert (left.gone, left.live, left.status, left.version) == (False, True, "down", (LIFE, 2))
    assert left.state() == {**FULL, "status": "down", "namespaces": {"nodestate": {"left_at": 1.0}}}
    assert left.columns == folded(report(FULL)).columns
    for patch in ({"allocations": {"vm": None}}, {"allocations": None, "usage": None}):
        assert folded(report(FULL), event("leave", 2), event("change", 3, patch=patch)).gone
    again = folded(report(FULL), event("leave", 2), event("leave", 3))
    assert (again.gone, again.version) == (False, (LIFE, 3))
    back = folded(report(FULL), event("leave", 2), report({"usage": {}}, 3))
    assert (back.gone, back.status) == (False, "up")


@pytest.mark.parametrize("empty", [{}, {"allocations": {}}, {"allocations": None}])
def test_empty_node_that_leaves_is_gone(empty: dict[str, Any]) -> None:
    """Nothing runs there, so views need not show it."""
    assert folded(report({**FULL, "allocations": {}, **empty}), event("leave", 2)).gone
    assert folded(report(FULL), event("change", 2, patch={"allocations": None}), event("leave", 7)).gone


def test_node_that_is_down_and_ends_its_last_allocation_is_not_gone() -> None:
    """Only a node that has left before is gone then; an operator may have set this one to down."""
    down = folded(report({**FULL, "status": "down"}), event("change", 2, patch={"allocations": None}))
    assert (down.gone, down.live, down.status) == (False, True, "down")


def test_leave_after_a_lost_change_makes_a_node_with_allocations_incomplete() -> None:
    """The lost change may have begun or ended an allocation: the state must not pass for the last one (I5)."""
    before = folded(report(FULL))
    after = folded(report(FULL), event("leave", 3))
    assert (after.version, after.incomplete, after.body) == ((LIFE, 1), True, before.body)


# -- publish --------------------------------------------------------------------------------------


def test_publish_refuses_an_event_that_consumers_would_refuse_because_of_its_clock() -> None:
    """Its author sees the line, and no dead letter comes hours later."""
    fields = {"v": 1, "kind": "heartbeat", "node": "n1", "incarnation": LIFE, "generation": 1, "reported_at": LIFE}
    assert event_from_json(msgspec.json.encode(fields), LIFE) == event_from_json(msgspec.json.encode(fields))
    for wrong in ({"reported_at": 12.0}, {"reported_at": LIFE + 90_000.0}, {"incarnation": LIFE + 90_000}):
        with pytest.raises(BadEventError) as caught:
            event_from_json(msgspec.json.encode({**fields, **wrong}), LIFE)
        assert (caught.value.reason, caught.value.detail[:4]) == ("clock", "n1: ")


def test_publish_ignores_a_byte_order_mark() -> None:
    """Editors on Windows write one at the beginning of a file, and JSON does not allow it."""
    assert list(_without_bom([b"\xef\xbb\xbf{}\n", b"\xef\xbb\xbf\n"])) == [b"{}\n", b"\xef\xbb\xbf\n"]
    assert list(_without_bom([])) == []
