"""Events and the fold: every transition of the state machine, every limit, and malformed input."""

from __future__ import annotations

import itertools
import math
import struct
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodestate.errors import BadEventError
from nodestate.model import (
    MAX_AMOUNT,
    MAX_CLASSES_COUNT,
    MAX_COUNTER,
    MAX_EVENT_BYTES,
    MAX_FREE_DEPTH,
    MAX_METRICS_COUNT,
    MAX_RATIO,
    MAX_STATE_BYTES,
    MAX_TRAITS_COUNT,
    NEVER,
    Event,
    Folded,
    FoldOutcome,
    NodeRecord,
    Version,
    columns_of,
    event_from_json,
    fold,
    merge_patch,
    parse_event,
    parse_state,
)
from tests.machines.simulated_cell import has_left

LIFE = 1_763_787_600
STATE: dict[str, Any] = {
    "status": "up",
    "inventory": {"VCPU": {"total": 64, "reserved": 2, "allocation_ratio": 16.0}, "DISK_GB": {"total": 100}},
    "usage": {"VCPU": 12},
}
LEFT: dict[str, Any] = {"nodestate": {"left_at": 1.0}}


def event(kind: str, generation: int, *, incarnation: int = LIFE, at: float = 1.0, **more: Any) -> Event:
    fields = {
        "v": 1,
        "kind": kind,
        "node": "n",
        "incarnation": incarnation,
        "generation": generation,
        "reported_at": at,
    }
    return parse_event(msgpack.packb({**fields, **more}))


def report(generation: int, state: dict[str, Any] | None = None, **more: Any) -> Event:
    return event("report", generation, state=STATE if state is None else state, **more)


def change(generation: int, patch: dict[str, Any], **more: Any) -> Event:
    return event("change", generation, patch=patch, **more)


def folded(*events: Event) -> NodeRecord:
    record = None
    for one in events:
        record = fold(record, one).record
    assert record is not None
    return record


def refused(reason: str, record: NodeRecord | None, one: Event) -> None:
    with pytest.raises(BadEventError) as caught:
        fold(record, one)
    assert caught.value.reason == reason


# -- the state machine, row by row ----------------------------------------------------------------


def test_a_report_of_an_unknown_node_makes_it_live() -> None:
    """The first transition: the record has everything that a scheduler needs, and the state is the one that the agent
    sent.
    """
    record, outcome = fold(None, report(1, at=7.5))
    assert outcome is FoldOutcome.APPLIED
    assert record == NodeRecord(
        name="n",
        incarnation=LIFE,
        generation=1,
        wanted_incarnation=LIFE,
        wanted_generation=1,
        reported_at=7.5,
        gone=False,
        status="up",
        classes="DISK_GB VCPU",
        columns=struct.pack("<4q", 100, 992, 0, 12),
        usage=msgpack.packb(STATE["usage"]),
        metrics=b"",
        rest=msgpack.packb({name: value for name, value in STATE.items() if name != "usage"}),
    )
    assert msgpack.unpackb(record.body) == STATE
    assert (record.live, record.incomplete) == (True, False)


@pytest.mark.parametrize("kind", ["change", "heartbeat"])
def test_change_or_heartbeat_of_an_unknown_node_makes_it_incomplete_without_a_state(kind: str) -> None:
    """A node that is heard of but not known must be asked for, and must not be scheduled on."""
    record, outcome = fold(None, event(kind, 3, **({"patch": {}} if kind == "change" else {})))
    assert outcome is FoldOutcome.GAP
    assert record is not None
    assert (record.version, record.wanted, record.live, record.incomplete) == (NEVER, (LIFE, 3), False, True)


def test_leave_of_an_unknown_node_leaves_a_tombstone() -> None:
    """A redelivered report of the node may still arrive, and must not bring the node back."""
    record = folded(event("leave", 5))
    assert (record.gone, record.live, record.status, record.body) == (True, False, "down", b"")
    assert fold(record, report(4)) == Folded(record, FoldOutcome.DUPLICATE)


