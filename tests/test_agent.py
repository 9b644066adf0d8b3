"""The agent's loop: readings of sources become events, at the right time, whatever the broker does meanwhile."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodestate.agent.agent import Agent
from nodestate.agent.diff import InexpressibleError, diff_patch
from nodestate.agent.schedules import ReportSchedule
from nodestate.agent.sources import FullState, NodeGone, Reading, StatePatch
from nodestate.agent.sources.simulated import SimulatedFleet
from nodestate.config import Config
from nodestate.errors import ConfigError, SourceUnavailableError, UnconfirmedError
from nodestate.model import NodeRecord, Version, fold, merge_patch, parse_event
from nodestate.model.partitioning import partition_of
from nodestate.ports import Resync
from nodestate.testing import ManualClock
from tests.recording_sink import RecordingSink

CONFIG = Config(partitions=4, heartbeat_s=10.0)
STATE: dict[str, Any] = {"inventory": {"VCPU": {"total": 8}}, "usage": {"VCPU": 1}}


class ScriptedSource:
    """A source that gives the readings which the test put into ``readings``."""

    every_s = 1.0

    def __init__(self, names: Sequence[str] = ("a", "b", "c"), name: str = "scripted") -> None:
        self.name = name
        self.readings: list[Reading] = [FullState(node, STATE) for node in names]
        self.failure = ""
        self.closed = False
        self._names = names

    def nodes(self) -> Sequence[str]:
        return self._names

    def poll(self, now: float) -> Iterable[Reading]:  # noqa: ARG002 - the test decides what is new
        if self.failure:
            raise SourceUnavailableError(self.name, self.failure)
        readings, self.readings = self.readings, []
        return readings

    def close(self) -> None:
        self.closed = True


class AgentBench:
    def __init__(self, source: ScriptedSource | SimulatedFleet | None = None, config: Config = CONFIG) -> None:
        self.source = source or ScriptedSource()
        self.sink = RecordingSink()
        self.clock = ManualClock()
        self.agent = Agent(
            config, [self.source], self.sink, self.clock, random.Random(1), inbox=self.sink, incarnation=7
        )

    def pass_time(self, seconds: float, step_s: float = 0.5) -> None:
        for _ in range(round(seconds / step_s)):
            self.clock.advance(step_s)
            self.agent.step()

    def sent(self, kind: str) -> list[str]:
        """The nodes of all events of a kind, in the order in which they were sent."""
        events = [parse_event(body) for _, body in self.sink.sent]
        return [event.node for event in events if type(event).__name__.lower() == kind]

    def folded(self) -> dict[str, NodeRecord]:
        records: dict[str, NodeRecord] = {}
        for _, body in self.sink.sent:
            event = parse_event(body)
            record = fold(records.get(event.node), event).record
            assert record is not None
            records[event.node] = record
        return records


@pytest.fixture
def bench() -> AgentBench:
    bench = AgentBench()
    bench.agent.step()
    return bench


# -- readings of sources --------------------------------------------------------------------------


def test_every_node_is_reported_once_at_the_start(bench: AgentBench) -> None:
    bench.pass_time(5)
    assert bench.sent("report") == ["a", "b", "c"]


def test_a_full_state_that_differs_is_published_as_a_change_with_the_difference(bench: AgentBench) -> None:
    bench.source.readings = [
        FullState("a", STATE),
        FullState("b", {"inventory": STATE["inventory"], "usage": {"VCPU": 5}}),
    ]
    bench.pass_time(1)
    [body] = [body for _, body in bench.sink.sent if parse_event(body).generation == 2]
    assert msgspec.msgpack.decode(body)["patch"] == {"usage": {"VCPU": 5}}
    assert bench.folded()["b"].state()["usage"] == {"VCPU": 5}


def test_an_unchanged_state_publishes_no_event(bench: AgentBench) -> None:
    before = len(bench.sink.sent)
    bench.source.readings = [FullState("a", STATE)]
    bench.agent.step()
    bench.clock.advance(1.0)
    bench.agent.step()
    assert [event for event in bench.sink.events()[before:] if event[0] != "heartbeat"] == []


def test_a_null_that_no_patch_can_set_is_published_as_a_report(bench: AgentBench) -> None:
    bench.source.readings = [FullState("a", {**STATE, "namespaces": {"nova": {"host": None}}})]
    bench.pass_time(1)
    assert bench.sent("report") == ["a", "b", "c", "a"]
    assert bench.folded()["a"].state()["namespaces"] == {"nova": {"host": None}}


def test_patches_of_a_source_are_published_unchanged(bench: AgentBench) -> None:
    bench.source.readings = [StatePatch("a", {"usage": {"VCPU": 3}}), StatePatch("a", {"usage": {"VCPU": 4}})]
    bench.pass_time(1)
    assert bench.sent("change") == ["a", "a"]
    assert bench.folded()["a"].state()["usage"] == {"VCPU": 4}


def test_a_node_that_is_gone_gets_a_leave_and_no_more_heartbeats(bench: AgentBench) -> None:
    bench.source.readings = [NodeGone("b")]
    bench.pass_time(1)
    before = len(bench.sink.sent)
    bench.pass_time(30)
    assert bench.sent("leave") == ["b"]
    assert {parse_event(body).node for _, body in bench.sink.sent[before:]} == {"a", "c"}


def test_an_invalid_state_is_counted_and_other_nodes_are_published(bench: AgentBench) -> None:
    bench.source.readings = [StatePatch("a", {"usage": {"VCPU": -1}}), StatePatch("b", {"usage": {"VCPU": 2}})]
    bench.pass_time(1)
    assert bench.agent.stats.bad == 1
    assert bench.sent("change") == ["b"]


def test_nodes_of_a_source_that_cannot_be_read_get_no_heartbeats(bench: AgentBench) -> None:
    """A heartbeat says that the state is true now, and an agent that can't read the source does not know that."""
    bench.source.failure = "connection refused"
    bench.pass_time(1)
    before = len(bench.sent("heartbeat"))
    bench.pass_time(30)
    assert len(bench.sent("heartbeat")) == before
    bench.source.failure = ""
    bench.pass_time(11)
    assert sorted(set(bench.sent("heartbeat")[before:])) == ["a", "b", "c"]


