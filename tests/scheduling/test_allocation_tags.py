"""Tags: if the cell requires them, a node is believed only about allocations that a scheduler ordered there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from structlog.testing import capture_logs

from nodestate.agent.admission import allocation_of
from nodestate.auth import NO_TAGS, TAG, AllocationTags, allocation_tags
from nodestate.auth.key_file import Keyring, write_keys
from nodestate.auth.keys import CellKeys
from nodestate.config import Config
from nodestate.errors import ConfigError, NotFoundError
from nodestate.findings.finding import FAIL, OK, WARN
from nodestate.findings.signature_checks import examine_tags
from nodestate.model.orders import Build, decode_order, encode
from nodestate.ports.ids import SystemIds
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.order_ids import new_order_id
from nodestate.scheduling.orders.boot import Booted, Failed
from nodestate.scheduling.reservations import Confirmed
from nodestate.scheduling.tag_renewal import TagRenewal
from nodestate.testing import ManualClock
from tests.cell_keys import new_cell_keys, rotated, without_oldest, written
from tests.machines.scheduling_cell import SchedulingCell
from tests.scheduling.cells import boot, cell_of, freeze_view, losing_answers, reserve
from tests.scheduling.fleets import ChangingPartition, host

KEYS = new_cell_keys()
ALLOCATION = {"resources": {"VCPU": 2}, "group": "web", "hints": {"order": "o1", "weights": {"cpu": 2.0}}}
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip
HINTS = st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


def tags_of(folder: Path, keys: CellKeys = KEYS, mode: str = "require") -> AllocationTags:
    """Tags with these secrets."""
    return AllocationTags(mode, Keyring(written(folder, "cell.keys", keys), keys.cell, ManualClock()))


def tagged(tags: AllocationTags, node: str = "n1", instance: str = "a", **changes: Any) -> dict[str, Any]:
    """An allocation with its tag."""
    one = {**ALLOCATION, **changes}
    return {**one, "hints": tags.tagged(node, instance, one["resources"], one["group"], one["hints"])}


def require_tags(folder: Path, **more: Any) -> tuple[SchedulingCell, list[Any]]:
    """A cell that requires tags."""
    return cell_of(auth_orders="require", keys_file=written(folder, "cell.keys", KEYS), **more)


def lie(cell: SchedulingCell, node: str, instance: str, **allocation: Any) -> None:
    """A node reports an instance that no scheduler ordered there."""
    cell.fleet.kill(node)
    cell.fleet.build(node, instance, {"resources": {"VCPU": 1, "MEMORY_MB": 100}, **allocation})
    cell.fleet.revive(node)
    cell.run_for(2.0)


def allocation(cell: SchedulingCell, node: str, instance: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = cell.fleet.state(node)["allocations"][instance]
    return found


# -- tags


def test_any_change_of_an_allocation_makes_its_tag_invalid(folder: Path) -> None:
    tags = tags_of(folder)

    @settings(max_examples=10)
    @given(HINTS, HINTS, st.sampled_from(["node", "instance", "resources", "group", "hints", "tag"]))
    def check(hints: dict[str, Any], others: dict[str, Any], changed: str) -> None:
        hints.pop(TAG, None)
        others.pop(TAG, None)
        one = tagged(tags, hints=hints)
        assert tags.is_believed("n1", "a", one)
        assert not tags.is_believed("n2" if changed == "node" else "n1", "b" if changed != "node" else "a", one)
        for lie in ({"resources": {"VCPU": 3}}, {"resources": {}}, {"group": None}, {"group": "db"}):
            assert not tags.is_believed("n1", "a", {**one, **lie})
        if msgspec.msgpack.encode(others) != msgspec.msgpack.encode(hints):
            forged = {**others, TAG: one["hints"][TAG]}
            assert tags.is_believed("n1", "a", {**one, "hints": forged}) is (_sorted(others) == _sorted(hints))
        code = one["hints"][TAG]
        for tag in (code[:-1] + ("A" if code[-2:] != "AA" else "B"), code[:29], "", 7, code * 3, "é" * 30):
            assert tag == code or not tags.is_believed("n1", "a", {**one, "hints": {**hints, TAG: tag}})

    check()


def _sorted(hints: dict[str, Any]) -> bytes:
    return msgspec.msgpack.encode(hints, order="sorted")


def test_a_tag_stays_valid_through_the_order_the_agents_file_and_the_report(folder: Path) -> None:
    """The agent's file is JSON, and the rest is msgpack."""
    tags = tags_of(folder)

    @settings(max_examples=10)
    @given(HINTS)
    def check(hints: dict[str, Any]) -> None:
        hints = tags.tagged("n1", "a", {"VCPU": 2}, None, hints)
        order = decode_order(
            encode(Build(id="1", node="n1", instance="a", resources={"VCPU": 2}, hints=hints, deadline=1.0))
        )
        assert isinstance(order, Build)
        stored = msgspec.json.decode(msgspec.json.encode(allocation_of(order)))
        fleet = Fleet(tags=tags)
        fleet.advance(ChangingPartition(host("n1", instances={"a": stored})).view)
        assert fleet.reports.is_believed(0, "a")

    check()