def test_change_applies_to_exactly_its_predecessor() -> None:
    """The most frequent transition."""
    record = folded(report(1), change(2, {"usage": {"VCPU": 16}, "status": "draining"}))
    assert record.version == (LIFE, 2)
    assert record.state() == {**STATE, "usage": {"VCPU": 16}, "status": "draining"}
    assert (record.status, record.columns) == ("draining", struct.pack("<4q", 100, 992, 0, 16))


@pytest.mark.parametrize(
    "later",
    [change(3, {"usage": {"VCPU": 1}}), event("heartbeat", 2), change(2, {}, incarnation=LIFE + 1)],
    ids=["a change too far", "a heartbeat ahead", "a change of a later life"],
)
def test_event_of_a_later_version_makes_the_record_incomplete(later: Event) -> None:
    """The record keeps its last whole state and is marked incomplete: old state never looks fresh (I5)."""
    before = folded(report(1))
    record, outcome = fold(before, later)
    assert outcome is FoldOutcome.GAP
    assert record is not None
    assert (record.version, record.wanted, record.body) == ((LIFE, 1), later.version, before.body)
    assert record.incomplete


def test_report_closes_a_gap_only_if_it_is_as_new_as_the_newest_known_version() -> None:
    """A late report in between is progress, but a newer version is still missing."""
    gap = folded(report(1), change(5, {}))
    records = [fold(gap, report(n)).record for n in (3, 5, 6)]
    assert [record.incomplete for record in records] == [True, False, False]  # type: ignore[union-attr]


def test_late_changes_close_a_gap_if_they_are_applied_in_order() -> None:
    """Two messages that swapped places need no resync once both have arrived and the second arrives again."""
    record = folded(report(1), change(3, {"zone": "b"}), change(2, {"zone": "a"}))
    assert (record.version, record.incomplete) == ((LIFE, 2), True)
    record = folded(report(1), change(3, {"zone": "b"}), change(2, {"zone": "a"}), change(3, {"zone": "b"}))
    assert (record.version, record.incomplete, record.state()["zone"]) == ((LIFE, 3), False, "b")


@pytest.mark.parametrize(
    "old", [report(2), change(2, {"usage": {}}), event("leave", 2), report(9, incarnation=LIFE - 1)]
)
def test_event_that_is_not_newer_changes_nothing(old: Event) -> None:
    """Redelivery is normal after any crash, and events of an earlier incarnation have no effect."""
    record = folded(report(2, {"zone": "new"}))
    assert fold(record, old) == Folded(record, FoldOutcome.DUPLICATE)


def test_heartbeat_of_the_current_version_is_a_sign_of_life_and_no_change() -> None:
    """Heartbeats are by far the most frequent events, so they must not cause a write each."""
    record = folded(report(2))
    again = fold(record, event("heartbeat", 2, at=99.0))
    assert again.outcome is FoldOutcome.ALIVE
    assert again.record is record


def test_later_incarnation_wins_with_any_generation() -> None:
    """Versions are ordered by incarnation first: an agent that restarts begins at generation 1."""
    record = folded(report(900), report(1, {"zone": "z"}, incarnation=LIFE + 1))
    assert (record.version, record.state()) == ((LIFE + 1, 1), {"zone": "z"})


def test_node_that_left_comes_back_only_by_a_report() -> None:
    """A change has no state to apply to, and a heartbeat of a tombstone proves nothing."""
    gone = folded(report(1), event("leave", 2))
    assert (gone.gone, gone.live, gone.columns, gone.classes) == (True, False, b"", "")
    assert fold(gone, event("heartbeat", 2)) == Folded(gone, FoldOutcome.DUPLICATE)
    after_change = fold(gone, change(3, {"zone": "a"})).record
    assert after_change is not None
    assert (after_change.gone, after_change.incomplete) == (True, True)
    back = folded(report(1), event("leave", 2), report(3))
    assert (back.gone, back.live, back.incomplete) == (False, True, False)


# -- RFC 7396 -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_patch_merges_as_in_the_appendix_of_rfc_7396(target: Any, patch: Any, result: Any) -> None:
    """All fifteen examples of the RFC, so that agents in other languages mean the same."""
    assert merge_patch(target, patch) == result


# -- histories ------------------------------------------------------------------------------------

