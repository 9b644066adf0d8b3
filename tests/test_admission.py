"""Admission by the agent: which orders it carries out or refuses, and that the answer and an event say so."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from harness.waiting import PATIENCE_S
from nodestate.agent.admission import KEPT_REFUSALS_COUNT
from nodestate.agent.agent import Agent
from nodestate.agent.allocation_file import AllocationChange, AllocationFile
from nodestate.agent.incarnation import state_directory
from nodestate.agent.sources import FullState, NodeGone, NodeResources, StatePatch, StateSource
from nodestate.agent.sources.simulated import SimulatedFleet
from nodestate.agent.sources.static_fleet import StaticFleet
from nodestate.config import Config
from nodestate.errors import BrokerUnavailableError, OrderFailedError, SourceUnavailableError
from nodestate.model import MAX_EVENT_BYTES, NodeRecord, Version, fold, parse_event
from nodestate.model.orders import Answer, Build, End, Order
from nodestate.ports import ACTIVATION
from nodestate.testing import ManualClock, MemoryBroker, OrderTransit, TransitMessage
from tests.test_agent import STATE, ScriptedSource

CONFIG = Config(partitions=2, heartbeat_s=10.0)
NODE: dict[str, Any] = {
    "inventory": {"VCPU": {"total": 6, "reserved": 2, "allocation_ratio": 2.0}, "MEMORY_MB": {"total": 1_000}}
}
ANTI = {"group_policy": "anti-affinity"}
SOON_S = 60.0


class AdmissionBench:
    """An agent of some nodes, a scheduler that gives orders, and a consumer that folds the agent's events."""

    def __init__(
        self,
        source: StateSource | None = None,
        *,
        clock: ManualClock | None = None,
        broker: MemoryBroker | None = None,
        state_dir: Path | None = None,
        incarnation: int = 7,
    ) -> None:
        self.clock = clock or ManualClock()
        self.broker = broker or MemoryBroker(CONFIG.partitions, clock=self.clock)
        self.source = source or StaticFleet({"n1": NODE, "n2": NODE})
        sink = self.broker.sink()
        self.agent = Agent(
            CONFIG,
            [self.source],
            sink,
            self.clock,
            random.Random(1),
            inbox=sink,
            incarnation=incarnation,
            state_dir=state_dir,
        )
        self.courier = self.broker.courier()
        self._consumer = self.broker.source(range(CONFIG.partitions))
        self._records: dict[str, NodeRecord] = {}
        self.agent.step()

    def build(self, instance: str, node: str = "n1", **more: Any) -> Build:
        asked = {"id": f"build {instance}", "deadline": self.clock.time() + SOON_S, "resources": {"VCPU": 1}, **more}
        return Build(node=node, instance=instance, reply_to=self.courier.reply_to, **asked)

    def end(self, instance: str, node: str = "n1") -> End:
        return End(id=f"end {instance}", node=node, instance=instance, reply_to=self.courier.reply_to)

    def give(self, *orders: Order) -> list[Answer]:
        """Send orders, let the agent step once, and return the answers."""
        self.courier.send(orders, SOON_S)
        self.agent.step()
        return self.courier.answers(0)

    def refused(self, order: Order) -> str:
        """Give one order. Returns the reason of its refusal; empty if it was carried out."""
        [answer] = self.give(order)
        return answer.refused

    def record(self, node: str = "n1") -> NodeRecord:
        """The node's record, as a consumer of the cell folds it."""
        with suppress(BrokerUnavailableError):  # raised once after an outage of the broker
            self._consumer.receive(0, 0)
        deliveries = self._consumer.receive(10_000, 0)
        self._consumer.ack(deliveries)
        for delivery in deliveries:
            if not delivery.body.startswith(ACTIVATION):
                event = parse_event(delivery.body)
                record = fold(self._records.get(event.node), event).record
                assert record is not None
                self._records[event.node] = record
        return self._records[node]

    def state(self, node: str = "n1") -> dict[str, Any]:
        return self.record(node).state()

    def listed_refusals(self, node: str = "n1") -> Mapping[str, Any]:
        refusals: Mapping[str, Any] = self.state(node).get("namespaces", {}).get("nodestate", {}).get("refused", {})
        return refusals


@pytest.fixture
def bench() -> AdmissionBench:
    return AdmissionBench()


# -- orders that are carried out ------------------------------------------------------------------


def test_an_order_that_fits_is_built_and_the_version_of_its_answer_shows_it(bench: AdmissionBench) -> None:
    order = bench.build("vm-1", resources={"VCPU": 2, "MEMORY_MB": 100}, group="web", hints=ANTI)
    [answer] = bench.give(order)
    at, origin = bench.clock.time(), bench.clock.time() - bench.clock.monotonic()
    assert answer == Answer(
        id="build vm-1", node="n1", instance="vm-1", incarnation=7, generation=2, at=at, clock_origin=origin
    )
    assert bench.record().version == answer.version
    assert bench.state()["allocations"] == {
        "vm-1": {"resources": {"VCPU": 2, "MEMORY_MB": 100}, "group": "web", "hints": ANTI}
    }
    assert bench.state()["usage"] == {"VCPU": 2, "MEMORY_MB": 100}
    assert (bench.agent.stats.admitted, bench.agent.stats.refused) == (1, 0)


