"""The agent's last word: what it takes on, what it refuses, and that both are told by answer and by event."""

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

from nodestate.agent.admission import KEPT_REFUSALS_COUNT
from nodestate.agent.agent import Agent
from nodestate.agent.allocation_file import AllocationChange, AllocationFile
from nodestate.agent.incarnation import state_directory
from nodestate.agent.sources import FullState, NodeGone, Room, StatePatch, StateSource
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


class Site:
    """An agent of some nodes, a scheduler that gives orders, and what a consumer folds of the agent's events."""

    def __init__(
        self,
        source: StateSource | None = None,
        *,
        clock: ManualClock | None = None,
        broker: MemoryBroker | None = None,
    ) -> None:
        self.clock = clock or ManualClock()
        self.broker = broker or MemoryBroker(CONFIG.partitions, clock=self.clock)
        self.source = source or StaticFleet({"n1": NODE, "n2": NODE})
        sink = self.broker.sink()
        self.agent = Agent(CONFIG, [self.source], sink, self.clock, random.Random(1), inbox=sink, incarnation=7)
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
        """Send orders, let the agent step once, and take the answers."""
        self.courier.send(orders, SOON_S)
        self.agent.step()
        return self.courier.answers(0)

    def refused(self, order: Order) -> str:
        """Give one order: the reason of its refusal, empty where it was carried out."""
        [answer] = self.give(order)
        return answer.refused

    def record(self, node: str = "n1") -> NodeRecord:
        """What the cell knows of a node."""
        with suppress(BrokerUnavailableError):  # told once that the broker was away
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

    def told_refusals(self, node: str = "n1") -> Mapping[str, Any]:
        told: Mapping[str, Any] = self.state(node).get("namespaces", {}).get("nodestate", {}).get("refused", {})
        return told


@pytest.fixture
def site() -> Site:
    return Site()


# -- what is carried out --------------------------------------------------------------------------


def test_what_fits_is_built_and_the_answers_version_shows_it(site: Site) -> None:
    order = site.build("vm-1", resources={"VCPU": 2, "MEMORY_MB": 100}, group="web", hints=ANTI)
    [answer] = site.give(order)
    assert answer == Answer(id="build vm-1", node="n1", instance="vm-1", incarnation=7, generation=2)
    assert site.record().version == answer.version
    assert site.state()["allocations"] == {
        "vm-1": {"resources": {"VCPU": 2, "MEMORY_MB": 100}, "group": "web", "hints": ANTI}
    }
    assert site.state()["usage"] == {"VCPU": 2, "MEMORY_MB": 100}
    assert (site.agent.stats.admitted, site.agent.stats.refused) == (1, 0)


class WatchedTransit(OrderTransit):
    """Notes how many events are queued whenever an order or an answer is sent."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []
        self._broker = broker

    def send(self, message: TransitMessage) -> None:
        queued = sum(len(self._broker.queued(partition)) for partition in range(self._broker.partitions))
        self.seen.append((message.kind, queued))
        super().send(message)


def test_the_event_is_at_the_broker_before_the_answer() -> None:
    """Who reads at least the answer's version must not wait for what was never sent."""
    clock = ManualClock()
    broker = MemoryBroker(CONFIG.partitions, clock=clock)
    broker.transit = transit = WatchedTransit(broker)
    site = Site(clock=clock, broker=broker)
    site.give(site.build("vm-1"), site.build("vm-2", resources={"VCPU": 9}))
    [(_, before), *_] = transit.seen
    assert transit.seen == [("order", before)] * 2 + [("answer", before + 2)] * 2


def test_an_end_gives_back_what_the_instance_had(site: Site) -> None:
    site.give(site.build("vm-1", resources={"VCPU": 8}))
    [answer] = site.give(site.end("vm-1"))
    assert (answer.refused, answer.version) == ("", Version(7, 3))
    assert site.state()["allocations"] == {}
    assert site.state()["usage"] == {"VCPU": 0, "MEMORY_MB": 0}
    assert site.agent.stats.ended == 1