patches = st.fixed_dictionaries(
    {},
    optional={
        "usage": st.dictionaries(st.sampled_from(["VCPU", "MEMORY_MB", "GPU"]), st.none() | st.integers(0, 99)),
        "status": st.none() | st.sampled_from(["up", "down", "draining", "maintenance"]),
        "metrics": st.dictionaries(st.sampled_from(["a", "b"]), st.none() | st.integers(-5, 5) | st.floats(-1, 1)),
        "zone": st.none() | st.sampled_from(["", "az1"]),
        "inventory": st.dictionaries(
            st.sampled_from(["VCPU", "MEMORY_MB"]),
            st.none() | st.fixed_dictionaries({"total": st.integers(0, 64)}, optional={"reserved": st.just(3)}),
        ),
        "traits": st.lists(st.sampled_from(["A", "B"]), max_size=2),
        "allocations": st.dictionaries(st.just("vm"), st.none() | st.just({"resources": {"VCPU": 1}})),
        "namespaces": st.dictionaries(
            st.sampled_from(["x", "y"]),
            st.none() | st.integers() | st.dictionaries(st.just("k"), st.none() | st.booleans()),
        ),
    },
)
patches = patches.map(
    lambda p: {
        k: v for k, v in p.items() if k != "namespaces" or all(abs(i) < 2**63 for i in v.values() if isinstance(i, int))
    }
)


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[Event, Any]]:
    """The events of one agent in the order of their creation, each with the whole state after it (None: gone)."""
    events: list[tuple[Event, Any]] = []
    incarnation, generation, state = LIFE, 0, None
    for kind in draw(
        st.lists(st.sampled_from(["report", "change", "change", "heartbeat", "leave", "rebirth"]), max_size=12)
    ):
        if kind == "rebirth":
            incarnation, generation, state = incarnation + draw(st.integers(1, 9)), 0, None
            continue
        if state is None and kind != "report":
            kind = "report"
        if kind == "heartbeat":
            events.append((event("heartbeat", generation, incarnation=incarnation), state))
            continue
        generation += 1
        if kind == "leave":
            left: Any = {"status": "down"} if has_left(state) else {"status": "down", "namespaces": LEFT}
            state = merge_patch(msgpack.unpackb(msgpack.packb(state)), left) if state.get("allocations") else None
            events.append((event("leave", generation, incarnation=incarnation), state))
            continue
        patch = draw(patches)
        if kind == "report":
            state = merge_patch(msgpack.unpackb(msgpack.packb(STATE)), patch)
            events.append((event("report", generation, incarnation=incarnation, state=state), state))
        else:
            state = merge_patch(msgpack.unpackb(msgpack.packb(state)), patch)
            if has_left(state) and state.get("status") == "down" and not state.get("allocations"):
                state = None  # the last instance of a node that left is gone
            events.append((event("change", generation, incarnation=incarnation, patch=patch), state))
    return events


def valid(state: Any) -> bool:
    try:
        return state is None or parse_state(msgpack.packb(state)) is not None
    except BadEventError:
        return False


arrivals = (
    histories()
    .filter(lambda h: all(valid(state) for _, state in h))
    .flatmap(
        lambda h: st.tuples(
            st.just(h), st.lists(st.sampled_from(range(len(h))), max_size=2 * len(h)) if h else st.just([])
        )
    )
)


@given(arrivals)
def test_record_is_always_a_real_state_and_incomplete_if_a_newer_one_is_known(
    given_: tuple[list[tuple[Event, Any]], list[int]],
) -> None:
    """Lost, duplicated and swapped messages never produce an invented state, and never hide that a message is missing
    (I5).
    """
    history, order = given_
    states = {one.version: state for one, state in history}
    record = None
    seen = NEVER
    for index in order:
        one = history[index][0]
        record, outcome = fold(record, one)
        seen = max(seen, one.version)
        assert fold(record, one).record == record, "I6: a message that comes twice changes nothing the second time"
        assert record is not None
        assert record.wanted == seen
        assert record.incomplete == (record.version < seen)
        if record.version != NEVER:
            expected = states[record.version]
            if record.gone and expected is not None:
                assert has_left(expected), "only a leave whose report before was lost hides what runs on the node"
                continue
            assert record.gone == (expected is None)
            assert record.state() == (expected or {})
        if outcome in {FoldOutcome.DUPLICATE, FoldOutcome.ALIVE}:
            assert one.version <= record.version