@pytest.mark.parametrize(("mode", "believed"), [("off", True), ("accept", True), ("warn", True), ("require", False)])
def test_an_allocation_without_a_valid_tag_is_believed_and_counted_unless_tags_are_required(
    folder: Path, mode: str, believed: bool
) -> None:
    tags = tags_of(folder, mode=mode)
    foreign = tagged(tags_of(folder, new_cell_keys(), "require"))
    for allocation in (ALLOCATION, foreign):
        assert tags.is_believed("n1", "a", allocation) is believed
    assert tags.untagged == (0 if mode == "off" else 2)
    assert tags.is_believed("n1", "a", tagged(tags))
    assert (TAG in tagged(tags)["hints"]) is (mode != "off")


def test_a_scheduler_without_the_secrets_of_the_cell_makes_no_tags_and_cannot_require_them(tmp_path: Path) -> None:
    """An agent's file has the keys of its nodes: with them, a node could tag its own reports."""
    file = written(tmp_path, "n1.keys", KEYS.node_keys(("n1",)))
    assert tagged(allocation_tags(Config(auth_orders="accept", keys_file=file))) == ALLOCATION
    assert tagged(allocation_tags(Config(auth_orders="accept"))) == ALLOCATION
    assert tagged(NO_TAGS) == ALLOCATION
    for mode in ("warn", "require"):
        with pytest.raises(ConfigError, match="keys of nodes only"):
            allocation_tags(Config(auth_orders=mode, keys_file=file))


def test_schedulers_with_the_old_the_new_and_both_secrets_believe_a_tag_of_the_one_that_has_both(folder: Path) -> None:
    """So no instance is mistaken while the file of the cell is copied from one machine to the next."""
    both = rotated(KEYS)
    old, new = KEYS, without_oldest(both)
    made = tagged(tags_of(folder, both))
    for keys in (old, both, new):
        assert tags_of(folder, keys).is_believed("n1", "a", made)
    assert tags_of(folder, both).valid_ids("n1", "a", made) == tuple(one.id for one in both.secrets)
    assert not tags_of(folder, new).is_believed("n1", "a", tagged(tags_of(folder, old)))


# -- what a lying node reports


def test_a_node_that_reports_an_instance_of_another_node_ends_it_nowhere_and_moves_it_nowhere(folder: Path) -> None:
    """Without tags, the later order id wins: the clean-up ends the true instance."""
    cell, (one, _) = require_tags(folder, nodes=2)
    booted = boot(one.scheduler, "a")
    [liar] = {"n0", "n1"} - {booted.node}
    cell.run_for(2.0)
    hints = {**allocation(cell, booted.node, "a")["hints"]}
    cell.clock.advance(10.0)
    lie(cell, liar, "a", hints={**hints, "order": new_order_id(cell.clock, SystemIds()), "boot": hints["order"]})
    one.scheduler.refresh()
    assert one.scheduler.fleet.authoritative_row("a") == one.scheduler.fleet.rows[booted.node]
    lie(cell, liar, "ghost", hints={"order": hints["order"]})
    with pytest.raises(NotFoundError, match=f"nodestate retag {liar} --adopt"):
        one.scheduler.migrations.find("ghost")
    by_instance = {outcome.instance: outcome for outcome in one.scheduler.migrations.evacuate(liar)}
    assert isinstance(by_instance["ghost"], Failed)
    cell.run_for(cell.config.claim_ttl_s + 10.0)
    assert {name: set(nodes) for name, nodes in cell.nodes_by_instance().items()} == {
        "a": {booted.node, liar},
        "ghost": {liar},
    }