def test_orders_of_one_step_see_each_other(site: Site) -> None:
    """Eight virtual CPUs are there; the third of four must not be judged by what was there at the start."""
    orders = [site.build(f"vm-{number}", resources={"VCPU": 3}) for number in range(4)]
    answers = site.give(*orders[:3], site.end("vm-0"), orders[3])
    assert [answer.refused for answer in answers] == ["", "", "no-room", "", ""]
    assert site.state()["allocations"].keys() == {"vm-1", "vm-3"}
    assert site.state()["usage"]["VCPU"] == 6


# -- twice, late, out of order --------------------------------------------------------------------


def test_a_build_that_comes_twice_is_done_once(site: Site) -> None:
    order = site.build("vm-1", resources={"VCPU": 5})
    first, again = site.give(order, order)
    [later] = site.give(order)
    assert first == again == later
    assert site.record().version == first.version
    assert site.agent.stats.admitted == 1


def test_a_build_that_comes_again_when_it_is_overdue_is_still_answered_as_done(site: Site) -> None:
    """The first answer may have been lost: "expired" would let a scheduler build the instance elsewhere, too."""
    order = site.build("vm-1")
    site.give(order)
    site.clock.advance(2 * SOON_S)
    assert site.refused(order) == ""
    assert site.told_refusals() == {}


def test_an_end_of_what_is_not_here_is_done_without_an_event(site: Site) -> None:
    before = site.record().version
    [answer] = site.give(site.end("vm-1"))
    assert (answer.refused, answer.version) == ("", before)
    assert site.record().version == before
    assert site.agent.stats.ended == 0


def test_an_end_that_names_an_order_ends_nothing_that_another_built(site: Site) -> None:
    """It may come late: the instance may have been built anew, or have been there before."""
    site.give(site.build("vm-1", hints={"order": "second"}), site.build("vm-2"))
    for instance in ("vm-1", "vm-2"):
        assert site.refused(structs.replace(site.end(instance), of="first")) == ""
    assert site.state()["allocations"].keys() == {"vm-1", "vm-2"}
    assert site.refused(structs.replace(site.end("vm-1"), of="second")) == ""
    assert site.state()["allocations"].keys() == {"vm-2"}


# -- a resize -------------------------------------------------------------------------------------


def test_a_build_with_other_amounts_takes_the_place_of_the_first(site: Site) -> None:
    site.give(site.build("vm-1", resources={"VCPU": 5, "MEMORY_MB": 100}, group="web", hints=ANTI))
    [answer] = site.give(site.build("vm-1", resources={"VCPU": 8}, hints={"a": 1}))
    assert (answer.refused, answer.version) == ("", site.record().version)
    assert site.state()["allocations"] == {"vm-1": {"resources": {"VCPU": 8}, "hints": {"a": 1}}}
    assert site.state()["usage"] == {"VCPU": 8, "MEMORY_MB": 0}


def test_a_resize_that_does_not_fit_leaves_what_was(site: Site) -> None:
    site.give(site.build("vm-1", resources={"VCPU": 5}), site.build("vm-2", resources={"VCPU": 3}))
    assert site.refused(site.build("vm-1", resources={"VCPU": 6})) == "no-room"
    assert site.state()["allocations"]["vm-1"] == {"resources": {"VCPU": 5}}
    assert site.state()["usage"]["VCPU"] == 8


def test_a_node_that_is_too_full_already_may_still_be_relieved() -> None:
    """Its inventory shrank under it: what makes it better must not be refused for what is not its doing."""
    full = {
        "inventory": {"VCPU": {"total": 2}},
        "usage": {"VCPU": 4},
        "allocations": {"vm": {"resources": {"VCPU": 4}}},
    }
    site = Site(StaticFleet({"n1": full}))
    assert site.refused(site.build("vm", resources={"VCPU": 3})) == ""
    assert site.refused(site.build("vm", resources={"VCPU": 4})) == "no-room"


