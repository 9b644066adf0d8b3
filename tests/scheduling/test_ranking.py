"""The ranking: kept up to date, it equals a new one, and it never offers a node that a filter refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from nodestate.errors import BadRequestError
from nodestate.scheduling.fleet import Exclusion, Fleet, OutstandingClaims
from nodestate.scheduling.request import Request
from nodestate.scheduling.selection.filters import FILTERS
from nodestate.scheduling.selection.ranking import TIE_WIDTH, Ranking
from nodestate.scheduling.selection.weighers import WEIGHERS, Weigher
from tests.scheduling.fleets import ChangingPartition, asked, fleet_of, host, node

ALL = dict.fromkeys(WEIGHERS, 3.0)
NODES = [f"n{number}" for number in range(40)]
REQUESTS = [
    asked(1),
    asked(3, weights=ALL),
    asked(resources={"VCPU": 1, "CUSTOM_GPU": 1}, weights=ALL),
    asked(resources={"VCPU": 1, "DISK_GB": 2}, weights={"pack": 1.0, "balance": -1.0}),
    asked(1, zone="az1", required_traits=["CUSTOM_A"], forbidden_traits=["CUSTOM_B"], aggregates=["r1", "r2"]),
    asked(1, any_traits=["CUSTOM_A", "CUSTOM_B"], ignore_nodes=["n0", "n1"], weights={"spare": 1.0}),
    asked(1, force_nodes=["n0", "n1", "n39"], different_host=["a"]),
    asked(1, same_host=["a", "b"]),
    *(
        asked(1, group={"name": "web", "policy": policy}, spread_by=spread_by)
        for policy in ("affinity", "anti-affinity", "soft-affinity", "soft-anti-affinity")
        for spread_by in ("", "zone", "aggregate")
    ),
    asked(1, group={"name": "web", "policy": "anti-affinity", "max_per_node": 2}),
    asked(1, group={"name": "web", "policy": "soft-affinity"}, spread={"by": "zone"}),
    asked(1, group={"name": "web", "policy": "soft-affinity"}, spread={"by": "aggregate", "max_skew": 2}),
    asked(2, tolerations=["t1"], aggregates_all=["r1"], aggregates_none=["r3"]),
]
instances = st.sampled_from(["a", "b", "c", "d"])
groups = st.sampled_from([None, "web", "db"])
resources = st.dictionaries(st.sampled_from(["VCPU", "DISK_GB", "CUSTOM_GPU"]), st.integers(1, 4), max_size=2)
states = st.none() | st.fixed_dictionaries(
    {
        "status": st.sampled_from(["up", "up", "up", "draining"]),
        "zone": st.sampled_from(["", "az1", "az2"]),
        "inventory": st.fixed_dictionaries(
            {"VCPU": st.builds(lambda n, most: {"total": n, "max_unit": most}, st.integers(0, 9), st.integers(1, 9))},
            optional={
                name: st.builds(lambda n: {"total": n}, st.integers(0, 9))
                for name in ("DISK_GB", "CUSTOM_GPU", "CUSTOM_X")
            },
        ),
        "usage": st.dictionaries(st.sampled_from(["VCPU", "DISK_GB", "CUSTOM_GPU"]), st.integers(0, 4)),
        "traits": st.lists(st.sampled_from(["CUSTOM_A", "CUSTOM_B"]), max_size=2),
        "taints": st.lists(st.sampled_from(["t1", "t2"]), max_size=1),
        "aggregates": st.lists(st.sampled_from(["r1", "r2", "r3"]), max_size=2),
        "allocations": st.dictionaries(
            instances, st.fixed_dictionaries({"resources": resources, "group": groups}), max_size=3
        ),
    }
)
names = st.sampled_from(NODES)


class RankingMachine(RuleBasedStateMachine):
    """A fleet that changes in few rows at a time, and rankings that are refreshed after any number of changes."""

    @initialize(states=st.lists(states, min_size=2, max_size=5), size=st.sampled_from([5, 30, 40]))
    def begin(self, states: list[dict[str, Any] | None], size: int) -> None:
        self.cell = ChangingPartition(
            *(node(name, 1, states[number % len(states)]) for number, name in enumerate(NODES[:size]))
        )
        self.fleet = Fleet()
        self.fleet.advance(self.cell.view)
        self.generation = 1
        self.shuffle = np.random.default_rng(1).random(len(NODES))
        self.rankings = [Ranking(self.fleet, request, FILTERS, WEIGHERS) for request in REQUESTS]

    @rule(name=names, state=states)
    def change(self, name: str, state: dict[str, Any] | None) -> None:
        self.generation += 1
        self.cell.change(node(name, self.generation, state))
        self.fleet.advance(self.cell.view)

    @rule(which=st.sets(names, max_size=2))
    def leave_out(self, which: set[str]) -> None:
        self.cell.left_out = frozenset(which)
        self.fleet.advance(self.cell.view)

    @rule(name=names, amounts=resources, tenants=st.dictionaries(instances, groups, max_size=2), blocked=st.booleans())
    def claim(self, name: str, amounts: dict[str, int], tenants: dict[str, str | None], blocked: bool) -> None:
        if name in self.fleet.rows:
            outstanding = OutstandingClaims(amounts, tenants, blocked) if amounts or tenants else None
            self.fleet.overlay(self.fleet.rows[name], outstanding)

    @rule(name=names, instance=instances, amounts=resources, which=st.integers(0, len(REQUESTS) - 1))
    def look_without(self, name: str, instance: str, amounts: dict[str, int], which: int) -> None:
        """One ranking is refreshed while an instance is excluded; no trace of that may stay in it."""
        if name in self.fleet.rows:
            with self.fleet.excluding([Exclusion(self.fleet.rows[name], instance, amounts)]):
                self.compare(which)

    @rule(which=st.integers(0, len(REQUESTS) - 1))
    def look(self, which: int) -> None:
        self.compare(which)

    def compare(self, which: int) -> None:
        ranking, request = self.rankings[which], REQUESTS[which]
        ranking.refresh(self.shuffle)
        anew = Ranking(self.fleet, request, FILTERS, WEIGHERS)
        anew.refresh(self.shuffle)
        assert ranking.score.tolist() == anew.score.tolist(), request
        self.judge(ranking, request)

    def judge(self, ranking: Ranking, request: Request) -> None:
        passing = np.ones(len(self.fleet), np.bool_)
        for filter_ in FILTERS.values():
            passing &= filter_(self.fleet, self.fleet.all, request)
        rows = ranking.best(len(self.fleet))
        assert sorted(rows) == np.flatnonzero(passing).tolist()
        assert ranking.best(1) == rows[:1]
        scores = ranking.score[rows].tolist()
        assert scores == sorted(scores, reverse=True)

    def teardown(self) -> None:
        for which in range(len(REQUESTS) if hasattr(self, "rankings") else 0):
            self.compare(which)


TestRanking = RankingMachine.TestCase
TestRanking.settings = settings(settings(), stateful_step_count=15)


@pytest.mark.parametrize(
    "request_",
    [
        asked(1, group={"name": "web", "policy": "affinity"}),
        asked(1, group={"name": "web", "policy": "anti-affinity"}, spread_by="zone"),
        asked(1, group={"name": "web", "policy": "soft-affinity"}, spread_by="aggregate"),
    ],
)
def test_first_member_of_a_group_changes_the_scores_of_all_nodes(request_: Request) -> None:
    """Nothing changed on the other nodes, but they are refused now, or are in a crowded zone."""
    fleet = fleet_of(*(host(name, zone=f"az{n % 2}", aggregates=[f"r{n % 3}"]) for n, name in enumerate(NODES)))
    ranking = Ranking(fleet, request_, FILTERS, WEIGHERS)
    shuffle = np.zeros(len(NODES))
    ranking.refresh(shuffle)
    before = ranking.score.copy()
    fleet.overlay(7, OutstandingClaims({"VCPU": 1}, {"vm": "web"}))
    ranking.refresh(shuffle)
    assert (ranking.score[:7] != before[:7]).any()
    anew = Ranking(fleet, request_, FILTERS, WEIGHERS)
    anew.refresh(shuffle)
    assert ranking.score.tolist() == anew.score.tolist()


def ranking_of(fleet: Fleet, request: Request, weighers: dict[str, Weigher] | None = None, seed: int = 1) -> Ranking:
    ranking = Ranking(fleet, request, FILTERS, WEIGHERS if weighers is None else weighers)
    ranking.refresh(np.random.default_rng(seed).random(len(fleet)))
    return ranking


def test_new_resource_class_on_one_node_changes_the_scores_of_the_others() -> None:
    """Regression: the weigher ``spare`` reads all rare classes of the fleet, so its weight for each row changes with
    the first GPU anywhere. Rows kept their old weights until they changed themselves.
    """
    cell = ChangingPartition(
        *(host(name, inventory={"VCPU": {"total": 8}, "CUSTOM_FPGA": {"total": 1}}) for name in NODES)
    )
    fleet = Fleet()
    fleet.advance(cell.view)
    request = asked(1, weights={"spare": 1.0, "cpu": 0.0, "ram": 0.0, "disk": 0.0})
    ranking = Ranking(fleet, request, FILTERS, WEIGHERS)
    shuffle = np.zeros(len(NODES))
    ranking.refresh(shuffle)
    assert ranking.score.tolist() == [0.0] * len(NODES)
    cell.change(host("n7", 2, inventory={"VCPU": {"total": 8}, "CUSTOM_GPU": {"total": 1}}))
    fleet.advance(cell.view)
    ranking.refresh(shuffle)
    assert ranking.score.tolist() == [0.5 / TIE_WIDTH] * len(NODES)


@given(st.lists(st.integers(0, 8), min_size=1, max_size=12), st.integers(1, 14), st.sets(st.integers(0, 11)))
def test_best_rows_have_the_highest_scores(used: list[int], count: int, but: set[int]) -> None:
    """They come in order, without excluded rows, and no more than there are."""
    fleet = fleet_of(*(host(f"n{n}", vcpu=8, used=used_here) for n, used_here in enumerate(used)))
    ranking = ranking_of(fleet, asked(1))
    but = {row for row in but if row < len(fleet)}
    order = sorted(range(len(fleet)), key=lambda row: -ranking.score[row])
    expected = [row for row in order if used[row] < 8 and row not in but][:count]
    assert ranking.best(count, but) == expected


def test_no_row_is_best_in_a_cell_without_usable_nodes() -> None:
    """One cell has no nodes; in the other all nodes are left out."""
    assert ranking_of(fleet_of(), asked(1)).best(3) == []
    assert ranking_of(fleet_of(host("a")), asked(1)).best(3, {0}) == []


def test_equally_good_nodes_are_shuffled() -> None:
    """If all schedulers took the first of 1,000 empty nodes, they would lose it to each other all day."""
    fleet = fleet_of(*(host(f"n{n}") for n in range(64)))
    orders = {tuple(ranking_of(fleet, asked(1), seed=seed).best(64)) for seed in range(5)}
    assert len(orders) == 5
    assert {tuple(sorted(order)) for order in orders} == {tuple(range(64))}
    assert ranking_of(fleet, asked(1), seed=3).best(64) == ranking_of(fleet, asked(1), seed=3).best(64)


def test_shuffle_does_not_outweigh_a_better_score() -> None:
    """The shuffle decides only between equals."""
    fleet = fleet_of(*(host(f"n{n}", vcpu=100, used=n % 50) for n in range(64)))
    firsts = {ranking_of(fleet, asked(1), seed=seed).best(1)[0] for seed in range(20)}
    assert firsts == {0, 50}, "0 and 50 have nothing on them; the next is a hundredth worse, more than a tie is wide"


def test_negative_multiplier_reverses_a_weigher() -> None:
    """One request stacks instances that others spread."""
    fleet = fleet_of(host("a", used=1), host("b", used=5), host("c", used=3))
    assert ranking_of(fleet, asked(1)).best(3) == [0, 2, 1]
    assert ranking_of(fleet, asked(1, weights={"cpu": -1.0})).best(3) == [1, 2, 0]


def test_weight_of_an_unknown_weigher_is_refused_by_name() -> None:
    """A misspelt name would otherwise have no effect at all."""
    with pytest.raises(BadRequestError) as refused:
        ranking_of(fleet_of(host("a")), asked(1, weights={"cpus": 1.0}))
    assert refused.value.field == "weights.cpus"


def test_weigher_that_cannot_count_is_not_called() -> None:
    """Each call costs an array of all nodes. A weigher without its field, or with a multiplier of 0, is not called."""

    def fail(*_: object) -> float:
        raise AssertionError("asked")

    weighers = {"needs": Weigher(fail, 1.0, "group"), "zero": Weigher(fail, 0.0), "one": Weigher(fail, 1.0)}
    assert ranking_of(fleet_of(host("a")), asked(1, weights={"one": 0.0}), weighers).best(1) == [0]
