"""Counts of the nodes that filters remove: the same as a count of all nodes for each decision."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

from nodestate.scheduling.request import Request, parse
from nodestate.scheduling.selection import Selector
from tests.scheduling.cells import zoned_cell


def removed_by_a_full_count(selector: Selector, request: Request) -> Counter[str]:
    steps = selector.remaining(request)
    return Counter({after.filter: before.nodes - after.nodes for before, after in pairwise(steps)})


def test_counts_of_filters_equal_a_full_count_for_each_decision() -> None:
    """Rankings judge only rows that changed, so a count that is kept up to date could drift from the truth."""
    cell, [process, _] = zoned_cell({f"n{number}": f"az{number % 3}" for number in range(12)})
    scheduler, chance = process.scheduler, random.Random(1)
    expected: Counter[str] = Counter()
    requests = [
        parse({"resources": {"VCPU": vcpu}, **more})
        for vcpu in (1, 3, 10_000)
        for more in ({}, {"zone": "az1"}, {"zone": "nowhere"}, {"ignore_nodes": ["n1", "n2"]})
    ]
    for step in range(120):
        request = chance.choice(requests)
        scheduler.refresh()
        expected += removed_by_a_full_count(scheduler.selector, request)
        if step % 2:
            scheduler.select(request)
        else:
            scheduler.claim([request])
        if not step % 5:
            cell.fleet.set_status(f"n{chance.randrange(12)}", chance.choice(["up", "up", "down"]))
            cell.run_for(1.0)
    assert {name: count for name, count in expected.items() if count} == scheduler.stats.filter_removed
    assert expected.keys() >= {"status", "resources", "zone", "ignore_nodes"}
    assert scheduler.stats.decisions["no-host"] > 0