def test_a_change_in_place_builds_nothing_where_nothing_is() -> None:
    """And where something is, it may change also on a node that takes nothing new."""
    fleet = StaticFleet({"n1": NODE})
    site = Site(fleet)
    assert site.refused(site.build("vm-1", in_place=True)) == "not-here"
    site.give(site.build("vm-1"))
    fleet.set_status("n1", "draining")
    site.clock.advance(1.0)
    site.agent.step()
    assert site.refused(site.build("vm-1", resources={"VCPU": 2}, in_place=True)) == ""
    assert site.refused(site.build("vm-1", resources={"VCPU": 9}, in_place=True)) == "no-room"
    assert site.state()["allocations"] == {"vm-1": {"resources": {"VCPU": 2}}}


def test_a_change_in_place_of_one_order_undoes_no_later_one() -> None:
    """A mark that is late would take back a resize, which its user was told of."""
    site = Site()
    site.give(site.build("vm-1", hints={"order": "first"}))
    site.give(site.build("vm-1", resources={"VCPU": 2}, hints={"order": "second"}, in_place=True))
    late = site.build("vm-1", hints={"order": "first", "placed": True}, in_place=True, of="first")
    assert site.refused(late) == "not-here"
    assert site.state()["allocations"] == {"vm-1": {"resources": {"VCPU": 2}, "hints": {"order": "second"}}}


# -- what is refused ------------------------------------------------------------------------------


def test_no_node_takes_on_more_than_its_capacity(site: Site) -> None:
    """I8's last line of defence, whatever schedulers believe of the node."""
    assert site.refused(site.build("vm-1", resources={"VCPU": 8})) == ""
    [answer] = site.give(site.build("vm-2", resources={"VCPU": 1}))
    assert (answer.refused, answer.detail) == ("no-room", "the order needs 1 more of VCPU, and 0 of 8 are left")
    assert site.refused(site.build("vm-3", resources={"CUSTOM_FPGA": 1})) == "no-room"
    assert site.refused(site.build("vm-4", "n2", resources={"VCPU": 1})) == ""


def test_a_build_is_refused_when_its_scheduler_does_not_count_on_it_any_more(site: Site) -> None:
    order = site.build("vm-1", deadline=site.clock.time() + 2.0)
    site.clock.advance(2.0)
    assert site.refused(order) == ""
    site.give(site.end("vm-1"))
    site.clock.advance(0.1)
    assert site.refused(order) == "expired"
    assert site.state()["allocations"] == {}


@pytest.mark.parametrize("status", ["draining", "maintenance", "down"])
def test_only_a_node_that_is_up_takes_on_anything_and_every_node_gives_back(status: str) -> None:
    fleet = StaticFleet({"n1": NODE})
    site = Site(fleet)
    site.give(site.build("vm-1"))
    fleet.set_status("n1", status)
    site.clock.advance(1.0)
    site.agent.step()
    assert site.refused(site.build("vm-2")) == "status"
    assert site.refused(site.build("vm-1", resources={"VCPU": 2})) == "status"
    assert site.refused(site.end("vm-1")) == ""


@pytest.mark.parametrize(("hints", "may_be"), [(ANTI, 1), ({**ANTI, "max_per_node": 3}, 3)])
def test_a_node_has_no_more_of_a_group_than_its_policy_allows(site: Site, hints: dict[str, Any], may_be: int) -> None:
    orders = [site.build(f"vm-{number}", group="web", hints=hints) for number in range(5)]
    assert [answer.refused for answer in site.give(*orders)] == [""] * may_be + ["group"] * (5 - may_be)
    assert site.refused(site.build("other", group="db", hints=hints)) == ""
    assert site.refused(site.build("elsewhere", "n2", group="web", hints=hints)) == ""
    assert site.refused(structs.replace(orders[0], resources={"VCPU": 2})) == ""  # itself is no other
    site.give(site.end("vm-0"))
    assert site.refused(orders[4]) == ""