@given(arrivals)
def test_report_leads_to_its_state_after_any_history(given_: tuple[list[tuple[Event, Any]], list[int]]) -> None:
    """This makes a resync the remedy for every loss."""
    history, order = given_
    last = report(1, {"zone": "last"}, incarnation=LIFE + 1_000)
    noise = [history[index][0] for index in order]
    assert folded(*noise, last) == folded(last)


@given(st.permutations([report(n, {"zone": str(n)}) for n in range(1, 6)]))
def test_reports_may_arrive_in_any_order(reports: list[Event]) -> None:
    """The newest wins, and nothing is missing, because a report needs no predecessor."""
    assert folded(*reports) == folded(report(5, {"zone": "5"}))


# -- changes: the quick way and the long way ------------------------------------------------------


def recomputed(record: NodeRecord) -> tuple[str, str, bytes]:
    state = parse_state(record.body)
    return (state.status, *columns_of(state.inventory, state.usage))


@given(first=patches, steps=st.lists(patches, min_size=1, max_size=6))
def test_change_leads_to_the_same_record_as_a_report_of_that_state(
    first: dict[str, Any], steps: list[dict[str, Any]]
) -> None:
    """Frequent patches are applied without decoding the rest of the state; the result must not differ."""
    state = merge_patch(msgpack.unpackb(msgpack.packb(STATE)), first)
    if not valid(state):
        return
    record = folded(report(1, state))
    for generation, patch in enumerate(steps, 2):
        state = merge_patch(msgpack.unpackb(msgpack.packb(state)), patch)
        if not valid(state):
            refused("wrong-type", record, change(generation, patch))
            return
        record = fold(record, change(generation, patch)).record  # type: ignore[assignment]
        assert record.state() == state
        assert (record.status, record.classes, record.columns) == recomputed(record)


def test_change_may_have_as_many_classes_as_a_report_and_no_more() -> None:
    """Regression: the fast path counted inventory and usage together. It refused states that a report may have, and let
    a usage grow beyond the limit of a report: such a node could never be resynced.
    """
    inventory = {f"I{n}": {"total": 1} for n in range(MAX_CLASSES_COUNT)}
    usage = {f"U{n}": n for n in range(MAX_CLASSES_COUNT - 1)}
    record = folded(report(1, {"inventory": inventory, "usage": usage}), change(2, {"usage": {"I0": 7}}))
    assert (record.status, record.classes, record.columns) == recomputed(record)
    refused("too-large", record, change(3, {"usage": {"I1": 7}}))


def test_change_may_have_no_more_metrics_than_a_report() -> None:
    """A node that adds metrics for ever ends at the limit, not in an item that no server accepts."""
    record = folded(report(1, {"metrics": {f"m{n}": 0.0 for n in range(MAX_METRICS_COUNT)}}))
    assert fold(record, change(2, {"metrics": {"m0": 1.0}})).outcome is FoldOutcome.APPLIED
    refused("too-large", record, change(2, {"metrics": {"more": 1.0}}))


@pytest.mark.parametrize("more", [{"usage": {"VCPU": 1}}, {"zone": "a"}], ids=["quick", "long"])
def test_state_that_grows_by_changes_ends_at_the_limit(more: dict[str, Any]) -> None:
    """Each change fits into an event; together they would not fit into an item."""
    part = {"x" * 3: "y" * (MAX_EVENT_BYTES - 2_000)}
    record = folded(report(1, {"namespaces": {"a": part}}))
    grown = {"namespaces": {"b": {"z": "y" * (MAX_STATE_BYTES - len(record.body) - 40)}}}
    record = fold(record, change(2, grown)).record  # type: ignore[assignment]
    refused("too-large", record, change(3, {**more, "metrics": {"m" * 200: 1.0}, "usage": {"V" * 200: 1}}))


