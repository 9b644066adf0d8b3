"""Cordons: an agent keeps a node closed to new instances, whatever is restarted, lost, late or delivered twice."""

from __future__ import annotations

import dataclasses
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from structlog.testing import capture_logs

from nodestate.agent.agent import Agent
from nodestate.agent.cordons import Cordons
from nodestate.agent.sources import FullState, StatePatch
from nodestate.agent.sources.static_fleet import StaticFleet
from nodestate.auth.message_auth import OrderAuth
from nodestate.errors import BadRequestError, ConfigError
from nodestate.model import STATUSES
from nodestate.model.orders import Build, Cordon, End, Uncordon, decode_order, encode
from nodestate.ports import Resync
from nodestate.scheduling import NodeOrders, parse
from nodestate.scheduling.orders import NO_ANSWER
from nodestate.testing import ManualClock, MemoryBroker, SeededIds, TransitMessage
from tests.cell_keys import FixedKeyring, new_cell_keys
from tests.machines.scheduling_cell import CooperativeClock, SchedulingCell
from tests.scheduling.cells import VCPU, boot, cell_of, freeze_view, losing_answers, wanted
from tests.test_admission import CONFIG, NODE, SOON_S, AdmissionBench
from tests.test_agent import ScriptedSource

NAMED: dict[str, Any] = {**NODE, "namespaces": {"nova": {"service": "nova-compute"}, "nodestate": {"mine": 1}}}


class CordonBench(AdmissionBench):
    """An agent that keeps its cordons in a directory."""

    def __init__(self, folder: Path, source: Any = None, *, incarnation: int = 7, **more: Any) -> None:
        fleet = source or StaticFleet({"n1": NAMED, "n2": NODE})
        super().__init__(fleet, state_dir=folder, incarnation=incarnation, **more)
        self.folder = folder

    def cordon(self, number: str = "c1", node: str = "n1", why: str = "new disk", left_s: float = SOON_S) -> Cordon:
        deadline = self.clock.time() + left_s
        reply_to = self.courier.reply_to
        return Cordon(id=number, node=node, deadline=deadline, by="ann@host", why=why, reply_to=reply_to)

    def uncordon(self, number: str = "u1", node: str = "n1", left_s: float = SOON_S) -> Uncordon:
        return Uncordon(
            id=number, node=node, deadline=self.clock.time() + left_s, reply_to=self.courier.reply_to
        )  # fmt: skip

    def restarted(self, source: Any = None) -> CordonBench:
        """The same agent after a restart of its process."""
        self.agent.close()
        return CordonBench(
            self.folder, source, clock=self.clock, incarnation=self.agent.publishers["n1"].version.incarnation + 1
        )


@pytest.fixture
def bench(tmp_path: Path) -> CordonBench:
    return CordonBench(tmp_path)


def cordon_in(state: Mapping[str, Any]) -> Any:
    return state.get("namespaces", {}).get("nodestate", {}).get("cordon")


def test_a_cordoned_node_reports_draining_with_name_time_and_reason_next_to_other_namespaces(
    bench: CordonBench,
) -> None:
    [answer] = bench.give(bench.cordon())
    assert (answer.refused, answer.version) == ("", bench.record().version)
    state = bench.state()
    assert state["status"] == "draining"
    assert state["namespaces"] == {
        "nova": {"service": "nova-compute"},
        "nodestate": {"mine": 1, "cordon": {"by": "ann@host", "at": round(bench.clock.time(), 3), "why": "new disk"}},
    }
    assert bench.state("n2").get("status", "up") == "up"
    bench.give(bench.uncordon())
    assert bench.state()["status"] == "up"
    assert bench.state()["namespaces"] == NAMED["namespaces"]


def test_a_build_in_the_same_batch_as_a_cordon_is_refused(bench: CordonBench) -> None:
    answers = bench.give(bench.build("vm-1"), bench.cordon(), bench.build("vm-2"), bench.end("vm-1"))
    assert [answer.refused for answer in answers] == ["", "", "status", ""]
    answers = bench.give(bench.uncordon(), bench.build("vm-2", id="again"))
    assert [answer.refused for answer in answers] == ["", ""]


def test_an_instance_of_a_cordoned_node_is_resized_in_place_and_ended(bench: CordonBench) -> None:
    bench.give(bench.build("vm-1"), bench.cordon())
    assert bench.refused(bench.build("vm-1", id="resize", resources={"VCPU": 2}, in_place=True)) == ""
    assert bench.refused(bench.end("vm-1")) == ""