@pytest.mark.parametrize("policy", ["affinity", "soft-affinity", "soft-anti-affinity", None])
def test_what_needs_knowledge_of_other_nodes_is_the_schedulers_business(site: Site, policy: str | None) -> None:
    hints = {} if policy is None else {"group_policy": policy}
    orders = [site.build(f"vm-{number}", group="web", hints=hints) for number in range(3)]
    assert [answer.refused for answer in site.give(*orders)] == [""] * 3


@pytest.mark.parametrize("limit", [0, -1, "two", 1.5, True, None])
def test_a_policy_that_means_nothing_is_a_bad_order(site: Site, limit: object) -> None:
    assert site.refused(site.build("vm-1", group="web", hints={**ANTI, "max_per_node": limit})) == "bad-order"


def test_a_node_that_has_left_is_unknown(site: Site) -> None:
    site.agent.leave()
    [answer] = site.give(site.build("vm-1"))
    assert (answer.refused, answer.version) == ("unknown-node", Version(0, 0))
    assert site.agent.stats.bad == 0


def test_a_node_that_is_gone_for_good_is_no_longer_listened_for() -> None:
    source = ScriptedSource(("n1", "n2"))
    site = Site(source)
    source.readings = [NodeGone("n1")]
    site.clock.advance(1.0)
    site.agent.step()
    assert site.refused(site.build("vm-1")) == "no-agent"
    source.readings = [FullState("n1", STATE)]
    site.clock.advance(1.0)
    site.agent.step()
    assert site.refused(site.build("vm-1")) == "failed"


def test_a_source_that_only_reports_says_so() -> None:
    site = Site(ScriptedSource(("n1",)))
    [answer] = site.give(site.build("vm-1"))
    assert (answer.refused, answer.detail) == ("failed", "the source of n1 takes no orders")
    assert answer.version == site.record().version


def test_allocations_never_grow_beyond_what_a_report_can_carry(site: Site) -> None:
    """An instance that runs and that no report can tell of would be lost to everybody."""
    hints = {"user_data": "x" * 65_000}
    refused = [site.refused(site.build(f"vm-{number}", resources={}, hints=hints)) for number in range(5)]
    assert refused == ["", "", "", "no-room", "no-room"]
    together = Site()
    orders = [together.build(f"vm-{number}", resources={}, hints=hints) for number in range(5)]
    assert [answer.refused for answer in together.give(*orders)] == refused
    assert len(together.record().body) < MAX_EVENT_BYTES
    assert together.agent.stats.bad == 0


# -- who hears of it ------------------------------------------------------------------------------


def test_a_refusal_is_told_by_the_nodes_state_too(site: Site) -> None:
    """Other schedulers learn that a node is fuller than they think, and that a claim may go."""
    [answer] = site.give(site.build("vm-1", resources={"VCPU": 9}))
    assert site.record().version == answer.version == Version(7, 2)
    at = site.clock.time()
    assert site.told_refusals() == {"build vm-1": {"reason": "no-room", "instance": "vm-1", "at": at}}
    assert site.state()["allocations"] == {}
    assert (site.agent.stats.admitted, site.agent.stats.refused) == (0, 1)


def test_a_state_tells_of_the_last_refusals_only(site: Site) -> None:
    orders = [site.build(f"vm-{number}", resources={"VCPU": 9}) for number in range(KEPT_REFUSALS_COUNT + 3)]
    site.give(*orders)
    assert set(site.told_refusals()) == {order.id for order in orders[3:]}


def test_a_refusal_that_was_told_is_not_told_again(site: Site) -> None:
    order = site.build("vm-1", resources={"VCPU": 9})
    [first] = site.give(order)
    [again] = site.give(order)
    assert first == again
    assert site.record().version == first.version


