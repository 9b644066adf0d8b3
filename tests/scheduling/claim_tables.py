"""Claim tables for tests: several schedulers on the same claim records, each with its own fleet and connections."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from nodestate.errors import NodestateError, StoreUnavailableError
from nodestate.model import partitioning
from nodestate.ports import ClaimStore, Clock, Item, Put, Write, WriteResult, WriteStatus
from nodestate.scheduling.claims import CLAIMS, Claim, ClaimRecord
from nodestate.scheduling.claims.affinity_seed import AffinitySeed
from nodestate.scheduling.claims.claim_table import ClaimTable
from nodestate.scheduling.claims.placer import Placer
from nodestate.scheduling.claims.placing import Placing
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.request import Request
from nodestate.scheduling.selection import Selector
from nodestate.scheduling.selection.node_faults import NodeFaults
from nodestate.scheduling.selection.node_preference import NodePreference
from nodestate.scheduling.selection.plugins import own
from nodestate.store import keys
from nodestate.testing import Fault, FaultyStore, ManualClock, MemoryServer, MemoryStore, SeededIds
from nodestate.view.view import View

CELL = "cell1"
CLAIM_TTL_S = 30.0


class CountingConnection(FaultyStore):
    """A connection that counts its calls and the readings of its item limit, and fails by its ``faults`` in turn. Its
    clock may differ from other clients'. ``before_write`` is called before each write: other schedulers act at that
    moment.
    """

    def __init__(self, server: MemoryServer, ahead_s: float = 0.0) -> None:
        super().__init__(MemoryStore(server), lambda _operation, _count: self.faults.pop(0) if self.faults else None)
        self.faults: list[Fault | None] = []
        self.calls: list[tuple[str, int]] = []
        self.limit_readings_count = 0
        self.before_write: Callable[[], object] = lambda: None
        self.clock_away = False
        """Whether asking for the server's time fails."""
        self._ahead_s = ahead_s

    @property
    def max_value_bytes(self) -> int:
        self.limit_readings_count += 1
        return super().max_value_bytes

    def fetch(self, keys: Sequence[str], *, values_only: bool = False) -> dict[str, Item]:
        self.calls.append(("fetch", len(keys)))
        return super().fetch(keys, values_only=values_only)

    def write(self, writes: Sequence[Write]) -> list[WriteResult]:
        self.calls.append(("write", len(writes)))
        self.before_write()
        return super().write(writes)

    def server_time(self) -> float:
        if self.clock_away:
            raise StoreUnavailableError(self.name, "made to fail: server_time")
        return super().server_time() + self._ahead_s