def test_a_cordon_survives_a_restart_of_its_agent(bench: CordonBench) -> None:
    bench.give(bench.cordon())
    again = bench.restarted()
    assert again.state()["status"] == "draining"
    assert cordon_in(again.state())["why"] == "new disk"
    assert again.refused(again.build("vm-1")) == "status"
    again.give(again.uncordon())
    assert again.restarted().state().get("status", "up") == "up"


def test_a_cordon_is_in_the_report_that_a_resync_asks_for(bench: CordonBench) -> None:
    bench.give(bench.cordon())
    bench.broker.request_resync(Resync())
    before = bench.record().version
    bench.agent.step()
    assert bench.record().version > before
    assert cordon_in(bench.state())["by"] == "ann@host"


def test_repeated_orders_change_nothing(bench: CordonBench) -> None:
    order = bench.cordon()
    bench.give(order)
    version, state = bench.record().version, bench.state()
    bench.clock.advance(5.0)
    for again in (order, bench.cordon("c2")):
        [answer] = bench.give(again)
        assert (answer.refused, answer.version) == ("", version)
    assert bench.state() == state
    bench.give(bench.uncordon())
    version = bench.record().version
    [answer] = bench.give(bench.uncordon("u2"))
    assert (answer.refused, answer.version) == ("", version)


def test_a_newer_cordon_for_another_reason_replaces_name_time_and_reason(bench: CordonBench) -> None:
    bench.give(bench.cordon())
    bench.clock.advance(5.0)
    bench.give(bench.cordon("c2", why="burned down"))
    assert cordon_in(bench.state()) == {
        "by": "ann@host",
        "at": round(bench.clock.time(), 3),
        "why": "burned down",
    }
    bench.give(bench.uncordon())
    assert bench.state()["status"] == "up"


@pytest.mark.parametrize("restarts", [False, True])
def test_a_cordon_that_is_delivered_again_after_an_uncordon_is_harmless(bench: CordonBench, restarts: bool) -> None:
    order = bench.cordon()
    bench.give(order)
    bench.give(bench.uncordon())
    if restarts:
        bench = bench.restarted()
    bench.give(order)
    assert cordon_in(bench.state()) is None
    assert bench.state().get("status", "up") == "up"


def test_an_order_after_its_deadline_changes_nothing_and_is_no_refusal_in_the_nodes_state(bench: CordonBench) -> None:
    late = bench.cordon()
    bench.clock.advance(SOON_S + 1.0)
    version = bench.record().version
    [answer] = bench.give(late)
    assert (answer.refused, answer.at, answer.version) == ("expired", bench.clock.time(), version)
    assert cordon_in(bench.state()) is None
    [answer] = bench.give(bench.cordon("question", left_s=-bench.clock.time()))
    assert answer.refused == "expired"


@pytest.mark.parametrize(
    ("source", "shown"),
    [("up", "draining"), ("draining", "draining"), ("maintenance", "maintenance"), ("down", "down")],
)
def test_the_worse_status_of_source_and_cordon_is_shown(bench: CordonBench, source: str, shown: str) -> None:
    fleet: StaticFleet = bench.source  # type: ignore[assignment]  # the bench of this file has a static fleet
    bench.give(bench.cordon())
    fleet.set_status("n1", source)
    bench.clock.advance(1.0)
    bench.agent.step()
    assert bench.state()["status"] == shown
    assert cordon_in(bench.state()) is not None
    bench.give(bench.uncordon())
    assert bench.state()["status"] == source


def test_no_reading_of_a_source_removes_a_cordon(tmp_path: Path) -> None:
    source = ScriptedSource(["n1"])
    bench = CordonBench(tmp_path, source)
    [answer] = bench.give(bench.cordon())
    assert answer.refused == ""  # a source that takes no orders for instances can be cordoned
    for reading, other in (
        (FullState("n1", {**NODE, "namespaces": {"a": {"b": 1}}}), {"a": {"b": 1}}),
        (StatePatch("n1", {"namespaces": {"a": {"b": 2}}}), {"a": {"b": 2}}),
        (StatePatch("n1", {"status": None, "namespaces": {"a": None}}), {}),
        (StatePatch("n1", {"status": "up", "namespaces": None}), {}),
        (FullState("n1", {**NODE, "status": None}), {}),
        (FullState("n1", NODE), {}),
    ):
        source.readings = [reading]
        bench.clock.advance(1.0)
        bench.agent.step()
        state = bench.state()
        assert state["status"] == "draining"
        assert cordon_in(state)["by"] == "ann@host"
        assert {name: one for name, one in state["namespaces"].items() if name != "nodestate"} == other
    bench.give(bench.uncordon())
    assert bench.state()["status"] == "up"
    assert bench.agent.stats.bad == 0


