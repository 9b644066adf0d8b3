"""The claim record of a node, or an affinity seed, is mutated; then two schedulers claim, place and expire."""

from __future__ import annotations

from random import Random
from typing import Any, Final

from nodestate.ports import Put, Write
from nodestate.scheduling.claims import CLAIMS, Claim, ClaimRecord
from nodestate.scheduling.request import parse
from nodestate.store import keys
from tests.fuzz.mutation import mutated_bytes, mutated_item
from tests.scheduling.claim_tables import CELL, Parties
from tests.scheduling.fleets import ChangingPartition, host

HINTS: Final[dict[str, Any]] = {"group_policy": "anti-affinity", "max_per_node": 1}
CLAIM: Final = Claim("0000", "vm", "other", 1_030.0, {"VCPU": 1}, "g", HINTS, "r", 2, kept=True, owner="me")
RECORDS: Final = (
    ClaimRecord(900.0, 1, 1, (CLAIM,)),
    ClaimRecord(900.0, 1, 1, (CLAIM, CLAIM), "failed", 990.0, 990_500),
)
VIEW: Final = ChangingPartition(*(host(name, vcpu=8) for name in "ab")).view


def run(data: Random) -> bool:
    """Mutate one record."""
    parties = Parties("one", "two")
    [server], [one, two] = parties.servers, parties.parties
    raw, reached = mutated_item(data, CLAIMS.pack(data.choice(RECORDS)))
    server.write([Write(Put.ADD, keys.claim(CELL, "a"), raw)])
    server.write([Write(Put.ADD, keys.anchor(CELL, "web"), mutated_bytes(data, b"a"))])
    parties.show(VIEW)
    honest = one.take("b", 2)
    assert isinstance(honest, Claim)
    two.refresh()
    two.claim_table.read_records("b")
    assert two.free("b") == 6, "a claim on the other node counts"
    placings = one.place(parse({"resources": {"VCPU": 1}}))
    placings += two.place(parse({"resources": {"VCPU": 1}, "group": {"name": "web", "policy": "affinity"}}))
    parties.clock.advance(4.0)
    for party in (one, two):
        party.claim_table.reassert_own_claims()
        party.claim_table.expire()
        party.claim_table.receipts_to_await()
        party.claim_table.flush_all()
        party.refresh()
    parties.clock.advance(3 * 86_400.0)
    for party in (one, two):
        party.claim_table.read_records("ab")
        party.claim_table.expire()
        assert all(party.free(node) == 8 for node in "ab"), "a claim outlives the longest lifetime"
    assert placings
    return reached