class Party:
    """One scheduler's claim table with its fleet and placer. It claims ``VCPU`` only."""

    def __init__(
        self,
        name: str,
        servers: Iterable[MemoryServer],
        clock: Clock,
        *,
        ahead_s: float = 0.0,
        wrap: Callable[[ClaimStore], ClaimStore] = lambda store: store,
        copies: int = 1,
    ) -> None:
        self.name = name
        self.fleet = Fleet()
        self.ids = SeededIds(name)
        self.connections = [CountingConnection(server, ahead_s) for server in servers]
        preference, faults = NodePreference(name, clock, CLAIM_TTL_S), NodeFaults(clock)
        self.claim_table = ClaimTable(
            CELL, list(map(wrap, self.connections)), self.fleet, preference, faults, clock, copies=copies
        )
        selector = Selector(self.fleet, own(), zlib.crc32(name.encode()), node_faults=faults)
        affinity_seed = AffinitySeed(CELL, self.connections)
        self.placer = Placer(name, self.fleet, selector, self.claim_table, affinity_seed, self.refresh, clock, self.ids)
        self.refreshes = 0
        self._numbers = itertools.count(1)

    def look(self, view: View) -> None:
        """Advance to this view, and read the records of nodes that are new in it."""
        known, before = len(self.fleet), self.fleet.changes
        self.fleet.advance(view)
        self.claim_table.on_fleet_advanced(before)
        if known < len(self.fleet):
            self.claim_table.read_records(self.fleet.names[known:])

    def claim(self, node: str, vcpu: int = 1, seconds: float = CLAIM_TTL_S, **more: Any) -> Claim:
        """A new claim, which the caller may add."""
        number = f"{self.name}-{next(self._numbers)}"
        until = self.claim_table.servers.time(node) + seconds
        return Claim(
            **{
                "id": number,
                "instance": number,
                "holder": self.name,
                "until": until,
                "resources": {"VCPU": vcpu},
                **more,
            }
        )

    def take(
        self, node: str, vcpu: int = 1, *, avoid_unsure: bool = False, **more: Any
    ) -> Claim | WriteStatus | NodestateError:
        """Add a claim and write it. Returns the claim if it was stored, else the outcome."""
        claim = self.claim(node, vcpu, **more)
        self.claim_table.add_claim(node, claim, avoid_unsure=avoid_unsure)
        outcome = self.claim_table.flush()[node]
        return claim if outcome is WriteStatus.STORED else outcome

    def refresh(self) -> bool:
        """Read the records that have claims again."""
        self.refreshes += 1
        before = self.fleet.changes
        self.claim_table.read_records(
            [node for node, known in self.claim_table.records.known.items() if known.record.claims]
        )
        return self.fleet.changes != before

    def place(self, *requests: Request, **more: Any) -> list[Placing]:
        """A placing for every instance of these requests, all placed at once."""
        placings = [
            Placing(request, one, CLAIM_TTL_S, **more) for request in requests for one in request.instance_ids(self.ids)
        ]
        self.placer.place(placings)
        return placings

    def free(self, node: str) -> int:
        """The free processors of a node, as this scheduler's fleet shows them."""
        return int(self.fleet.free["VCPU"][self.fleet.rows[node]])

    def subtracts_all_claims(self, node: str) -> bool:
        """Whether the claims that the fleet subtracts are the ones in the node's record and edits."""
        row, outstanding = self.fleet.rows[node], self.fleet.claim_overlay.outstanding
        before = outstanding.get(row)
        self.claim_table._overlay.apply([node])
        return outstanding.get(row) == before

    def usable(self, node: str) -> bool:
        """Whether this scheduler may place anything on a node."""
        return bool(self.fleet.usable[self.fleet.rows[node]])

    def own(self) -> set[tuple[str, str]]:
        """The claims that this scheduler holds, as (node, id)."""
        return {(node, claim.id) for node, claim in self.claim_table.own}


class Parties:
    """Several schedulers on the same servers, all at the view that was shown last."""

    def __init__(self, *names: str, servers: int = 1, server: MemoryServer | None = None, copies: int = 1) -> None:
        self.clock = ManualClock()
        self.copies = copies
        self.servers = [server or MemoryServer(f"m{number}", clock=self.clock) for number in range(servers)]
        self.parties = [self.start(name) for name in names]

    def start(self, name: str) -> Party:
        """Another scheduler on these servers."""
        return Party(name, self.servers, self.clock, copies=self.copies)

    def show(self, view: View) -> None:
        """All schedulers advance to this view."""
        for party in self.parties:
            party.look(view)

    def record(self, node: str) -> ClaimRecord:
        """The record of a node, as the server has it."""
        return CLAIMS.unpack(self.server_of(node).fetch([keys.claim(CELL, node)])[keys.claim(CELL, node)].value)

    def ids(self, node: str) -> list[str]:
        """The ids of the claims in the server's record of a node."""
        return [claim.id for claim in self.record(node).claims]

    def server_of(self, node: str) -> MemoryServer:
        """The server of a node's record."""
        return self.servers[partitioning.partition_of(node, len(self.servers))]

    def copy_server_of(self, node: str) -> MemoryServer:
        """The server of the second copy of a node's record."""
        return self.servers[(partitioning.partition_of(node, len(self.servers)) + 1) % len(self.servers)]

    def copy_record(self, node: str) -> ClaimRecord:
        """The second copy of the record of a node, as its server has it."""
        key = keys.claim_copy(CELL, node)
        return CLAIMS.unpack(self.copy_server_of(node).fetch([key])[key].value)

    def evict(self, node: str) -> None:
        """Let the server lose a node's record."""
        assert self.server_of(node).evict(keys.claim(CELL, node))

    def put(self, node: str, value: bytes) -> None:
        """Replace the bytes of a node's record."""
        server, key = self.server_of(node), keys.claim(CELL, node)
        [written] = server.write([Write(Put.CAS, key, value, server.fetch([key])[key].cas)])
        assert written.status is WriteStatus.STORED


Loss = Callable[[Parties, str], None]
LOSSES: dict[str, Loss] = {
    "evicted": lambda parties, node: parties.evict(node),
    "flushed": lambda parties, node: parties.server_of(node).flush(),
    "restarted": lambda parties, node: parties.server_of(node).restart(),
}