class WatchedTransit(OrderTransit):
    """Notes how many events the broker has queued whenever an order or an answer is sent."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []
        self._broker = broker

    def send(self, message: TransitMessage) -> None:
        queued = sum(len(self._broker.queued(partition)) for partition in range(self._broker.partitions))
        self.seen.append((message.kind, queued))
        super().send(message)


def test_the_event_is_at_the_broker_before_the_answer() -> None:
    """A scheduler waits for a view with at least the answer's version, so its event must be under way."""
    clock = ManualClock()
    broker = MemoryBroker(CONFIG.partitions, clock=clock)
    broker.transit = transit = WatchedTransit(broker)
    bench = AdmissionBench(clock=clock, broker=broker)
    bench.give(bench.build("vm-1"), bench.build("vm-2", resources={"VCPU": 9}))
    seen = [(kind, queued) for kind, queued in transit.seen if kind != "presence"]
    [(_, before), *_] = seen
    assert seen == [("order", before)] * 2 + [("answer", before + 2)] * 2


def test_an_end_frees_the_resources_of_the_instance(bench: AdmissionBench) -> None:
    bench.give(bench.build("vm-1", resources={"VCPU": 8}))
    [answer] = bench.give(bench.end("vm-1"))
    assert (answer.refused, answer.version) == ("", Version(7, 3))
    assert bench.state()["allocations"] == {}
    assert bench.state()["usage"] == {"VCPU": 0, "MEMORY_MB": 0}
    assert bench.agent.stats.ended == 1


def test_orders_of_one_step_are_checked_against_each_other(bench: AdmissionBench) -> None:
    """The node has eight virtual CPUs. The third order must be checked against the rest that the first two left."""
    orders = [bench.build(f"vm-{number}", resources={"VCPU": 3}) for number in range(4)]
    answers = bench.give(*orders[:3], bench.end("vm-0"), orders[3])
    assert [answer.refused for answer in answers] == ["", "", "no-room", "", ""]
    assert bench.state()["allocations"].keys() == {"vm-1", "vm-3"}
    assert bench.state()["usage"]["VCPU"] == 6


# -- orders that come twice, late or out of order -------------------------------------------------


def test_a_repeated_build_is_carried_out_once(bench: AdmissionBench) -> None:
    order = bench.build("vm-1", resources={"VCPU": 5})
    first, again = bench.give(order, order)
    [later] = bench.give(order)
    assert first == again == later
    assert bench.record().version == first.version
    assert bench.agent.stats.admitted == 1


def test_a_repeated_build_is_answered_as_done_even_after_its_deadline(bench: AdmissionBench) -> None:
    """The first answer may have been lost. After "expired" a scheduler would build the instance elsewhere."""
    order = bench.build("vm-1")
    bench.give(order)
    bench.clock.advance(2 * SOON_S)
    assert bench.refused(order) == ""
    assert bench.listed_refusals() == {}


def test_an_end_of_an_unknown_instance_is_done_without_an_event(bench: AdmissionBench) -> None:
    before = bench.record().version
    [answer] = bench.give(bench.end("vm-1"))
    assert (answer.refused, answer.version) == ("", before)
    assert bench.record().version == before
    assert bench.agent.stats.ended == 0


def test_an_end_that_expects_one_order_does_not_end_the_instance_of_another(bench: AdmissionBench) -> None:
    """The End may come late: another order may have built the instance again, or before."""
    bench.give(bench.build("vm-1", hints={"order": "second"}), bench.build("vm-2"))
    for instance in ("vm-1", "vm-2"):
        assert bench.refused(structs.replace(bench.end(instance), of="first")) == ""
    assert bench.state()["allocations"].keys() == {"vm-1", "vm-2"}
    assert bench.refused(structs.replace(bench.end("vm-1"), of="second")) == ""
    assert bench.state()["allocations"].keys() == {"vm-2"}


# -- a resize -------------------------------------------------------------------------------------


def test_a_second_build_with_other_amounts_replaces_the_first(bench: AdmissionBench) -> None:
    bench.give(bench.build("vm-1", resources={"VCPU": 5, "MEMORY_MB": 100}, group="web", hints=ANTI))
    [answer] = bench.give(bench.build("vm-1", resources={"VCPU": 8}, hints={"a": 1}))
    assert (answer.refused, answer.version) == ("", bench.record().version)
    assert bench.state()["allocations"] == {"vm-1": {"resources": {"VCPU": 8}, "hints": {"a": 1}}}
    assert bench.state()["usage"] == {"VCPU": 8, "MEMORY_MB": 0}