def test_refusals_stay_in_the_state_of_a_source_that_says_whole_states() -> None:
    source = ScriptedSource(("n1",))
    site = Site(source)
    site.give(site.build("vm-1"))
    source.readings = [FullState("n1", {**STATE, "usage": {"VCPU": 3}, "namespaces": {"nova": {"a": 1}}})]
    site.clock.advance(1.0)
    site.agent.step()
    state = site.state()
    assert state["usage"] == {"VCPU": 3}
    assert state["namespaces"].keys() == {"nova", "nodestate"}
    assert set(site.told_refusals()) == {"build vm-1"}
    assert site.agent.stats.bad == 0


def test_an_order_that_nobody_waits_for_is_carried_out(site: Site) -> None:
    assert site.give(Build(id="1", node="n1", instance="vm-1", resources={}, deadline=2e9)) == []
    assert site.state()["allocations"] == {"vm-1": {"resources": {}}}


def test_a_dead_node_is_silent(site: Site) -> None:
    fleet = site.source
    assert isinstance(fleet, StaticFleet)
    fleet.kill("n1")
    site.clock.advance(1.0)
    site.agent.step()
    before = site.record().version
    assert [answer.node for answer in site.give(site.build("vm-1"), site.build("vm-2", "n2"))] == ["n2"]
    heartbeats = site.agent.stats.heartbeats
    for _ in range(30):
        site.clock.advance(1.0)
        site.agent.step()
    assert site.agent.stats.heartbeats - heartbeats == 3  # of the other
    assert site.record().version == before
    fleet.revive("n1")
    site.clock.advance(1.0)
    site.agent.step()
    assert site.refused(site.build("vm-1")) == ""


# -- what can't be done ---------------------------------------------------------------------------


class FailingFleet(StaticFleet):
    """Can't build, or can't be asked, where the test says so."""

    failing = ""

    def build(self, node: str, instance: str, allocation: dict[str, Any]) -> FullState | StatePatch:
        if self.failing == "build":
            raise OrderFailedError(self.name, "no such disk")
        return super().build(node, instance, allocation)

    def room(self, node: str) -> Room:
        if self.failing == "room":
            raise SourceUnavailableError(self.name, "connection refused")
        return super().room(node)


@pytest.mark.parametrize(("failing", "why"), [("build", "no such disk"), ("room", "connection refused")])
def test_what_the_hypervisor_could_not_do_is_refused(failing: str, why: str) -> None:
    fleet = FailingFleet({"n1": NODE})
    site = Site(fleet)
    fleet.failing = failing
    [answer] = site.give(site.build("vm-1"))
    assert answer.refused == "failed"
    assert why in answer.detail
    fleet.failing = ""
    assert site.refused(site.build("vm-1")) == ""


class FullDisk(AllocationFile):
    """Stores nothing while it is full."""

    full = False

    def keep(self, changes: Sequence[AllocationChange]) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        super().keep(changes)


def test_what_could_not_be_stored_is_undone_and_refused(tmp_path: Path) -> None:
    """An agent that promised and then died would have broken its promise."""
    disk = FullDisk(tmp_path, "fleet")
    site = Site(StaticFleet({"n1": NODE, "n2": NODE}, allocations=disk))
    site.give(site.build("old", resources={"VCPU": 3}), site.build("kept", resources={"VCPU": 1}))
    before = site.state()
    disk.full = True
    answers = site.give(
        site.build("vm-1"), site.build("vm-1"), site.build("old", resources={"VCPU": 5}), site.end("kept")
    )
    assert [(answer.refused, "No space" in answer.detail) for answer in answers] == [("failed", True)] * 4
    assert (site.state()["allocations"], site.state()["usage"]) == (before["allocations"], before["usage"])
    assert site.source.state("n1")["allocations"] == before["allocations"]
    assert site.source.room("n1").usage == before["usage"]
    disk.full = False
    assert site.refused(site.build("vm-1", resources={"VCPU": 4})) == ""
    site.agent.close()
    again = StaticFleet({"n1": NODE}, allocations=AllocationFile(tmp_path, "fleet"))
    [reading] = again.poll(0.0)
    assert reading.state["allocations"] == site.state()["allocations"]
    again.close()