# -- heartbeats -----------------------------------------------------------------------------------


def test_every_node_gets_one_heartbeat_in_every_interval(bench: AgentBench) -> None:
    bench.pass_time(100)
    assert sorted(bench.sent("heartbeat")) == ["a"] * 10 + ["b"] * 10 + ["c"] * 10


def test_heartbeats_of_a_fleet_are_spread_over_the_interval() -> None:
    """A thousand heartbeats at once every ten seconds would be a burst of load on broker, consumer and store."""
    bench = AgentBench(ScriptedSource([f"n{number}" for number in range(1000)]))
    bench.agent.step()
    counts = []
    for _ in range(10):
        before = len(bench.sent("heartbeat"))
        bench.pass_time(1)
        counts.append(len(bench.sent("heartbeat")) - before)
    assert sum(counts) == 1000
    assert max(counts) < 150


def test_missed_heartbeats_are_skipped(bench: AgentBench) -> None:
    bench.clock.advance(300)
    bench.agent.step()
    assert sorted(bench.sent("heartbeat")) == ["a", "b", "c"]


def test_a_step_returns_the_time_until_something_is_due(bench: AgentBench) -> None:
    idle_s = bench.agent.step()
    assert 0 < idle_s <= 1.0  # the source is polled every second
    bench.clock.advance(idle_s)
    assert bench.agent.step() > 0


# -- requests -------------------------------------------------------------------------------------


def test_a_resync_of_all_nodes_is_answered_by_all_within_its_jitter() -> None:
    bench = AgentBench(ScriptedSource([f"n{number}" for number in range(500)]))
    bench.agent.step()
    bench.sink.asked.append(Resync(jitter_s=5.0))
    counts = []
    for _ in range(5):
        before = len(bench.sent("report"))
        bench.pass_time(1, 0.1)
        counts.append(len(bench.sent("report")) - before)
    bench.pass_time(1)
    assert sorted(bench.sent("report")) == sorted(bench.source.nodes() * 2)
    assert max(counts) < 150


