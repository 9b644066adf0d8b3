"""The machine of schedulers in a cell with two replicas of everything: states and claim records.

The rules of ``test_scheduling`` and two more: a scheduler does not reach a server that the others reach, and a server
returns with another clock. While a server is away, or right after it lost its memory, the other copy of each claim
record counts (I8, I9), and instances never move or end by themselves (I10).
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from nodestate.model import partitioning
from nodestate.scheduling.claims import CLAIMS, REASSERT_S, Claim, ClaimRecord
from nodestate.store import keys
from nodestate.testing import MemoryServer
from tests.machines.scheduling_cell import CELL, STEP_S, SchedulingCell
from tests.machines.test_scheduling import NODES, STATE, SchedulingMachine, numbers


class ReplicatedCell(SchedulingCell):
    """A cell with ``replicas = 2``."""

    def copies(self, node: str) -> list[tuple[MemoryServer, str, ClaimRecord | None]]:
        """The copies of a node's claim record: server, key and the bytes' content."""
        home, found = partitioning.partition_of(node, len(self.servers)), []
        for copy, key in enumerate((keys.claim(CELL, node), keys.claim_copy(CELL, node))):
            server = self.servers[(home + copy) % len(self.servers)]
            item = server.fetch([key]).get(key)
            record = CLAIMS.unpack(item.value) if item is not None else None
            if copy and record is not None:  # its times are told by the clock that the first server had then
                clocks = [self.clocks.get(one.name, 0.0) for one in (self.server(node), server)]
                record = record.shifted(round(clocks[0] - clocks[1]) - record.ahead_s)
            found.append((server, key, record))
        return found

    def claims(self, node: str) -> list[Claim]:
        records = [record for _, _, record in self.copies(node) if record is not None]
        removed = {claim_id for record in records for claim_id in record.removed}
        found = {claim.id: claim for record in records for claim in record.claims if claim.id not in removed}
        return [claim for claim in found.values() if claim.until > self.claim_time(node)]

    def note_loss(self, server: MemoryServer, node: str) -> None:
        """Note that a server loses its copy of a record: claims that the other copy does not have are lost."""
        lost, kept = set[str](), set[str]()
        for one, _, record in self.copies(node):
            ids = {claim.id for claim in record.claims} if record is not None else set()
            if one is server:
                lost |= ids
            else:
                kept |= ids
        if lost - kept:
            self.nodes_with_lost_claims.add(node)

    def evict_claims(self, node: str) -> None:
        server, key, _ = self.copies(node)[self.rng.randrange(2)]
        self.note_loss(server, node)
        server.evict(key)

    def flush_server(self, number: int) -> None:
        server = self.servers[number % len(self.servers)]
        self.note_losses(server)
        server.flush()

    def note_losses(self, server: MemoryServer) -> None:
        """Note that a server loses all its copies."""
        for node in self.fleet.nodes():
            self.note_loss(server, node)

    def restart_with_another_clock(self, number: int, shift: float) -> None:
        server = self.servers[number % len(self.servers)]
        self.note_losses(server)
        server.restart()
        self.clocks[server.name] = self.clocks.get(server.name, 0.0) + shift


class ReplicatedSchedulingMachine(SchedulingMachine):
    """Several schedulers in a cell with two replicas."""

    cell: ReplicatedCell

    def new_cell(self, seed: int, servers: int) -> SchedulingCell:
        designs = ("snapshot", "snapshot_replica")
        return ReplicatedCell(dict.fromkeys(NODES, STATE), seed=seed, servers=servers + 1, designs=designs, replicas=2)

    @rule(number=numbers, server=numbers)
    def cut_off_one(self, number: int, server: int) -> None:
        """One scheduler no longer reaches a server of claim records. The others do, so its claims and theirs may add
        up to more than a node has. Then its agent decides.
        """
        stores = self.process(number).claim_stores
        stores[server % len(stores)].is_cut_off = True
        self.cell.nodes_with_lost_claims |= set(self.cell.fleet.nodes())

    @rule()
    def reconnect(self) -> None:
        """All schedulers reach all servers."""
        for process in self.cell.processes:
            for store in process.claim_stores:
                store.is_cut_off = False

    @rule(number=numbers, shift=st.sampled_from([-7_200.0, -30.0, 30.0, 7_200.0]))
    def restart_with_another_clock(self, number: int, shift: float) -> None:
        """All schedulers reach both servers, and find out, before anything else happens to a server."""
        self.reconnect()
        self.cell.restart_with_another_clock(number, shift)
        self.cell.run_for(REASSERT_S + STEP_S)

    @rule(number=numbers, seconds=st.sampled_from([1.0, 10.0, 40.0]))
    def cut_off(self, number: int, seconds: float) -> None:
        """Stop a server for some seconds. A scheduler that died before may have left a claim in one copy only."""
        for node in self.cell.fleet.nodes():
            first, second = (record.claims if record is not None else () for _, _, record in self.cell.copies(node))
            if {claim.id for claim in first} != {claim.id for claim in second}:
                self.cell.nodes_with_lost_claims.add(node)
        super().cut_off(number, seconds)

    def teardown(self) -> None:
        if hasattr(self, "cell"):
            self.reconnect()
        super().teardown()


TestReplicatedScheduling = ReplicatedSchedulingMachine.TestCase
TestReplicatedScheduling.settings = settings(max_examples=15, stateful_step_count=30)