# -- any order of anything ------------------------------------------------------------------------

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
def test_whatever_comes_in_whatever_order_no_node_is_over_its_capacity_or_a_groups_limit(
    steps: Sequence[Sequence[tuple[str, Any]]],
) -> None:
    """I8: and usage is always the sum of the allocations, in what the node is as in what the cell knows."""
    site = Site()
    limit = {"web": 1, "db": 2}
    given_orders: list[Order] = []
    admitted: dict[tuple[str, str], Build] = {}
    for step in steps:
        orders: list[Order] = []
        for what, about in step:
            if what == "build":
                instance, node, resources, group, left_s = about
                hints = {} if group is None else {**ANTI, "max_per_node": limit[group]}
                deadline = site.clock.time() + left_s
                number = len(given_orders) + len(orders)
                orders.append(
                    site.build(
                        instance, node, id=f"{number}", resources=resources, group=group, hints=hints, deadline=deadline
                    )
                )
            elif what == "end":
                orders.append(site.end(about[0], about[1]))
            elif what == "again" and given_orders:
                orders.append(given_orders[about[2] % len(given_orders)])
            else:
                site.clock.advance(about[2])
        given_orders += orders
        answers = site.give(*orders)
        assert [answer.id for answer in answers] == [order.id for order in orders]
        for order, answer in zip(orders, answers, strict=True):
            if not answer.refused and isinstance(order, Build):
                admitted[order.node, order.instance] = order
            elif not answer.refused:
                admitted.pop((order.node, order.instance), None)
            assert answer.version <= site.record(order.node).version
        for node in ("n1", "n2"):
            state = site.state(node)
            assert state["allocations"] == {
                instance: expected(order) for (where, instance), order in admitted.items() if where == node
            }
            for name, capacity in {"VCPU": 8, "MEMORY_MB": 1_000}.items():
                used = sum(one["resources"].get(name, 0) for one in state["allocations"].values())
                assert state["usage"][name] == used <= capacity
            for group, most in limit.items():
                assert sum(one.get("group") == group for one in state["allocations"].values()) <= most
            assert len(site.told_refusals(node)) <= KEPT_REFUSALS_COUNT
    assert site.agent.stats.bad == 0


def expected(order: Build) -> dict[str, Any]:
    allocation: dict[str, Any] = {"resources": order.resources}
    if order.group is not None:
        allocation |= {"group": order.group, "hints": order.hints}
    return allocation


# -- a broker that goes away ----------------------------------------------------------------------


@pytest.mark.parametrize("lose", [True, False])
def test_an_answer_that_is_lost_with_the_broker_is_made_up_for_by_the_nodes_state(site: Site, lose: bool) -> None:
    """The event may be lost with it, too: the next report says what is so, and the order that is repeated is done."""
    site.broker.confirming = False
    order = site.build("vm-1")
    site.courier.send([order], SOON_S)
    site.broker.transit.holding = True
    site.agent.step()
    assert [letter.kind for letter in site.broker.transit.under_way] == ["answer"]
    site.broker.stop(lose_unconfirmed=lose)
    site.clock.advance(1.0)
    site.agent.step()
    site.broker.start()
    site.broker.transit.holding, site.broker.confirming = False, True
    for _ in range(20):
        site.clock.advance(1.0)
        site.agent.step()
    assert site.state()["allocations"] == {"vm-1": {"resources": {"VCPU": 1}}}
    with pytest.raises(BrokerUnavailableError):
        site.courier.answers(0)
    [answer] = site.give(structs.replace(order, reply_to=site.courier.reply_to))
    assert (answer.refused, answer.version) == ("", site.record().version)
    assert site.agent.stats.admitted == 1


