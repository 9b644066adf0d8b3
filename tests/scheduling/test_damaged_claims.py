"""Claim records and affinity seeds that no scheduler wrote: each counts as missing, and blocks its node for no one."""

from __future__ import annotations

from typing import Any

import pytest

from nodestate.ports import Put, Write
from nodestate.scheduling import fleet_refresh
from nodestate.scheduling.claims import CLAIMS, REASSERT_S, Claim, ClaimRecord
from nodestate.store import keys
from tests.planted_values import item_at, keys_with, replace, sealed
from tests.scheduling.cells import boot, cell_of
from tests.scheduling.claim_tables import CELL
from tests.scheduling.test_affinity_seed import two_schedulers
from tests.scheduling.test_claim_table import begun

NOW = 1_000.0
"""The server's clock when a test begins."""


def claim(*, until: Any = NOW + 30, vcpu: Any = 1, **more: Any) -> list[Any]:
    fields = {"id": "c", "instance": "vm", "holder": "x", "until": until, "resources": {"VCPU": vcpu}}
    return [*{**fields, **more}.values()]


WRONG_RECORDS = {
    "a claim of 2^63": [NOW - 60, 0, 0, [claim(vcpu=2**63)]],
    "a claim of 2^49": [NOW - 60, 0, 0, [claim(vcpu=2**49)]],
    "a claim of -1": [NOW - 60, 0, 0, [claim(vcpu=-1)]],
    "a claim until 1e18": [NOW - 60, 0, 0, [claim(vcpu=8, until=1e18)]],
    "a claim until next year": [NOW - 60, 0, 0, [claim(vcpu=8, until=NOW + 3e7)]],
    "a claim until no time": [NOW - 60, 0, 0, [claim(vcpu=8, until=float("nan"))]],
    "more claims than a node may have": [NOW - 60, 0, 0, [claim(vcpu=0, id=str(n)) for n in range(1_001)]],
    "amounts that are no map": [NOW - 60, 0, 0, [claim(resources=b"abc")]],
    "a version below 0": [NOW - 60, -1, 0, []],
    "a version above all": [NOW - 60, 2**53 + 1, 0, []],
    "created in the future": [NOW + 1e6, 0, 0, []],
    "created at no time": [float("inf"), 0, 0, []],
    "no list": "record",
}


@pytest.mark.parametrize("content", WRONG_RECORDS.values(), ids=WRONG_RECORDS)
def test_a_record_that_no_scheduler_writes_is_replaced_and_honest_claims_return(content: Any) -> None:
    """Regression: amounts above 2^63 ended the scheduler, and smaller ones blocked the node for ever without a word."""
    parties = begun("one", "other")
    one, other = parties.parties
    held = one.take("a", 2)
    assert isinstance(held, Claim)
    parties.put("a", sealed(content))
    other.refresh()
    other.claim_table.read_records(["a"])
    assert other.free("a") == 8
    assert other.usable("a")
    one.claim_table.reassert_own_claims()
    one.claim_table.flush()
    assert parties.ids("a") == [held.id]


def test_a_record_whose_version_no_view_ever_shows_is_replaced() -> None:
    """Regression: its node was blocked for ever, although its agent lived and reported."""
    cell, [process] = cell_of(nodes=1, schedulers=1)
    server = cell.servers[0]
    [key] = keys_with(server, ":claim:")
    record = CLAIMS.unpack(item_at(server, key).value)
    replace(server, key, CLAIMS.pack(ClaimRecord(record.born, 2**53, 2**53)))
    scheduler = process.scheduler
    scheduler.session.claim_table.read_records(["n0"])
    assert not scheduler.session.fleet.usable[0]
    for _ in range(20):
        cell.run_for(5.0)
        scheduler.refresh()
    assert scheduler.session.fleet.usable[0]
    boot(scheduler, "vm")


@pytest.mark.parametrize("value", [b"", b"\xff\xfe", b"n\r\nflush_all", b"n" * 300, b"a b"])
def test_a_seed_that_names_no_node_is_replaced(value: bytes) -> None:
    """Regression: bytes that are no text ended the scheduler."""
    _, [connection], one, other = two_schedulers()
    key = keys.anchor(CELL, "web")
    connection.write([Write(Put.ADD, key, value)])
    assert one.claim_or_get("web", "a", 30.0).node == "a"
    assert other.claim_or_get("web", "b", 30.0).node == "a"


@pytest.mark.parametrize("records_min", [1, 100])
def test_a_scheduler_reads_idle_claim_records_again_and_creates_lost_ones(
    records_min: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes nothing to them, so no failed write shows that they were lost, or lack the code of a new secret."""
    monkeypatch.setattr(fleet_refresh, "REREAD_RECORDS_MIN", records_min)
    cell, (one,) = cell_of(20, schedulers=1)
    nodes = cell.fleet.nodes()
    for node in nodes:
        cell.evict_claims(node)
    assert one.scheduler.claim_table.stats.lost == 0
    cell.run_for(fleet_refresh.REREADS_COUNT * (REASSERT_S + 1.0))
    assert one.scheduler.claim_table.stats.lost == len(nodes)
    assert all(cell.server(node).fetch([keys.claim(CELL, node)]) for node in nodes)