def test_a_resync_of_some_nodes_is_answered_by_these_nodes(bench: AgentBench) -> None:
    bench.sink.asked.append(Resync(nodes=("c", "zzz")))
    bench.pass_time(1)
    assert bench.sent("report") == ["a", "b", "c", "c"]


def test_a_resync_of_a_partition_is_answered_by_its_nodes() -> None:
    names = [f"n{number}" for number in range(100)]
    bench = AgentBench(ScriptedSource(names))
    bench.agent.step()
    bench.sink.asked.append(Resync(partitions=(2,), layout=4))
    bench.pass_time(1)
    assert sorted(bench.sent("report")[100:]) == sorted(name for name in names if partition_of(name, 4) == 2)


def test_repeated_resync_requests_get_one_report(bench: AgentBench) -> None:
    bench.sink.asked += [Resync(jitter_s=3.0), Resync(nodes=("a",), jitter_s=3.0)]
    bench.pass_time(5, 0.1)
    assert sorted(bench.sent("report")) == ["a", "a", "b", "b", "c", "c"]


def test_a_census_is_answered_with_every_version_and_no_report(bench: AgentBench) -> None:
    bench.source.readings = [StatePatch("b", {"usage": {"VCPU": 2}})]
    bench.pass_time(1)
    bench.sink.asked.append(Resync(census="box"))
    bench.agent.step()
    versions = {parse_event(body).node: parse_event(body).version for _, body in bench.sink.census}
    assert versions == {"a": Version(7, 1), "b": Version(7, 2), "c": Version(7, 1)}
    assert bench.sent("report") == ["a", "b", "c"]


# -- while the broker is away ---------------------------------------------------------------------


def test_changes_during_an_outage_of_the_broker_are_published_as_one_report_per_node(bench: AgentBench) -> None:
    bench.sink.settle()
    bench.sink.away = True
    for used in range(2, 6):
        bench.source.readings = [StatePatch("a", {"usage": {"VCPU": used}}), StatePatch("b", {"usage": {"VCPU": used}})]
        bench.pass_time(5)
    bench.sink.away = False
    bench.pass_time(20)
    assert sorted(bench.sent("report")) == ["a", "a", "b", "b", "c"]
    assert {name: record.state()["usage"]["VCPU"] for name, record in bench.folded().items()} == {
        "a": 5,
        "b": 5,
        "c": 1,
    }
    assert bench.agent.stats.sent_again == 2


def test_a_broker_that_is_away_is_tried_after_growing_pauses() -> None:
    """The attempts of ten thousand agents could keep a broker from starting. The longest pause is half of
    ``heartbeat_s``, so that every agent is back within ``settle_s``, after which a new owner counts its partition as
    complete.
    """
    bench = AgentBench()
    tries: list[float] = []
    ask = bench.sink.resyncs

    def note(timeout_s: float) -> list[Resync]:
        tries.append(bench.clock.monotonic())
        return ask(timeout_s)

    bench.sink.resyncs = note  # type: ignore[method-assign]
    bench.sink.away = True
    bench.pass_time(120, 0.05)
    pauses = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert pauses[0] < 0.3
    assert 2.5 <= pauses[-1] <= 5.1
    assert 24 <= len(tries) <= 60


def test_nodes_whose_events_were_lost_are_reported_again(bench: AgentBench) -> None:
    bench.sink.settle(False)
    bench.pass_time(1)
    assert sorted(bench.sent("report")) == ["a", "a", "b", "b", "c", "c"]


def test_closing_an_agent_flushes_and_publishes_no_leave(bench: AgentBench) -> None:
    bench.agent.close()
    assert bench.sink.waiting == []
    assert bench.sent("leave") == []
    assert isinstance(bench.source, ScriptedSource)
    assert bench.source.closed


def test_closing_an_agent_with_leave_makes_tombstones(bench: AgentBench) -> None:
    bench.agent.close(leave=True)
    assert bench.sent("leave") == ["a", "b", "c"]
    assert all(record.gone for record in bench.folded().values())


def test_closing_an_agent_raises_if_events_did_not_arrive(bench: AgentBench) -> None:
    bench.sink.away = True
    bench.source.readings = [StatePatch("a", {"usage": {"VCPU": 2}})]
    bench.pass_time(1)
    with pytest.raises(UnconfirmedError, match="within 5 s: away"):
        bench.agent.close()