def test_a_resize_that_does_not_fit_changes_nothing(bench: AdmissionBench) -> None:
    bench.give(bench.build("vm-1", resources={"VCPU": 5}), bench.build("vm-2", resources={"VCPU": 3}))
    assert bench.refused(bench.build("vm-1", resources={"VCPU": 6})) == "no-room"
    assert bench.state()["allocations"]["vm-1"] == {"resources": {"VCPU": 5}}
    assert bench.state()["usage"]["VCPU"] == 8


def test_an_overcommitted_node_accepts_an_order_that_reduces_its_usage() -> None:
    """The node's inventory shrank. An order that reduces its usage must not be refused."""
    full = {
        "inventory": {"VCPU": {"total": 2}},
        "usage": {"VCPU": 4},
        "allocations": {"vm": {"resources": {"VCPU": 4}}},
    }
    bench = AdmissionBench(StaticFleet({"n1": full}))
    assert bench.refused(bench.build("vm", resources={"VCPU": 3})) == ""
    assert bench.refused(bench.build("vm", resources={"VCPU": 4})) == "no-room"


def test_a_change_in_place_of_an_unknown_instance_is_refused() -> None:
    """A change of an existing instance is allowed also on a node that is not up."""
    fleet = StaticFleet({"n1": NODE})
    bench = AdmissionBench(fleet)
    assert bench.refused(bench.build("vm-1", in_place=True)) == "not-here"
    bench.give(bench.build("vm-1"))
    fleet.set_status("n1", "draining")
    bench.clock.advance(1.0)
    bench.agent.step()
    assert bench.refused(bench.build("vm-1", resources={"VCPU": 2}, in_place=True)) == ""
    assert bench.refused(bench.build("vm-1", resources={"VCPU": 9}, in_place=True)) == "no-room"
    assert bench.state()["allocations"] == {"vm-1": {"resources": {"VCPU": 2}}}


def test_a_late_change_in_place_does_not_undo_a_later_order() -> None:
    """A late change in place by the first order would undo a resize that was confirmed to its user."""
    bench = AdmissionBench()
    bench.give(bench.build("vm-1", hints={"order": "first"}))
    bench.give(bench.build("vm-1", resources={"VCPU": 2}, hints={"order": "second"}, in_place=True))
    late = bench.build("vm-1", hints={"order": "first", "placed": True}, in_place=True, of="first")
    assert bench.refused(late) == "not-here"
    assert bench.state()["allocations"] == {"vm-1": {"resources": {"VCPU": 2}, "hints": {"order": "second"}}}


# -- orders that are refused ----------------------------------------------------------------------


def test_a_build_beyond_the_nodes_capacity_is_refused(bench: AdmissionBench) -> None:
    """I8: the agent refuses the order even if schedulers have a wrong view of the node."""
    assert bench.refused(bench.build("vm-1", resources={"VCPU": 8})) == ""
    [answer] = bench.give(bench.build("vm-2", resources={"VCPU": 1}))
    assert (answer.refused, answer.detail) == ("no-room", "the order needs 1 more of VCPU, and 0 of 8 are left")
    assert bench.refused(bench.build("vm-3", resources={"CUSTOM_FPGA": 1})) == "no-room"
    assert bench.refused(bench.build("vm-4", "n2", resources={"VCPU": 1})) == ""


def test_a_build_is_refused_after_its_deadline(bench: AdmissionBench) -> None:
    order = bench.build("vm-1", deadline=bench.clock.time() + 2.0)
    bench.clock.advance(2.0)
    assert bench.refused(order) == ""
    bench.give(bench.end("vm-1"))
    bench.clock.advance(0.1)
    assert bench.refused(order) == "expired"
    assert bench.state()["allocations"] == {}


@pytest.mark.parametrize("status", ["draining", "maintenance", "down"])
def test_only_a_node_that_is_up_accepts_builds_and_every_node_accepts_ends(status: str) -> None:
    fleet = StaticFleet({"n1": NODE})
    bench = AdmissionBench(fleet)
    bench.give(bench.build("vm-1"))
    fleet.set_status("n1", status)
    bench.clock.advance(1.0)
    bench.agent.step()
    assert bench.refused(bench.build("vm-2")) == "status"
    assert bench.refused(bench.build("vm-1", resources={"VCPU": 2})) == "status"
    assert bench.refused(bench.end("vm-1")) == ""