def test_invalid_patch_is_refused_even_if_it_could_not_be_applied() -> None:
    """Otherwise the same message would first count as a gap and later be poison. It must become a dead letter once."""
    refused("wrong-type", None, change(3, {"usage": {"VCPU": -1}}))
    refused("wrong-type", folded(report(1)), change(2, {"zone": 1}))


# -- limits and types -----------------------------------------------------------------------------

BAD_STATES: list[tuple[str, dict[str, Any]]] = [
    ("wrong-type", {"status": "sleeping"}),
    ("wrong-type", {"later": b"\x00"}),
    ("wrong-type", {"later": {"a": [math.nan]}}),
    ("too-deep", {"later": [[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]}),
    ("wrong-type", {"usage": {"VCPU": -1}}),
    ("wrong-type", {"usage": {"VCPU": 1.5}}),
    ("wrong-type", {"usage": {"VCPU": math.nan}}),
    ("wrong-type", {"usage": {"VCPU": MAX_AMOUNT + 1}}),
    ("wrong-type", {"usage": {"vcpu": 1}}),
    ("wrong-type", {"usage": {f"C{n}": 1 for n in range(MAX_CLASSES_COUNT + 1)}}),
    ("wrong-type", {"inventory": {"VCPU": {}}}),
    ("wrong-type", {"inventory": {"VCPU": {"total": 1, "allocation_ratio": 0.0}}}),
    ("wrong-type", {"inventory": {"VCPU": {"total": 1, "allocation_ratio": math.nan}}}),
    ("wrong-type", {"inventory": {"VCPU": {"total": 1, "allocation_ratio": math.inf}}}),
    ("wrong-type", {"traits": [f"T{n}" for n in range(MAX_TRAITS_COUNT + 1)]}),
    ("wrong-type", {"traits": [""]}),
    ("wrong-type", {"metrics": {"load": "high"}}),
    ("wrong-type", {"metrics": {"load": math.nan}}),
    ("wrong-type", {"metrics": {"load": -math.inf}}),
    ("wrong-type", {"zone": 1}),
    ("wrong-type", {"namespaces": {"nova": b"\x00"}}),
    ("wrong-type", {"namespaces": {"nova": {1: 2}}}),
    ("wrong-type", {"namespaces": {"nova": [math.inf]}}),
    ("wrong-type", {"namespaces": {"nova": msgpack.Timestamp(1)}}),
    ("wrong-type", {"allocations": {"vm": {"resources": {}, "hints": {"a": {"b": math.nan}}}}}),
]


@pytest.mark.parametrize(
    ("reason", "state"), BAD_STATES, ids=[f"{next(iter(s))} {n}" for n, (_, s) in enumerate(BAD_STATES)]
)
def test_state_that_breaks_the_format_is_refused_as_a_report_and_as_a_change(
    reason: str, state: dict[str, Any]
) -> None:
    """A bad amount in a view would be worse than a missing one; NaN compares false with every bound, and JSON has no
    NaN.
    """
    refused(reason, None, report(1, state))
    patch = {key: value for key, value in state.items() if value is not None}
    if patch and "inventory" not in patch:
        refused(
            "too-large" if len(patch.get("usage", ())) > MAX_CLASSES_COUNT else reason,
            folded(report(1)),
            change(2, patch),
        )


def test_amounts_at_their_limits_fit_the_columns() -> None:
    """The largest possible capacity is an int64."""
    state = {"inventory": {"A": {"total": MAX_AMOUNT, "allocation_ratio": MAX_RATIO}}, "usage": {"A": MAX_AMOUNT}}
    assert folded(report(1, state)).columns == struct.pack("<2q", int(MAX_AMOUNT * MAX_RATIO), MAX_AMOUNT)


def test_capacity_is_never_negative() -> None:
    """If more is reserved than the total, nothing can be allocated."""
    state = {"inventory": {"A": {"total": 1, "reserved": 5}, "B": {"total": 3, "allocation_ratio": 0.5}}}
    assert folded(report(1, state)).columns == struct.pack("<4q", 0, 1, 0, 0)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


def packed_nest(depth: int) -> bytes:
    return b"\x81\xa1a" * depth + b"\x01"


@pytest.mark.parametrize("where", ["namespaces", "hints"])
def test_namespaces_and_hints_may_nest_up_to_the_limit(where: str) -> None:
    """Readers in every language would have to walk deeper values."""

    def state(depth: int) -> dict[str, Any]:
        return (
            {"namespaces": nested(depth)}
            if where == "namespaces"
            else {"allocations": {"vm": {"resources": {}, "hints": nested(depth)}}}
        )

    assert fold(None, report(1, state(MAX_FREE_DEPTH + 1))).outcome is FoldOutcome.APPLIED
    refused("too-deep", None, report(1, state(MAX_FREE_DEPTH + 2)))
    refused("too-deep", folded(report(1)), change(2, state(MAX_FREE_DEPTH + 2)))


@pytest.mark.parametrize("depth", [100, 400, 500, 700, 800, 850, 900, 940, 960, 980, 1_000, 5_000, 50_000])
@pytest.mark.parametrize("kind", ["report", "change"])
def test_deeply_nested_value_is_refused_and_does_not_break_a_consumer(kind: str, depth: int) -> None:
    """A few kilobytes of nested maps must become a dead letter, whichever recursion of ours they reach first."""
    name = "state" if kind == "report" else "patch"
    head = {"kind": kind, "node": "n", "incarnation": LIFE, "generation": 2, "reported_at": 1.0}
    for inner in (b"\x81\xaanamespaces", b"\x81\xabadlocations"[:0] + b"\x81\xaballocations\x81\xa2vm"):
        packed = msgpack.packb(head)
        raw = bytes([packed[0] + 1]) + packed[1:] + msgpack.packb(name) + inner + packed_nest(depth)
        with pytest.raises(BadEventError):
            fold(folded(report(1)), parse_event(raw))


BAD_EVENTS: list[tuple[str, dict[str, Any]]] = [
    ("unknown-version", {"v": 2}),
    ("unknown-version", {"v": "1"}),
    ("bad-name", {"node": ""}),
    ("bad-name", {"node": "n" * 201}),
    ("bad-name", {"node": "a b"}),
    ("bad-name", {"node": "a\n"}),
    ("bad-name", {"node": "ä"}),
    ("bad-name", {"node": 7}),
    ("wrong-type", {"kind": "rumour"}),
    ("wrong-type", {"incarnation": 0}),
    ("wrong-type", {"incarnation": 1.5}),
    ("wrong-type", {"generation": 0}),
    ("wrong-type", {"generation": -1}),
    ("wrong-type", {"generation": MAX_COUNTER + 1}),
    ("wrong-type", {"generation": True}),
    ("wrong-type", {"reported_at": math.nan}),
    ("wrong-type", {"reported_at": math.inf}),
    ("wrong-type", {"reported_at": -1.0}),
    ("wrong-type", {"reported_at": "now"}),
    ("wrong-type", {"surprise": b"\x00"}),
    ("too-deep", {"surprise": [[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]}),
]


@pytest.mark.parametrize(("reason", "wrong"), BAD_EVENTS, ids=[str(wrong)[:40] for _, wrong in BAD_EVENTS])
def test_bad_event_is_refused_with_its_reason(reason: str, wrong: dict[str, Any]) -> None:
    """The reason is a header of the dead letter and the label of a counter, so its words are frozen."""
    good = {"v": 1, "kind": "heartbeat", "node": "n", "incarnation": 1, "generation": 1, "reported_at": 1.0}
    with pytest.raises(BadEventError) as caught:
        parse_event(msgpack.packb({**good, **wrong}))
    assert caught.value.reason == reason


@pytest.mark.parametrize("missing", ["kind", "node", "incarnation", "generation", "reported_at", "state"])
def test_event_without_one_of_its_fields_is_refused(missing: str) -> None:
    """Missing fields are never guessed."""
    good = {"kind": "report", "node": "n", "incarnation": 1, "generation": 1, "reported_at": 1.0, "state": {}}
    with pytest.raises(BadEventError):
        parse_event(msgpack.packb({key: value for key, value in good.items() if key != missing}))


def test_event_over_the_size_limit_is_refused_before_it_is_decoded() -> None:
    """Its size is the first thing that an attacker controls."""
    with pytest.raises(BadEventError) as caught:
        parse_event(b"\xc1" * (MAX_EVENT_BYTES + 1))
    assert caught.value.reason == "too-large"


# -- bytes from hostile hands ---------------------------------------------------------------------

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=8,
)
GOOD = [
    msgpack.packb(
        {
            "v": 1,
            "kind": "report",
            "node": "n",
            "incarnation": LIFE,
            "generation": 2,
            "reported_at": 1.0,
            "state": STATE,
        }
    ),
    msgpack.packb(
        {
            "v": 1,
            "kind": "change",
            "node": "n",
            "incarnation": LIFE,
            "generation": 2,
            "reported_at": 1.0,
            "patch": {"usage": {"VCPU": 3}},
        }
    ),
]


REASONS = {"too-large", "undecodable", "unknown-version", "bad-name", "wrong-type", "too-deep"}


def survives(raw: bytes) -> None:
    """Assert that parsing and folding return a record or raise ``BadEventError``, and nothing else."""
    for record in (None, folded(report(1)), folded(report(1), event("leave", 2))):
        reason = ""
        try:
            after = fold(record, parse_event(raw)).record
        except BadEventError as error:
            reason, after = error.reason, record
        assert reason in {"", *REASONS}
        assert after is record or after is not None
        assert after is None or not after.body or parse_state(after.body)


@given(st.binary(max_size=60))
def test_random_bytes_are_refused_or_folded(raw: bytes) -> None:
    """One bad message never stops its partition, because all bad messages raise one exception."""
    survives(raw)


@given(st.sampled_from(GOOD), st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_events_are_refused_or_folded(raw: bytes, damage: list[tuple[int, int]]) -> None:
    """Bytes that are nearly right reach deeper code than random ones."""
    damaged = bytearray(raw)
    for at, byte in damage:
        damaged[at % len(damaged)] = byte
    survives(bytes(damaged))


@given(st.sampled_from(["report", "change", "heartbeat", "leave"]), values, st.booleans())
def test_events_with_any_content_are_refused_or_folded(kind: str, content: Any, inside: bool) -> None:
    """The right frame around the wrong content, and the right name of a field with the wrong value."""
    parts = ["usage", "inventory", "metrics", "allocations", "namespaces", "traits", "zone"]
    for part in parts if inside else [None]:
        fields = {"kind": kind, "node": "n", "incarnation": LIFE, "generation": 2, "reported_at": 1.0}
        name = "state" if kind == "report" else "patch"
        survives(msgpack.packb({**fields, name: content if part is None else {part: content}}))


def test_truncated_event_is_undecodable() -> None:
    """Truncated bytes never decode to a shorter event."""
    for raw, end in itertools.chain.from_iterable(((raw, n) for n in range(len(raw))) for raw in GOOD):
        with pytest.raises(BadEventError):
            parse_event(raw[:end])


# -- a second opinion -----------------------------------------------------------------------------


@given(patches.filter(lambda state: valid({k: v for k, v in state.items() if v is not None})))
def test_another_msgpack_library_reads_and_writes_the_same_bytes(state: dict[str, Any]) -> None:
    """Agents and readers in other languages use other libraries."""
    line = msgspec.json.encode(
        {"v": 1, "kind": "report", "node": "n", "incarnation": 1, "generation": 1, "reported_at": 1.0, "state": STATE}
    )
    assert msgpack.unpackb(event_from_json(line))["state"] == STATE
    record = folded(report(1), change(2, {k: v for k, v in state.items() if v is not None}))
    assert msgpack.unpackb(record.body) == record.state()


def test_json_line_that_is_no_event_is_refused() -> None:
    """``nodestate publish FILE`` names the line, and needs a ``BadEventError`` to do so."""
    for line in ("", "{", "[]", "1e999", '{"v":1}', '{"a":' * 2_000 + "1" + "}" * 2_000, "\udcff", "9" * 400):
        with pytest.raises(BadEventError):
            event_from_json(line)


def test_versions_are_ordered_by_incarnation_first() -> None:
    """All consistency relies on this order."""
    assert sorted([Version(2, 1), Version(1, 9), Version(1, 1)]) == [(1, 1), (1, 9), (2, 1)]