def test_allocations_without_a_tag_take_room_and_are_members_of_no_group(folder: Path) -> None:
    tags = tags_of(folder)
    mark = {"reservation": "r1", "members": 1, "placed": False, "group_policy": "affinity"}
    forged = {"resources": {"VCPU": 2}, "group": "web", "hints": {**mark, TAG: "x" * 30}}
    true = tagged(tags, hints={**mark, "members": 2})
    cell = ChangingPartition(
        host("n1", used=2, instances={"a": true}), host("n2", used=4, instances={"b": forged, "c": forged})
    )
    fleet = Fleet(tags=tags)
    fleet.advance(cell.view)
    assert fleet.groups == {"web": {0: 1}}
    assert list(fleet.placement_marks.by_reservation["r1"]) == [(0, "a")]
    assert fleet.free["VCPU"][fleet.all].tolist() == [6, 4]
    assert fleet.instances.reporting_rows("b") == [1]
    assert fleet.group_policies.contradiction("web", None) is not None
    assert (fleet.rows_hosting("a"), fleet.rows_hosting("b")) == ([0], [])
    cell.change(host("n1", 2, used=2, instances={"a": {**true, "resources": {"VCPU": 1}}}))
    fleet.advance(cell.view)
    assert fleet.groups == {}


def test_groups_follow_a_change_of_the_secrets(folder: Path) -> None:
    """A scheduler that reads a changed file judges all allocations again."""
    file = written(folder, "cell.keys", KEYS)
    clock = ManualClock()
    tags = AllocationTags("require", Keyring(file, KEYS.cell, clock))
    cell = ChangingPartition(host("n1", instances={"a": tagged(tags)}))
    fleet = Fleet(tags=tags)
    for keys, groups in (
        (KEYS, {"web": {0: 1}}),
        (without_oldest(rotated(KEYS)), {}),
        (rotated(KEYS), {"web": {0: 1}}),
    ):
        write_keys(file, keys, replace=True)
        clock.advance(10.0)
        fleet.advance(cell.view)
        assert fleet.groups == groups


def test_no_scheduler_tags_what_a_node_made_up(folder: Path) -> None:
    """A scheduler sends an allocation back to its node with other hints when a reservation is placed."""
    cell, (one, _) = require_tags(folder, nodes=1)
    lie(cell, "n0", "a", hints={"reservation": "r1", "members": 1, "order": new_order_id(cell.clock, SystemIds())})
    one.scheduler.refresh()
    one.scheduler.session.orders.hint_updates.set_placed("n0", "a")
    cell.run_for(cell.config.claim_ttl_s + 10.0)
    assert TAG not in allocation(cell, "n0", "a")["hints"]


# -- the life of a tag


def test_each_order_to_an_instance_is_tagged_for_its_node(folder: Path) -> None:
    cell, (one, two) = require_tags(folder)
    tags = one.scheduler.fleet.reports.tags
    assert isinstance(one.scheduler.reservations.confirm(reserve(one.scheduler, "a").id), Confirmed)

    def check(outcome: object = None) -> str:
        assert outcome is None or isinstance(outcome, Booted)
        cell.run_for(2.0)
        [node] = cell.nodes_by_instance()["a"]
        assert tags.is_believed(node, "a", allocation(cell, node, "a"))
        return str(allocation(cell, node, "a")["hints"][TAG])

    seen = [check()]
    seen.append(check(two.scheduler.migrations.migrate("a")))
    seen.append(check(one.scheduler.migrations.resize("a", {"VCPU": 3})))
    seen.append(check(two.scheduler.updates.update("a", {"zone": None, "tolerations": ["x"]})))
    assert len(set(seen)) == len(seen)
    assert TAG not in two.scheduler.migrations.find("a").hints


