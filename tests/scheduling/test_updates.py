"""Updates: an instance asks for other things than at its boot, and can be migrated again."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from nodestate.errors import BadRequestError, NotFoundError
from nodestate.model.orders import Build, encode
from nodestate.scheduling.orders.boot import Booted, Failed
from nodestate.scheduling.reservations import Confirmed
from nodestate.testing import TransitMessage
from tests.machines.scheduling_cell import SchedulingCell
from tests.scheduling.cells import STATE, boot, cell_of, freeze_view, losing_answers, reserve, tell_no_time, zoned_cell


def rename_zones(cell: SchedulingCell, name: str) -> None:
    """All nodes report another zone."""
    for node in cell.fleet.nodes():
        cell.fleet._nodes[node].fixed["zone"] = name
        cell.fleet.revive(node)
    cell.run_for(2.0)


def hints(cell: SchedulingCell, instance: str) -> dict[str, Any]:
    """The hints of an instance, as its node has them."""
    [node] = cell.nodes_by_instance()[instance]
    found: dict[str, Any] = cell.fleet.state(node)["allocations"][instance]["hints"]
    return found


def test_instance_can_be_migrated_again_after_its_zone_was_renamed() -> None:
    """Regression: it could never move, since no node was in the zone that its hints name."""
    cell, (one, two) = zoned_cell({"n0": "az1", "n1": "az1"})
    before = boot(one.scheduler, "a", zone="az1").node
    rename_zones(cell, "az1-east")
    assert isinstance(one.scheduler.migrations.migrate("a"), Failed)
    updated = one.scheduler.updates.update("a", {"zone": "az1-east"})
    assert isinstance(updated, Booted)
    assert updated.node == before
    cell.run_for(2.0)
    two.scheduler.refresh()
    moved = two.scheduler.migrations.migrate("a")
    assert isinstance(moved, Booted)
    assert moved.node != before
    cell.run_for(2.0)
    assert hints(cell, "a")["zone"] == "az1-east"


def test_instance_can_be_migrated_again_after_its_partner_ended() -> None:
    """Regression: ``same_host`` named an instance that no node has, for ever."""
    cell, (one, _) = cell_of(2)
    node = boot(one.scheduler, "partner").node
    cell.run_for(2.0)
    boot(one.scheduler, "a", same_host=["partner"])
    one.scheduler.terminations.terminate([(node, "partner")])
    cell.run_for(2.0)
    assert isinstance(one.scheduler.migrations.migrate("a"), Failed)
    assert isinstance(one.scheduler.updates.update("a", {"same_host": None}), Booted)
    cell.run_for(2.0)
    assert isinstance(one.scheduler.migrations.migrate("a"), Booted)
    cell.run_for(2.0)
    assert "same_host" not in hints(cell, "a")


def test_instance_stays_on_a_node_that_its_changed_request_does_not_allow() -> None:
    """It leaves with its next migration. All other hints stay."""
    cell, (one, _) = zoned_cell({"n0": "az1", "n1": "az2"})
    boot(one.scheduler, "a", zone="az1", weights={"cpu": 2.0}, group={"name": "web", "policy": "anti-affinity"})
    cell.run_for(2.0)
    before = hints(cell, "a")
    updated = one.scheduler.updates.update("a", {"zone": "az2", "required_traits": ["CUSTOM_NEW"]})
    assert isinstance(updated, Booted)
    assert updated.node == "n0"
    after = hints(cell, "a")
    assert after.pop("order") > before.pop("order")
    assert after.pop("boot")
    assert after == {**before, "zone": "az2", "required_traits": ["CUSTOM_NEW"]}


def test_update_that_changes_nothing_sends_no_order() -> None:
    """A script may repeat it."""
    cell, (one, _) = zoned_cell({"n0": "az1"})
    boot(one.scheduler, "a", zone="az1")
    cell.run_for(2.0)
    before = hints(cell, "a")
    assert isinstance(one.scheduler.updates.update("a", {"zone": "az1", "same_host": None}), Booted)
    assert hints(cell, "a") == before


def test_lost_answer_and_lost_order_do_not_keep_an_update_from_its_outcome() -> None:
    """The order is sent again, and an agent that carried it out before answers that again."""
    cell, (one, _) = zoned_cell({"n0": "az1"})
    boot(one.scheduler, "a", zone="az1")
    cell.run_for(2.0)
    with losing_answers(cell):
        assert isinstance(one.scheduler.updates.update("a", {"zone": "az2"}), Booted)
    arrive, lost = cell.broker.transit.arrive, []

    def lose_the_first(message: TransitMessage) -> None:
        if message.kind == "order" and not lost:
            lost.append(message)
        else:
            arrive(message)

    cell.run_for(2.0)
    cell.broker.transit.arrive = lose_the_first  # type: ignore[method-assign]  # until the first order
    assert isinstance(one.scheduler.updates.update("a", {"zone": "az3"}), Booted)
    assert (len(lost), hints(cell, "a")["zone"]) == (1, "az3")


def test_update_on_an_old_view_does_not_undo_a_later_change() -> None:
    """The order names the order that built the allocation, so the agent refuses it after a resize."""
    cell, (one, two) = cell_of(2)
    boot(one.scheduler, "a")
    freeze_view(cell, two)
    assert isinstance(one.scheduler.migrations.resize("a", {"VCPU": 3}), Booted)
    refused = two.scheduler.updates.update("a", {"zone": "az2"})
    assert isinstance(refused, Failed)
    assert ("not-here" in str(refused.reason), [one.reason for one in refused.refusals]) == (True, ["not-here"])
    assert "zone" not in hints(cell, "a")


def test_instance_that_is_updated_while_a_scheduler_migrates_it_ends_up_on_one_node() -> None:
    """The later order id wins, as after any two changes."""
    cell, (one, two) = cell_of(3)
    boot(one.scheduler, "a")
    freeze_view(cell, two)
    assert isinstance(one.scheduler.updates.update("a", {"aggregates_none": ["old"]}), Booted)
    two.scheduler.migrations.migrate("a")
    two.reader.lagging = False
    cell.run_for(90.0)
    assert len(cell.nodes_by_instance()["a"]) == 1


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"resources": {"VCPU": 1}}, "resources"),
        ({"group": None}, "group"),
        ({"order": "x"}, "order"),
        ({"placed": None}, "placed"),
        ({"zone": 5}, "zone"),
        ({"zone": " "}, "zone"),
        ({"zone": "az1 "}, "zone"),
        ({"required_traits": ["CUSTOM_A", "custom a"]}, "required_traits"),
        ({"any_traits": ["HW-CPU"]}, "any_traits"),
        ({"required_traits": [""]}, "required_traits[0]"),
        ({"spread_by": "zone"}, "spread_by"),
        ({"different_host": ["b"]}, "different_host"),
    ],
)
def test_invalid_change_is_named_and_nothing_is_sent(changes: dict[str, Any], field: str) -> None:
    """Also a change that contradicts what stays."""
    cell, (one, _) = cell_of(1)
    boot(one.scheduler, "b")
    cell.run_for(2.0)
    boot(one.scheduler, "a", same_host=["b"])
    cell.run_for(2.0)
    before = hints(cell, "a")
    with pytest.raises(BadRequestError) as refused:
        one.scheduler.updates.update("a", changes)
    assert (refused.value.field, hints(cell, "a")) == (field, before)


def test_update_may_ask_for_any_trait_and_zone_that_a_node_reports() -> None:
    """Events allow any words, so a request may name them, too."""
    cell = SchedulingCell({"n0": {**STATE, "zone": "az 1 ", "traits": ["my trait"]}})
    cell.wait_until_complete()
    one = cell.start_scheduler("s0")
    cell.run_for(12.0)
    boot(one.scheduler, "a")
    cell.run_for(2.0)
    asked = {"zone": "az 1 ", "required_traits": ["my trait"]}
    assert isinstance(one.scheduler.updates.update("a", asked), Booted)
    assert {field: hints(cell, "a")[field] for field in asked} == asked


def test_hint_that_is_no_valid_request_can_be_removed() -> None:
    """A migration only says that it can't read it."""
    cell, (one, _) = cell_of(2)
    node = boot(one.scheduler, "a").node
    cell.fleet._nodes[node].allocations["a"]["hints"]["zone"] = 7
    cell.fleet.revive(node)
    cell.run_for(2.0)
    with pytest.raises(BadRequestError):
        one.scheduler.migrations.migrate("a")
    assert isinstance(one.scheduler.updates.update("a", {"zone": None}), Booted)
    cell.run_for(2.0)
    assert isinstance(one.scheduler.migrations.migrate("a"), Booted)