# -- incarnations ---------------------------------------------------------------------------------


def test_a_fleet_has_one_incarnation_file_for_all_its_nodes(tmp_path: Path) -> None:
    config = Config(cell="lives", state_dir=str(tmp_path))
    sink = RecordingSink()
    agent = Agent(config, [SimulatedFleet(50)], sink, ManualClock(), random.Random(1), inbox=sink)
    agent.step()
    assert [path.name for path in tmp_path.rglob("*.incarnation")] == ["compute-fleet-0.incarnation"]
    assert {publisher.version.incarnation for publisher in agent.publishers.values()} == {1_763_787_600}
    agent.close()


def test_an_agent_that_cannot_lock_all_its_names_locks_none(tmp_path: Path) -> None:
    config = Config(cell="lives", state_dir=str(tmp_path))
    sources = [ScriptedSource(name="one"), ScriptedSource(name="two"), ScriptedSource(name="two")]
    sink = RecordingSink()
    with pytest.raises(ConfigError, match="reports two already"):
        Agent(config, sources, sink, ManualClock(), random.Random(1), inbox=sink)
    Agent(config, sources[:2], sink, ManualClock(), random.Random(1), inbox=sink).close()


# -- a fleet --------------------------------------------------------------------------------------


def test_folding_an_agents_events_gives_the_states_of_its_fleet() -> None:
    fleet = SimulatedFleet(30, seed=3, changes_per_s=50)
    bench = AgentBench(fleet)
    bench.pass_time(60, 0.1)
    for name, record in bench.folded().items():
        folded, expected = record.state(), fleet.state(name)
        assert not record.incomplete
        for part in ("inventory", "usage", "allocations", "aggregates", "traits", "zone"):
            assert folded[part] == expected[part], (name, part)
    assert bench.agent.stats.changes > 2_500
    assert bench.agent.stats.bad == 0


# -- diff_patch -----------------------------------------------------------------------------------

_LEAVES = st.booleans() | st.integers(-5, 5) | st.floats(-2, 2) | st.text("ab", max_size=2)
_VALUES = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=1), inner, max_size=3)
)
_STATES = st.dictionaries(st.text("abc", max_size=1), _VALUES, max_size=4)


def _exact(value: Any) -> bytes:
    """An encoding in which True and 1 differ, and the order of keys does not matter."""
    return msgspec.msgpack.encode(value, order="deterministic")


@given(old=_STATES, new=_STATES)
def test_merging_the_difference_into_the_old_state_gives_the_new_one(old: dict[str, Any], new: dict[str, Any]) -> None:
    before = _exact(old), _exact(new)
    patch = diff_patch(old, new)
    assert (_exact(old), _exact(new)) == before
    assert _exact(merge_patch(old, msgspec.msgpack.decode(msgspec.msgpack.encode(patch)))) == _exact(new)


@given(state=_STATES)
def test_the_difference_of_equal_states_is_empty(state: dict[str, Any]) -> None:
    assert diff_patch(state, msgspec.msgpack.decode(msgspec.msgpack.encode(state))) == {}


def test_a_null_is_inexpressible_only_if_it_changed() -> None:
    assert diff_patch({"a": {"n": None}}, {"a": {"n": None, "m": 1}}) == {"a": {"m": 1}}
    assert diff_patch({}, {"a": [None]}) == {"a": [None]}
    for new in ({"a": None}, {"a": {"b": None}}):
        with pytest.raises(InexpressibleError):
            diff_patch({"a": 1}, new)


def test_a_request_with_a_long_jitter_delays_no_other_request() -> None:
    """Otherwise a sender of requests could keep all agents from reporting for years."""
    schedule = ReportSchedule(random.Random(1))
    schedule.add("n", 0.0, 1e9)
    schedule.add("n", 0.0, 5.0)
    schedule.add("n", 0.0, 1e9)
    assert schedule.next_at <= 5.0
    assert list(schedule.due(5.0)) == ["n"]
    assert list(schedule.due(1e9)) == []