def test_orders_wait_for_no_broker_that_is_away(site: Site) -> None:
    site.courier.send([site.build("vm-1")], SOON_S)
    site.broker.stop()
    for _ in range(5):
        site.clock.advance(1.0)
        site.agent.step()
    site.broker.start()
    for _ in range(20):
        site.clock.advance(1.0)
        site.agent.step()
    assert site.state()["allocations"] == {}  # lost with the connection that it waited at
    with pytest.raises(BrokerUnavailableError):
        site.courier.answers(0)
    assert site.refused(site.build("vm-2")) == ""  # and it listens again


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
    def keep(self, changes):
        die("before it is stored")
        super().keep(changes)
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
def test_what_an_agent_stored_before_it_was_killed_is_reported_by_the_next(
    tmp_path: Path, where: str, there: bool
) -> None:
    """I10: and the order that its scheduler repeats, as it heard nothing, is answered as what it is: done."""
    command = [sys.executable, "-c", AGENT_THAT_DIES, str(tmp_path), where]
    died = subprocess.run(command, capture_output=True, timeout=60, check=False)  # noqa: S603 - our own script
    assert (died.returncode, died.stdout) == (-signal.SIGKILL, b"told\n"), died.stderr
    hints = {"group_policy": "anti-affinity", "anything": [1, None]}
    asked = {"resources": {"VCPU": 2}, "group": "web", "hints": hints}
    kept = AllocationFile(state_directory(Config(cell="kill", state_dir=str(tmp_path))), "compute-fleet-0")
    site = Site(SimulatedFleet(3, changes_per_s=0.0, allocations=kept))
    first = site.record("compute-0001")
    assert first.version == Version(7, 1)
    assert first.state()["allocations"].get("vm-1") == (asked if there else None)
    [answer] = site.give(site.build("vm-1", "compute-0001", deadline=0.0 if there else 2e9, **asked))
    assert (answer.refused, answer.version) == ("", Version(7, 1 if there else 2))
    assert site.state("compute-0001")["allocations"]["vm-1"] == asked
    site.agent.close()


def test_tasks_that_only_were_simulated_make_room_for_what_was_admitted(tmp_path: Path) -> None:
    """The same seed begins with the same tasks, also where the last life ended them for an order."""
    fleet = SimulatedFleet(1, changes_per_s=0.0, allocations=AllocationFile(tmp_path, "fleet"))
    site = Site(fleet)
    [name] = fleet.nodes()
    site.give(*[site.end(task, name) for task in site.state(name)["allocations"]])
    capacity = {kind: one["total"] - one.get("reserved", 0) for kind, one in site.state(name)["inventory"].items()}
    assert site.refused(site.build("vm-1", name, resources={"MEMORY_MB": capacity["MEMORY_MB"] - 4_096})) == ""
    site.agent.close()
    again = Site(SimulatedFleet(1, changes_per_s=0.0, allocations=AllocationFile(tmp_path, "fleet")))
    state = again.state(name)
    assert "vm-1" in state["allocations"]
    used = sum(one["resources"].get("MEMORY_MB", 0) for one in state["allocations"].values())
    assert state["usage"]["MEMORY_MB"] == used <= capacity["MEMORY_MB"]
    again.agent.close()


def test_what_another_order_built_is_not_built_over(site: Site) -> None:
    """An order that comes late would take the place of a later one, and what ends it would end that."""
    assert site.refused(site.build("vm-1", hints={"order": "o2"})) == ""
    late = site.build("vm-1", id="late", resources={"VCPU": 2}, hints={"order": "o1"})
    assert site.refused(late) == "here"
    assert site.state()["allocations"]["vm-1"] == {"resources": {"VCPU": 1}, "hints": {"order": "o2"}}
    assert site.refused(site.build("vm-1", id="again", hints={"order": "o2"})) == ""