@pytest.mark.parametrize(("reported", "source"), [(None, "up"), ("maintenance", "maintenance"), ("down", "down")])
def test_a_state_without_the_cordon_is_the_one_that_the_source_gave(
    bench: CordonBench, tmp_path: Path, reported: str | None, source: str
) -> None:
    """An agent that gives its node up to another one keeps the state of its source, and takes the node back with it."""
    bench.give(bench.cordon())
    cordons = Cordons(tmp_path, bench.source.name)
    added = cordons.added_to("n1", {**NAMED, "status": source if reported is None else "up"})
    if reported is not None:
        added = {**added, "status": reported}  # a patch of the source came meanwhile
    assert cordons.removed_from("n1", added) == {**NAMED, "status": source}


def test_an_agent_without_files_refuses_to_cordon_and_says_why() -> None:
    bench = AdmissionBench()
    [answer] = bench.give(Cordon(id="c", node="n1", deadline=2e9, reply_to=bench.courier.reply_to))
    assert answer.refused == "failed"
    assert "keeps no files" in answer.detail
    assert bench.state().get("status", "up") == "up"


def test_a_cordon_that_cannot_be_stored_is_refused_and_not_in_force(
    bench: CordonBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _content: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("nodestate.agent.cordons.write_atomically", full)
        [answer] = bench.give(bench.cordon())
    assert (answer.refused, answer.detail) == ("failed", "the agent can't store the cordon: No space left on device")
    assert bench.refused(bench.build("vm-1")) == ""
    assert bench.refused(bench.cordon()) == ""


@pytest.mark.parametrize("content", [b"", b"{}", b'{"v":2,"source":"given-fleet","cordons":{},"done":{}}', b"\xff"])
def test_an_agent_does_not_start_with_a_damaged_file_of_cordons(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "given-fleet.cordons").write_bytes(content)
    with pytest.raises(ConfigError, match=r"given-fleet\.cordons is damaged .*cordon those nodes again"):
        Cordons(tmp_path, "given-fleet")


def test_orders_to_nodes_are_encoded_and_decoded() -> None:
    for order in (
        Cordon(id="1", node="n1", deadline=5.0, by="ann", why="disk", reply_to="box"),
        Uncordon(id="2", node="n1", deadline=0.0, clock_origin=4.5),
    ):
        assert decode_order(encode(order)) == order


# -- any sequence -----------------------------------------------------------------------------------

NODES = ("n1", "n2")
nodes = st.sampled_from(NODES)
numbers = st.integers(0, 1_000)


class CordonMachine(RuleBasedStateMachine):
    """Orders that are lost, late, repeated and reordered, restarts of the agent, and changes by the source."""

    def __init__(self) -> None:
        super().__init__()
        self._logs = capture_logs()
        self._logs.__enter__()
        self._folder = tempfile.TemporaryDirectory()

    def teardown(self) -> None:
        self._folder.cleanup()
        self._logs.__exit__(None, None, None)

    @initialize()
    def begin(self) -> None:
        self.clock = ManualClock()
        self.broker = MemoryBroker(2, clock=self.clock)
        self.incarnation = 7
        self.status = dict.fromkeys(NODES, "up")
        self.start()
        self.sent: list[Cordon | Uncordon] = []
        self.arriving: list[Cordon | Uncordon] = []
        """Orders that arrived and that the agent has not yet carried out."""
        self.done: set[str] = set()
        self.expected: dict[str, tuple[str, float] | None] = dict.fromkeys(NODES)
        """By node, reason and time of its cordon."""

    def start(self) -> None:
        states = {node: {**NAMED, "status": self.status[node]} for node in NODES}
        self.fleet = StaticFleet(states)
        self.bench = CordonBench(
            Path(self._folder.name), self.fleet, clock=self.clock, broker=self.broker, incarnation=self.incarnation
        )

    @rule(node=nodes, closes=st.booleans(), why=st.sampled_from(["disk", "fire"]), left_s=st.sampled_from([0, 2, 60]))
    def give(self, node: str, closes: bool, why: str, left_s: float) -> None:
        number = f"o{len(self.sent)}"
        order = self.bench.cordon(number, node, why, left_s) if closes else self.bench.uncordon(number, node, left_s)
        self.sent.append(order)

    @rule(which=numbers)
    def deliver(self, which: int) -> None:
        """Deliver any order that was ever sent, for the first time or again."""
        if self.sent:
            order = self.sent[which % len(self.sent)]
            self.bench.courier.send([order], 600.0)
            self.arriving.append(order)

    @rule(seconds=st.sampled_from([0.0, 1.0, 3.0]))
    def step(self, seconds: float) -> None:
        self.clock.advance(seconds)
        now = self.clock.time()
        for order in self.arriving:
            if order.id in self.done or now > order.deadline:
                continue
            self.done.add(order.id)
            if isinstance(order, Uncordon):
                self.expected[order.node] = None
            elif (self.expected[order.node] or ("", 0.0))[0] != order.why:
                self.expected[order.node] = (order.why, round(now, 3))
        self.arriving.clear()
        self.bench.agent.step()

    @rule(node=nodes, status=st.sampled_from(STATUSES))
    def change(self, node: str, status: str) -> None:
        self.status[node] = status
        self.fleet.set_status(node, status)
        self.step(1.0)

    @rule()
    def restart(self) -> None:
        self.arriving.clear()
        self.bench.agent.close()
        self.broker = MemoryBroker(2, clock=self.clock)
        self.incarnation += 1
        self.start()

    @rule()
    def resync(self) -> None:
        self.broker.request_resync(Resync())
        self.step(1.0)

    @invariant()
    def readers_see_each_cordon_and_the_worse_status(self) -> None:
        for node in NODES:
            state, expected = self.bench.state(node), self.expected[node]
            worst = max(self.status[node], "draining", key=STATUSES.index) if expected else self.status[node]
            assert state["status"] == worst
            own = {"mine": 1}
            if expected:
                own = {"mine": 1, "cordon": {"by": "ann@host", "at": expected[1], "why": expected[0]}}  # type: ignore[dict-item]
            assert state["namespaces"] == {"nova": {"service": "nova-compute"}, "nodestate": own}


TestCordons = CordonMachine.TestCase
TestCordons.settings = settings(max_examples=25, stateful_step_count=30)


# -- the sender -------------------------------------------------------------------------------------


@pytest.fixture
def cell(tmp_path: Path) -> SchedulingCell:
    cell, _ = cell_of(2, 1, state_dir=tmp_path)
    return cell


def orders_of(cell: SchedulingCell) -> NodeOrders:
    """A sender of orders with ids of its own."""
    return NodeOrders(cell.broker.courier(), cell.clock, SeededIds(f"operator {cell.rng.random()}"))


def shown_state(cell: SchedulingCell, node: str) -> Mapping[str, Any]:
    cell.run_for(3.0)
    cell.processes[0].scheduler.refresh()
    return cell.processes[0].scheduler.view.nodes[node].state


def test_a_cordoned_node_gets_no_instances_and_an_uncordoned_one_does(cell: SchedulingCell) -> None:
    scheduler = cell.processes[0].scheduler
    [result] = orders_of(cell).cordon(["n0"], by="ann", reason="disk")
    assert result.refused == ""
    assert cordon_in(shown_state(cell, "n0"))["by"] == "ann"
    assert {boot(scheduler, f"i{number}").node for number in range(4)} == {"n1"}
    [result] = orders_of(cell).uncordon(["n0"])
    assert result.refused == ""
    assert shown_state(cell, "n0")["status"] == "up"
    assert boot(scheduler, "large", VCPU).node == "n0"


def test_an_agent_refuses_an_instance_before_any_view_shows_the_cordon(cell: SchedulingCell) -> None:
    freeze_view(cell, cell.processes[0])
    orders_of(cell).cordon(["n0", "n1"], by="ann")
    [outcome] = cell.processes[0].scheduler.boot(parse(wanted("i")))
    assert {refusal.reason for refusal in outcome.refusals} == {"status"}


def test_a_cordon_survives_flushes_of_the_store_and_restarts_of_agent_and_consumer(cell: SchedulingCell) -> None:
    orders_of(cell).cordon(["n0"], by="ann")
    for number in range(2):
        cell.flush_server(number)
        cell.run_for(30.0)
        assert shown_state(cell, "n0")["status"] == "draining"
        cell.restart_agent()
        cell.run_for(30.0)
        assert shown_state(cell, "n0")["status"] == "draining"
    assert boot(cell.processes[0].scheduler, "i").node == "n1"


@pytest.mark.parametrize("ahead_s", [-3600.0, -5.0, 0.0, 5.0, 3600.0])
def test_the_deadline_of_an_order_is_right_by_any_clock_of_its_agent(cell: SchedulingCell, ahead_s: float) -> None:
    """An order that arrives after the sender gave up is void, and one that arrives in time is carried out."""
    cell.agent_clock.ahead_s = ahead_s
    cell.run_for(2.0)
    [result] = orders_of(cell).cordon(["n0"], by="ann")
    assert result.refused == ""
    transit, arrive, kept = cell.broker.transit, cell.broker.transit.arrive, []

    def hold_orders_with_deadline(message: TransitMessage) -> None:
        is_real = message.kind == "order" and getattr(decode_order(message.body), "deadline", 0.0) > 0.0
        kept.append(message) if is_real else arrive(message)

    transit.arrive = hold_orders_with_deadline  # type: ignore[method-assign]  # for this test alone
    [result] = orders_of(cell).uncordon(["n0"], timeout_s=4.0)
    assert result.refused == NO_ANSWER
    transit.arrive = arrive  # type: ignore[method-assign]  # as it was
    cell.run_for(1.0)
    assert kept
    for message in kept:
        transit.arrive(dataclasses.replace(message, expires_at=float("inf")))
    assert shown_state(cell, "n0")["status"] == "draining"


def test_an_order_whose_answer_was_lost_is_sent_again_and_carried_out_once(cell: SchedulingCell) -> None:
    sender = orders_of(cell)
    with losing_answers(cell):
        [result] = sender.cordon(["n0"], by="ann", timeout_s=3.0)
    assert result.refused == NO_ANSWER
    transit, arrive, lost = cell.broker.transit, cell.broker.transit.arrive, []

    def lose_first_answer_to_each_order(message: TransitMessage) -> None:
        first = message.kind == "answer" and len(lost) < 2
        lost.append(message) if first else arrive(message)

    transit.arrive = lose_first_answer_to_each_order  # type: ignore[method-assign]  # for this test alone
    [result] = sender.cordon(["n0"], by="ann")
    assert (result.refused, len(lost)) == ("", 2)


def test_a_node_without_an_agent_is_named_and_others_are_cordoned(cell: SchedulingCell) -> None:
    missing, done = orders_of(cell).cordon(["nowhere", "n1"], by="ann")
    assert (missing.node, missing.refused, missing.version) == ("nowhere", "no-agent", None)
    assert "start its agent" in missing.detail
    assert (done.node, done.refused) == ("n1", "")


def test_an_agent_of_an_earlier_version_must_be_upgraded(cell: SchedulingCell, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = msgspec.msgpack.Decoder(Build | End)
    monkeypatch.setattr("nodestate.model.orders._decode_order", decoder.decode)
    [result] = orders_of(cell).cordon(["n0"], by="ann")
    assert result.refused == "bad-order"
    assert "upgrade the agent" in result.detail


def test_a_stopped_broker_is_named(cell: SchedulingCell) -> None:
    cell.agent_frozen = True
    cell.consumer_frozen = True
    cell.broker.stop()
    [result] = orders_of(cell).cordon(["n0"], by="ann", timeout_s=3.0)
    assert result.refused == NO_ANSWER
    assert "broker" in result.detail


@pytest.mark.parametrize(
    ("nodes", "by", "reason", "field"),
    [(["a b"], "ann", "", "node"), (["n0"], "a" * 256, "", "by"), (["n0"], "ann", "r" * 256, "reason")],
)
def test_a_name_or_text_that_no_order_can_carry_is_refused(
    cell: SchedulingCell, nodes: list[str], by: str, reason: str, field: str
) -> None:
    with pytest.raises(BadRequestError) as refused:
        orders_of(cell).cordon(nodes, by=by, reason=reason)
    assert refused.value.field == field


def test_only_a_signed_order_cordons_a_node_whose_agent_requires_signatures(tmp_path: Path) -> None:
    keys, clock = new_cell_keys(), CooperativeClock()
    broker = MemoryBroker(2, clock=clock)
    sink = broker.sink(OrderAuth("require", FixedKeyring(keys)))
    fleet = StaticFleet({"n1": NODE})
    agent = Agent(
        CONFIG, [fleet], sink, clock, random.Random(1), inbox=sink, incarnation=7, state_dir=tmp_path
    )  # fmt: skip

    def step_agent() -> None:
        clock.busy = True
        agent.step()
        clock.busy = False

    clock.run_others = step_agent
    step_agent()
    [result] = NodeOrders(broker.courier(), clock).cordon(["n1"], by="mallory")
    assert result.refused == "unsigned"
    [result] = NodeOrders(broker.courier(OrderAuth("require", FixedKeyring(keys))), clock).cordon(["n1"], by="ann")
    assert result.refused == ""
    assert agent.publishers["n1"].state()["status"] == "draining"