@pytest.mark.parametrize(("hints", "may_be"), [(ANTI, 1), ({**ANTI, "max_per_node": 3}, 3)])
def test_a_node_has_no_more_members_of_a_group_than_its_policy_allows(
    bench: AdmissionBench, hints: dict[str, Any], may_be: int
) -> None:
    orders = [bench.build(f"vm-{number}", group="web", hints=hints) for number in range(5)]
    assert [answer.refused for answer in bench.give(*orders)] == [""] * may_be + ["group"] * (5 - may_be)
    assert bench.refused(bench.build("other", group="db", hints=hints)) == ""
    assert bench.refused(bench.build("elsewhere", "n2", group="web", hints=hints)) == ""
    assert (
        bench.refused(structs.replace(orders[0], resources={"VCPU": 2})) == ""
    )  # the instance does not count against itself
    bench.give(bench.end("vm-0"))
    assert bench.refused(orders[4]) == ""


@pytest.mark.parametrize("policy", ["affinity", "soft-affinity", "soft-anti-affinity", None])
def test_group_policies_that_depend_on_other_nodes_are_not_checked_by_the_agent(
    bench: AdmissionBench, policy: str | None
) -> None:
    hints = {} if policy is None else {"group_policy": policy}
    orders = [bench.build(f"vm-{number}", group="web", hints=hints) for number in range(3)]
    assert [answer.refused for answer in bench.give(*orders)] == [""] * 3


@pytest.mark.parametrize(
    "other", [{"group_policy": "soft-anti-affinity"}, {"group_policy": "affinity"}, {**ANTI, "max_per_node": 2}]
)
def test_the_agent_refuses_a_member_with_another_policy_than_a_member_on_the_node(
    bench: AdmissionBench, other: dict[str, Any]
) -> None:
    for first, second in ((ANTI, other), (other, ANTI)):
        assert bench.refused(bench.build("vm-1", group="web", hints=first)) == ""
        [answer] = bench.give(bench.build("vm-2", group="web", hints=second))
        assert answer.refused == "group"
        assert answer.detail.startswith("vm-1 of group web has the policy ")
        assert bench.refused(bench.build("vm-3", group="db", hints=second)) == ""
        bench.give(bench.end("vm-1"), bench.end("vm-3"))


def test_members_with_two_policies_that_share_a_node_can_be_changed_in_place(bench: AdmissionBench) -> None:
    """They were built by an agent that did not compare policies."""
    for instance, policy in (("vm-1", "anti-affinity"), ("vm-2", "affinity"), ("vm-3", "anti-affinity")):
        hints = {"group_policy": policy}
        bench.source.build("n1", instance, {"resources": {"VCPU": 1}, "group": "web", "hints": hints})  # type: ignore[attr-defined]  # a StaticFleet
    resize = bench.build("vm-1", group="web", hints=ANTI, resources={"VCPU": 2}, in_place=True)
    assert bench.refused(resize) == ""