def test_member_of_a_reservation_is_updated_only_after_all_members_are_built() -> None:
    """Its hints say which reservation it belongs to, and they stay."""
    cell, (one, _) = cell_of(3)
    node = boot(one.scheduler, "a").node
    cell.fleet._nodes[node].allocations["a"]["hints"] |= {"reservation": "r", "members": 2}
    cell.fleet.revive(node)
    cell.run_for(2.0)
    with pytest.raises(NotFoundError, match="not all placed"):
        one.scheduler.updates.update("a", {"aggregates_none": ["old"]})
    other = reserve(one.scheduler, "c")
    assert isinstance(one.scheduler.reservations.confirm(other.id), Confirmed)
    cell.run_for(2.0)
    assert isinstance(one.scheduler.updates.update("c", {"aggregates_none": ["old"]}), Booted)
    kept = hints(cell, "c")
    assert (kept["reservation"], kept["placed"], kept["aggregates_none"]) == (other.id, True, ["old"])
    with pytest.raises(NotFoundError, match="no node reports d"):
        one.scheduler.updates.update("d", {"zone": None})


def test_agent_that_does_not_answer_is_named() -> None:
    """Nothing is known of the change then."""
    cell, (one, _) = cell_of(1)
    boot(one.scheduler, "a")
    cell.run_for(2.0)
    cell.broker.transit.arrive = lambda _message: None  # type: ignore[method-assign]  # all messages are lost
    with pytest.raises(TimeoutError, match="agent of n0 stored no change within 5 s"):
        one.scheduler.updates.update("a", {"aggregates_none": ["old"]}, timeout_s=5.0)


def test_order_of_an_update_has_only_fields_that_earlier_agents_know() -> None:
    """They dead-letter or refuse an order with other fields. To them it is a resize to equal resources."""
    cell, (one, _) = cell_of(1)
    tell_no_time(cell)
    boot(one.scheduler, "a")
    cell.run_for(2.0)
    sent: list[Any] = []
    send = one.scheduler.session.orders.hint_updates._sender.send
    one.scheduler.session.orders.hint_updates._sender.send = lambda orders: (  # type: ignore[method-assign]  # to look on
        sent.extend(orders),
        send(orders),
    )
    one.scheduler.updates.update("a", {"aggregates_none": ["old"]})
    [order] = [order for order in sent if isinstance(order, Build)]
    fields = {"kind", "id", "node", "instance", "reply_to", "resources", "group", "hints", "deadline", "in_place", "of"}
    assert set(msgspec.msgpack.decode(encode(order))) <= fields
    assert order.in_place
    assert order.of < order.hints["order"]