def test_an_operator_adopts_instances_from_before_the_cell_had_secrets_and_believes_no_second_node(
    folder: Path,
) -> None:
    cell, [one] = require_tags(folder, schedulers=1)
    for node, instance in (("n0", "a"), ("n1", "b"), ("n2", "b")):
        lie(cell, node, instance, hints={"order": new_order_id(cell.clock, SystemIds())})
    lie(cell, "n2", "by hand")
    renew = one.scheduler.tag_renewals.renew
    assert [left.instance for left in renew().left] == ["a", "b", "b"]
    adopted = renew(adopt=True)
    assert (adopted.renewed_count, [left.node for left in adopted.left]) == (1, ["n1", "n2"])
    assert "it is also reported by n2" in adopted.left[0].reason
    assert "'nodestate retag n1 --adopt'" in adopted.left[0].reason
    assert renew(["n1"], adopt=True).renewed_count == 1
    cell.run_for(2.0)
    assert one.scheduler.migrations.find("b").row == one.scheduler.fleet.rows["n1"]
    assert [left.node for left in renew(adopt=True).left] == ["n2"]
    assert renew(["n2", "n1"], adopt=True).left[0].node == "n2"
    cell.run_for(2.0)
    assert one.scheduler.migrations.find("by hand").exclusion.order


def test_clean_up_ends_no_instance_that_another_program_changed(folder: Path) -> None:
    """The tag no longer fits, and the copy on a node that was dead has an earlier order id and a valid one."""
    cell, [one] = require_tags(folder, nodes=2, schedulers=1)
    old = boot(one.scheduler, "a").node
    cell.power_off(old)
    cell.run_for(60.0)
    [moved] = one.scheduler.migrations.evacuate(old)
    assert isinstance(moved, Booted)
    cell.run_for(2.0)
    grown = {**allocation(cell, moved.node, "a"), "resources": {"VCPU": 2, "MEMORY_MB": 200}}
    cell.fleet.build(moved.node, "a", grown)
    cell.fleet.kill(moved.node)
    cell.fleet.revive(moved.node)
    cell.replace_dead(one)  # it would remember to end the instance on the node that was dead
    [one] = cell.processes
    cell.power_on_all()
    cell.run_for(cell.config.claim_ttl_s + 10.0)
    assert len(cell.nodes_by_instance()["a"]) == 2
    assert isinstance(one.scheduler.migrations.evacuate(moved.node)[0], Failed)
    assert one.scheduler.tag_renewals.renew([moved.node], adopt=True).renewed_count == 1
    cell.run_for(cell.config.claim_ttl_s + 10.0)
    assert cell.nodes_by_instance() == {"a": [moved.node]}


def test_tags_are_renewed_while_two_secrets_are_in_force_and_outlive_the_old_one(folder: Path) -> None:
    cell, (one, two) = require_tags(folder, nodes=1)
    boot(one.scheduler, "a")

    def use(keys: CellKeys) -> None:
        written(folder, "cell.keys", keys)
        cell.run_for(10.0)

    use(rotated := KEYS.with_new_secret(1.0))
    assert one.scheduler.tag_renewals.renew().renewed_count == 1
    cell.run_for(2.0)
    assert two.scheduler.tag_renewals.renew().current_count == 1
    boot(two.scheduler, "b")
    cell.run_for(2.0)
    [doctor] = examine_tags(cell.config, two.scheduler.refresh())
    assert doctor.level == OK, doctor
    use(without_oldest(rotated))
    for instance in ("a", "b"):
        assert two.scheduler.migrations.find(instance).instance == instance