def test_an_instance_is_resized_on_a_node_with_the_largest_number_of_allocations(
    bench: AdmissionBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resize adds no allocation."""
    monkeypatch.setattr("nodestate.agent.admission.MAX_ALLOCATIONS_COUNT", 2)
    assert [answer.refused for answer in bench.give(bench.build("vm-1"), bench.build("vm-2"))] == ["", ""]
    assert bench.refused(bench.build("vm-3")) == "no-room"
    assert bench.refused(bench.build("vm-1", resources={"VCPU": 2}, in_place=True)) == ""


@pytest.mark.parametrize("limit", [0, -1, "two", 1.5, True, None])
def test_an_invalid_group_limit_is_a_bad_order(bench: AdmissionBench, limit: object) -> None:
    assert bench.refused(bench.build("vm-1", group="web", hints={**ANTI, "max_per_node": limit})) == "bad-order"


@pytest.mark.parametrize(
    ("units", "vcpu", "refused"),
    [
        ({"max_unit": 4}, 4, ""),
        ({"max_unit": 4}, 5, "no-room"),
        ({"min_unit": 2}, 1, "no-room"),
        ({"step_size": 2}, 3, "no-room"),
        ({"min_unit": 2, "max_unit": 6, "step_size": 2}, 6, ""),
    ],
)
def test_an_amount_outside_the_units_of_the_node_is_refused(units: dict[str, int], vcpu: int, refused: str) -> None:
    """Regression: 40 processors were built on 4 processors times 16."""
    inventory = {"VCPU": {"total": 4, "allocation_ratio": 16.0, **units}}
    bench = AdmissionBench(StaticFleet({"n1": {"inventory": inventory}}))
    assert bench.refused(bench.build("vm", resources={"VCPU": vcpu})) == refused


def test_an_amount_that_does_not_change_may_be_outside_the_units_of_the_node() -> None:
    """The inventory may have changed since the instance was built: its hints and its other amounts still can change."""
    node = {
        "inventory": {"VCPU": {"total": 8, "max_unit": 2}, "MEMORY_MB": {"total": 100}},
        "usage": {"VCPU": 4, "MEMORY_MB": 10},
        "allocations": {"vm": {"resources": {"VCPU": 4, "MEMORY_MB": 10}}},
    }
    bench = AdmissionBench(StaticFleet({"n1": node}))
    for vcpu, memory, refused in ((4, 20, ""), (4, 5, ""), (3, 5, "no-room"), (5, 5, "no-room"), (2, 5, "")):
        order = bench.build("vm", resources={"VCPU": vcpu, "MEMORY_MB": memory}, in_place=True, id=f"{vcpu} {memory}")
        assert bench.refused(order) == refused, (vcpu, memory)


@pytest.mark.parametrize(
    ("hints", "refused"),
    [
        ({}, "status"),
        ({"tolerations": ["slow"]}, "status"),
        ({"tolerations": "gpu slow"}, "status"),
        ({"tolerations": None}, "status"),
        ({"tolerations": ["gpu", "slow"]}, ""),
    ],
)
def test_a_tainted_node_refuses_orders_that_do_not_tolerate_all_of_its_taints(
    hints: dict[str, Any], refused: str
) -> None:
    """The scheduler may have chosen the node on a view without the taint. An instance that is there already stays, and
    may be changed in place.
    """
    source = StaticFleet(
        {"n1": {**NODE, "taints": ["slow", "gpu"], "allocations": {"old": {"resources": {"VCPU": 1}}}}}
    )
    bench = AdmissionBench(source)
    assert bench.refused(bench.build("vm", hints=hints)) == refused
    assert bench.refused(bench.build("old", resources={"VCPU": 2}, in_place=True)) == ""


def test_an_order_for_a_node_that_left_is_refused_as_unknown_node(bench: AdmissionBench) -> None:
    bench.agent.leave()
    [answer] = bench.give(bench.build("vm-1"))
    assert (answer.refused, answer.version) == ("unknown-node", Version(0, 0))
    assert bench.agent.stats.bad == 0


def test_the_agent_stops_listening_for_orders_of_a_node_that_is_gone() -> None:
    source = ScriptedSource(("n1", "n2"))
    bench = AdmissionBench(source)
    source.readings = [NodeGone("n1")]
    bench.clock.advance(1.0)
    bench.agent.step()
    assert bench.refused(bench.build("vm-1")) == "no-agent"
    source.readings = [FullState("n1", STATE)]
    bench.clock.advance(1.0)
    bench.agent.step()
    assert bench.refused(bench.build("vm-1")) == "failed"


def test_an_order_for_a_source_that_takes_no_orders_fails() -> None:
    bench = AdmissionBench(ScriptedSource(("n1",)))
    [answer] = bench.give(bench.build("vm-1"))
    assert (answer.refused, answer.detail) == ("failed", "the source of n1 takes no orders")
    assert answer.version == bench.record().version


def test_allocations_never_grow_beyond_the_size_of_a_report(bench: AdmissionBench) -> None:
    """An instance that no report can hold would run without any scheduler knowing of it."""
    hints = {"user_data": "x" * 65_000}
    refused = [bench.refused(bench.build(f"vm-{number}", resources={}, hints=hints)) for number in range(5)]
    assert refused == ["", "", "", "no-room", "no-room"]
    together = AdmissionBench()
    orders = [together.build(f"vm-{number}", resources={}, hints=hints) for number in range(5)]
    assert [answer.refused for answer in together.give(*orders)] == refused
    assert len(together.record().body) < MAX_EVENT_BYTES
    assert together.agent.stats.bad == 0


# -- answers and events ---------------------------------------------------------------------------


def test_a_refusal_is_listed_in_the_nodes_state(bench: AdmissionBench) -> None:
    """Other schedulers learn that the node is fuller than they think, and that the claim is no longer needed."""
    [answer] = bench.give(bench.build("vm-1", resources={"VCPU": 9}))
    assert bench.record().version == answer.version == Version(7, 2)
    at = bench.clock.time()
    assert bench.listed_refusals() == {"build vm-1": {"reason": "no-room", "instance": "vm-1", "at": at}}
    assert bench.state()["allocations"] == {}
    assert (bench.agent.stats.admitted, bench.agent.stats.refused) == (0, 1)


def test_a_nodes_state_lists_only_the_newest_refusals(bench: AdmissionBench) -> None:
    orders = [bench.build(f"vm-{number}", resources={"VCPU": 9}) for number in range(KEPT_REFUSALS_COUNT + 3)]
    bench.give(*orders)
    assert set(bench.listed_refusals()) == {order.id for order in orders[3:]}


def test_a_repeated_refusal_makes_no_new_event(bench: AdmissionBench) -> None:
    order = bench.build("vm-1", resources={"VCPU": 9})
    [first] = bench.give(order)
    [again] = bench.give(order)
    assert first == again
    assert bench.record().version == first.version


def test_refusals_stay_in_the_state_of_a_source_that_gives_full_states() -> None:
    source = ScriptedSource(("n1",))
    bench = AdmissionBench(source)
    bench.give(bench.build("vm-1"))
    source.readings = [FullState("n1", {**STATE, "usage": {"VCPU": 3}, "namespaces": {"nova": {"a": 1}}})]
    bench.clock.advance(1.0)
    bench.agent.step()
    state = bench.state()
    assert state["usage"] == {"VCPU": 3}
    assert state["namespaces"].keys() == {"nova", "nodestate"}
    assert set(bench.listed_refusals()) == {"build vm-1"}
    assert bench.agent.stats.bad == 0


def test_an_order_without_a_reply_queue_is_carried_out(bench: AdmissionBench) -> None:
    assert bench.give(Build(id="1", node="n1", instance="vm-1", resources={}, deadline=2e9)) == []
    assert bench.state()["allocations"] == {"vm-1": {"resources": {}}}


def test_a_dead_node_publishes_nothing_and_answers_no_order(bench: AdmissionBench) -> None:
    fleet = bench.source
    assert isinstance(fleet, StaticFleet)
    fleet.kill("n1")
    bench.clock.advance(1.0)
    bench.agent.step()
    before = bench.record().version
    assert [answer.node for answer in bench.give(bench.build("vm-1"), bench.build("vm-2", "n2"))] == ["n2"]
    heartbeats = bench.agent.stats.heartbeats
    for _ in range(30):
        bench.clock.advance(1.0)
        bench.agent.step()
    assert bench.agent.stats.heartbeats - heartbeats == 3  # of the other node
    assert bench.record().version == before
    fleet.revive("n1")
    bench.clock.advance(1.0)
    bench.agent.step()
    assert bench.refused(bench.build("vm-1")) == ""


# -- orders that fail -----------------------------------------------------------------------------


class FailingFleet(StaticFleet):
    """A fleet whose ``build`` or ``resources_of`` fails, as ``failing`` says."""

    failing = ""

    def build(self, node: str, instance: str, allocation: dict[str, Any]) -> FullState | StatePatch:
        if self.failing == "build":
            raise OrderFailedError(self.name, "no such disk")
        return super().build(node, instance, allocation)

    def resources_of(self, node: str) -> NodeResources:
        if self.failing == "resources_of":
            raise SourceUnavailableError(self.name, "connection refused")
        return super().resources_of(node)


@pytest.mark.parametrize(("failing", "cause"), [("build", "no such disk"), ("resources_of", "connection refused")])
def test_an_order_that_the_hypervisor_could_not_carry_out_is_refused_as_failed(failing: str, cause: str) -> None:
    fleet = FailingFleet({"n1": NODE})
    bench = AdmissionBench(fleet)
    fleet.failing = failing
    [answer] = bench.give(bench.build("vm-1"))
    assert answer.refused == "failed"
    assert cause in answer.detail
    fleet.failing = ""
    assert bench.refused(bench.build("vm-1")) == ""


class FullDisk(AllocationFile):
    """An allocation file whose disk is full while ``full`` is True."""

    full = False

    def save(self, changes: Sequence[AllocationChange]) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        super().save(changes)


def test_an_order_that_could_not_be_stored_is_undone_and_refused(tmp_path: Path) -> None:
    """Otherwise a restart of the agent would lose an instance that it had confirmed."""
    disk = FullDisk(tmp_path, "fleet")
    bench = AdmissionBench(StaticFleet({"n1": NODE, "n2": NODE}, allocations=disk))
    bench.give(bench.build("old", resources={"VCPU": 3}), bench.build("kept", resources={"VCPU": 1}))
    before = bench.state()
    disk.full = True
    answers = bench.give(
        bench.build("vm-1"), bench.build("vm-1"), bench.build("old", resources={"VCPU": 5}), bench.end("kept")
    )
    assert [(answer.refused, "No space" in answer.detail) for answer in answers] == [("failed", True)] * 4
    assert (bench.state()["allocations"], bench.state()["usage"]) == (before["allocations"], before["usage"])
    assert bench.source.state("n1")["allocations"] == before["allocations"]
    assert bench.source.resources_of("n1").usage == before["usage"]
    disk.full = False
    assert bench.refused(bench.build("vm-1", resources={"VCPU": 4})) == ""
    bench.agent.close()
    again = StaticFleet({"n1": NODE}, allocations=AllocationFile(tmp_path, "fleet"))
    [reading] = again.poll(0.0)
    assert reading.state["allocations"] == bench.state()["allocations"]
    again.close()


# -- random sequences of orders -------------------------------------------------------------------

INSTANCES = [f"vm-{number}" for number in range(6)]
AMOUNTS = st.fixed_dictionaries({}, optional={"VCPU": st.integers(0, 9), "MEMORY_MB": st.integers(0, 600)})


@st.composite
def actions(draw: st.DrawFn) -> tuple[str, Any]:
    instance, node = draw(st.sampled_from(INSTANCES)), draw(st.sampled_from(["n1", "n2"]))
    what = draw(st.sampled_from(["build", "build", "build", "end", "again", "time"]))
    if what == "build":
        group = draw(st.sampled_from([None, "web", "db"]))
        return what, (instance, node, draw(AMOUNTS), group, draw(st.integers(-1, 90)))
    return what, (instance, node, draw(st.integers(0, 20)))


@given(st.lists(st.lists(actions(), max_size=6), max_size=12))
def test_no_sequence_of_orders_exceeds_a_nodes_capacity_or_a_groups_limit(
    steps: Sequence[Sequence[tuple[str, Any]]],
) -> None:
    """I8. Usage is always the sum of the allocations, on the node and in the folded record."""
    bench = AdmissionBench()
    limit = {"web": 1, "db": 2}
    given_orders: list[Order] = []
    admitted: dict[tuple[str, str], Build] = {}
    for step in steps:
        orders: list[Order] = []
        for what, about in step:
            if what == "build":
                instance, node, resources, group, left_s = about
                hints = {} if group is None else {**ANTI, "max_per_node": limit[group]}
                deadline = bench.clock.time() + left_s
                number = len(given_orders) + len(orders)
                orders.append(
                    bench.build(
                        instance, node, id=f"{number}", resources=resources, group=group, hints=hints, deadline=deadline
                    )
                )
            elif what == "end":
                orders.append(bench.end(about[0], about[1]))
            elif what == "again" and given_orders:
                orders.append(given_orders[about[2] % len(given_orders)])
            else:
                bench.clock.advance(about[2])
        given_orders += orders
        answers = bench.give(*orders)
        assert [answer.id for answer in answers] == [order.id for order in orders]
        for order, answer in zip(orders, answers, strict=True):
            if not answer.refused and isinstance(order, Build):
                admitted[order.node, order.instance] = order
            elif not answer.refused:
                admitted.pop((order.node, order.instance), None)
            assert answer.version <= bench.record(order.node).version
        for node in ("n1", "n2"):
            state = bench.state(node)
            assert state["allocations"] == {
                instance: expected(order) for (where, instance), order in admitted.items() if where == node
            }
            for name, capacity in {"VCPU": 8, "MEMORY_MB": 1_000}.items():
                used = sum(one["resources"].get(name, 0) for one in state["allocations"].values())
                assert state["usage"][name] == used <= capacity
            for group, most in limit.items():
                assert sum(one.get("group") == group for one in state["allocations"].values()) <= most
            assert len(bench.listed_refusals(node)) <= KEPT_REFUSALS_COUNT
    assert bench.agent.stats.bad == 0


def expected(order: Build) -> dict[str, Any]:
    allocation: dict[str, Any] = {"resources": order.resources}
    if order.group is not None:
        allocation |= {"group": order.group, "hints": order.hints}
    return allocation


# -- outages of the broker ------------------------------------------------------------------------


@pytest.mark.parametrize("lose", [True, False])
def test_a_lost_answer_is_replaced_by_the_nodes_state_and_by_repeating_the_order(
    bench: AdmissionBench, lose: bool
) -> None:
    """The event may be lost as well. The next report shows the instance, and the repeated order is answered as done."""
    bench.broker.confirming = False
    order = bench.build("vm-1")
    bench.courier.send([order], SOON_S)
    bench.broker.transit.holding = True
    bench.agent.step()
    assert [letter.kind for letter in bench.broker.transit.under_way] == ["answer"]
    bench.broker.stop(lose_unconfirmed=lose)
    bench.clock.advance(1.0)
    bench.agent.step()
    bench.broker.start()
    bench.broker.transit.holding, bench.broker.confirming = False, True
    for _ in range(20):
        bench.clock.advance(1.0)
        bench.agent.step()
    assert bench.state()["allocations"] == {"vm-1": {"resources": {"VCPU": 1}}}
    with pytest.raises(BrokerUnavailableError):
        bench.courier.answers(0)
    [answer] = bench.give(structs.replace(order, reply_to=bench.courier.reply_to))
    assert (answer.refused, answer.version) == ("", bench.record().version)
    assert bench.agent.stats.admitted == 1


def test_orders_that_waited_at_a_lost_connection_are_lost_and_later_ones_arrive(bench: AdmissionBench) -> None:
    bench.courier.send([bench.build("vm-1")], SOON_S)
    bench.broker.stop()
    for _ in range(5):
        bench.clock.advance(1.0)
        bench.agent.step()
    bench.broker.start()
    for _ in range(20):
        bench.clock.advance(1.0)
        bench.agent.step()
    assert bench.state()["allocations"] == {}  # the order was lost with its connection
    with pytest.raises(BrokerUnavailableError):
        bench.courier.answers(0)
    assert bench.refused(bench.build("vm-2")) == ""  # the agent listens again


# -- an agent that is killed ----------------------------------------------------------------------

AGENT_THAT_DIES = """
import os, random, signal, sys
from nodestate.agent.agent import Agent
from nodestate.agent.allocation_file import AllocationFile
from nodestate.agent.incarnation import state_directory
from nodestate.agent.sources.simulated import SimulatedFleet
from nodestate.config import Config
from nodestate.model.orders import Build
from nodestate.ports import SystemClock
from nodestate.testing import MemoryBroker, MemorySink

config, where = Config(cell="kill", state_dir=sys.argv[1]), sys.argv[2]

def die(at):
    if where == at:
        os.kill(os.getpid(), signal.SIGKILL)

class Dying(AllocationFile):
    def save(self, changes):
        die("before it is stored")
        super().save(changes)
        die("before it is published")

class DyingSink(MemorySink):
    def answer(self, queue, answer):
        die("before it is answered")

broker = MemoryBroker(config.partitions)
fleet = SimulatedFleet(3, changes_per_s=0.0, allocations=Dying(state_directory(config), "compute-fleet-0"))
sink = DyingSink(broker)
agent = Agent(config, [fleet], sink, SystemClock(), random.Random(1), inbox=sink)
agent.step()
hints = {"group_policy": "anti-affinity", "anything": [1, None]}
order = Build(id="1", node="compute-0001", instance="vm-1", resources={"VCPU": 2}, group="web", hints=hints,
              deadline=2e9, reply_to="box")
broker.courier().send([order], 60.0)
print("told", flush=True)
agent.step()
"""


@pytest.mark.parametrize(
    ("where", "there"),
    [("before it is stored", False), ("before it is published", True), ("before it is answered", True)],
)
def test_an_instance_stored_before_the_agent_was_killed_is_reported_by_the_next_agent(
    tmp_path: Path, where: str, there: bool
) -> None:
    """I10. The scheduler got no answer and repeats the order, which is answered as done."""
    command = [sys.executable, "-c", AGENT_THAT_DIES, str(tmp_path), where]
    died = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False)  # noqa: S603 - our own script
    assert (died.returncode, died.stdout) == (-signal.SIGKILL, b"told\n"), died.stderr
    hints = {"group_policy": "anti-affinity", "anything": [1, None]}
    asked = {"resources": {"VCPU": 2}, "group": "web", "hints": hints}
    kept = AllocationFile(state_directory(Config(cell="kill", state_dir=str(tmp_path))), "compute-fleet-0")
    bench = AdmissionBench(SimulatedFleet(3, changes_per_s=0.0, allocations=kept))
    first = bench.record("compute-0001")
    assert first.version == Version(7, 1)
    assert first.state()["allocations"].get("vm-1") == (asked if there else None)
    [answer] = bench.give(bench.build("vm-1", "compute-0001", deadline=0.0 if there else 2e9, **asked))
    assert (answer.refused, answer.version) == ("", Version(7, 1 if there else 2))
    assert bench.state("compute-0001")["allocations"]["vm-1"] == asked
    bench.agent.close()


def test_simulated_tasks_make_room_for_admitted_instances(tmp_path: Path) -> None:
    """The same seed begins with the same tasks, even if the last incarnation ended them to make room."""
    fleet = SimulatedFleet(1, changes_per_s=0.0, allocations=AllocationFile(tmp_path, "fleet"))
    bench = AdmissionBench(fleet)
    [name] = fleet.nodes()
    bench.give(*[bench.end(task, name) for task in bench.state(name)["allocations"]])
    capacity = {kind: one["total"] - one.get("reserved", 0) for kind, one in bench.state(name)["inventory"].items()}
    assert bench.refused(bench.build("vm-1", name, resources={"MEMORY_MB": capacity["MEMORY_MB"] - 4_096})) == ""
    bench.agent.close()
    again = AdmissionBench(SimulatedFleet(1, changes_per_s=0.0, allocations=AllocationFile(tmp_path, "fleet")))
    state = again.state(name)
    assert "vm-1" in state["allocations"]
    used = sum(one["resources"].get("MEMORY_MB", 0) for one in state["allocations"].values())
    assert state["usage"]["MEMORY_MB"] == used <= capacity["MEMORY_MB"]
    again.agent.close()


def test_an_instance_that_another_order_built_is_not_replaced(bench: AdmissionBench) -> None:
    """A late order would replace the instance of a later one, and its End would then end that instance."""
    assert bench.refused(bench.build("vm-1", hints={"order": "o2"})) == ""
    late = bench.build("vm-1", id="late", resources={"VCPU": 2}, hints={"order": "o1"})
    assert bench.refused(late) == "here"
    assert bench.state()["allocations"]["vm-1"] == {"resources": {"VCPU": 1}, "hints": {"order": "o2"}}
    assert bench.refused(bench.build("vm-1", id="again", hints={"order": "o2"})) == ""