def test_an_operator_evacuates_a_dead_node_whose_instances_have_no_tag(folder: Path) -> None:
    """No agent is left that could adopt them, so the command believes the last report."""
    cell, [one] = require_tags(folder, nodes=2, schedulers=1)
    lie(cell, "n0", "a", hints={"order": new_order_id(cell.clock, SystemIds())})
    cell.power_off("n0")
    cell.run_for(60.0)
    [failed] = one.scheduler.migrations.evacuate("n0")
    assert isinstance(failed, Failed)
    assert "NODESTATE_AUTH_ORDERS=accept" in str(failed.reason)
    cell.config = structs.replace(cell.config, auth_orders="accept")
    [moved] = cell.start_scheduler("operator").scheduler.migrations.evacuate("n0")
    assert isinstance(moved, Booted)
    cell.run_for(2.0)
    assert one.scheduler.migrations.find("a").row == one.scheduler.fleet.rows["n1"]


def test_an_agent_that_refuses_or_does_not_answer_is_named_with_its_allocation(folder: Path) -> None:
    cell, [one] = require_tags(folder, nodes=2, schedulers=1)
    lie(cell, "n0", "a")
    lie(cell, "n1", "b")
    cell.run_for(2.0)
    one.scheduler.refresh()
    with losing_answers(cell):
        [late] = one.scheduler.tag_renewals.renew(["n1"], adopt=True, timeout_s=3.0).left
    assert (late.instance, "did not answer" in late.reason) == ("b", True)
    freeze_view(cell, cell.processes[0])
    cell.fleet.end("n0", "a")
    cell.step_agents()
    assert one.scheduler.tag_renewals.renew(["n0"], adopt=True) == TagRenewal(0, 0, ())


# -- doctor


def test_doctor_counts_allocations_without_a_tag_and_names_the_secret_that_must_not_be_revoked(folder: Path) -> None:
    both = rotated(KEYS)
    old, new = (one.id for one in both.secrets)
    hints = {"order": new_order_id(ManualClock(), SystemIds())}
    mine, foreign = (tagged(tags_of(folder, keys), hints=hints) for keys in (KEYS, new_cell_keys()))
    view = ChangingPartition(
        host("n1", instances={"a": mine, "b": foreign}),
        host("n2", instances={"c": {**ALLOCATION, "hints": hints}, "by hand": None}),
    ).view
    config = Config(auth_orders="warn", keys_file=written(folder, "cell.keys", both))
    untagged, lacking = examine_tags(config, view)
    assert (untagged.level, lacking.level) == (WARN, WARN)
    assert "2 of 3 allocations" in untagged.says
    assert "n1 (1), n2 (1)" in untagged.says
    assert (new in lacking.says, old in lacking.says) == (True, True)
    assert "nodestate retag" in lacking.advice
    for mode, level in (("accept", OK), ("require", FAIL)):
        assert [one.level for one in examine_tags(structs.replace(config, auth_orders=mode), view)] == [level, WARN]
    assert examine_tags(Config(), view) == []
    assert "not checked" in examine_tags(Config(auth_orders="accept"), view)[0].says


@pytest.mark.parametrize("mode", ["warn", "require"])
def test_an_instance_that_ended_before_it_was_moved_does_not_count_as_one_without_a_tag(
    folder: Path, mode: str
) -> None:
    """A history that the machine of schedulers found. Regression: it was counted, and in mode warn the log named the
    honest node.
    """
    cell, (one,) = cell_of(1, 1, auth_orders=mode, keys_file=written(folder, "cell.keys", KEYS))
    boot(one.scheduler, "a")
    cell.run_for(2.0)
    one.scheduler.refresh()
    one.scheduler.terminations.terminate([("n0", "a")])
    with capture_logs() as logs:
        [outcome] = one.scheduler.migrations.evacuate("n0")
        cell.run_for(5.0)
    assert isinstance(outcome, Failed)
    assert cell.nodes_by_instance() == {}
    assert one.scheduler.fleet.reports.tags.untagged == 0
    assert [log for log in logs if "tag" in log["event"]] == []
    assert not one.scheduler.fleet.reports.is_believed(0, "a") or mode == "warn"
