"""Claim tables against each other in any order, judged by the agents' allocations and the holders' claims (I8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nodestate.model import Version, partitioning
from nodestate.scheduling.claims import CLAIMS, CLOCK_S, REASSERT_S, UNSURE_S, Claim
from nodestate.store import keys
from nodestate.testing import Fault, ManualClock, MemoryServer
from nodestate.view.view import View
from tests.scheduling.claim_tables import CELL, CLAIM_TTL_S, Party
from tests.scheduling.fleets import ChangingPartition, host

ANSWER_TIMEOUT_S: Final = 5.0
OLDEST_VIEW_S: Final = CLAIM_TTL_S - ANSWER_TIMEOUT_S - CLOCK_S
"""As a scheduler bounds it: a claim counts until what became of it is in every view that decides."""
NODE: Final = "a"
"""One is enough: records have nothing to do with each other."""
KEYS: Final = (keys.claim(CELL, NODE), keys.claim_copy(CELL, NODE))
"""The keys of the two copies of its record."""
KEY: Final = KEYS[0]
VCPU: Final = 6

numbers = st.integers(0, 5)
sizes = st.sampled_from([2, 3, 6])
faults = st.builds(Fault, st.sampled_from([0, 0, None]), st.booleans())
pauses = st.sampled_from([0.0, 0.5, REASSERT_S, UNSURE_S])
skews = st.lists(st.sampled_from([0.0, -0.5, -CLOCK_S + 0.01]), min_size=2, max_size=3)


@dataclass
class PendingOrder:
    """A claim on its way to become an allocation."""

    party: Party
    claim: Claim
    ordered_at: float


def live_ids(servers: Sequence[MemoryServer]) -> dict[str, Claim]:
    """The claims in the copies of the node's record, by id; without claims that a copy calls removed."""
    home = partitioning.partition_of(NODE, len(servers))
    found = [
        CLAIMS.unpack(item.value)
        for copy, key in enumerate(KEYS[: len(servers)])
        for item in servers[(home + copy) % len(servers)].fetch([key]).values()
    ]
    removed = {claim_id for record in found for claim_id in record.removed}
    return {claim.id: claim for record in found for claim in record.claims if claim.id not in removed}


class ClaimsMachine(RuleBasedStateMachine):
    """Schedulers with views of different ages, agents that build, end and resize, servers that do not answer; no record
    is lost.

    No agent ever has to refuse an order: the claimed room is there (I8).
    """

    copies = 1
    """The number of copies of the record, and of servers. With two, one of them always answers."""

    @initialize(skews=skews, faulty=numbers)
    def begin(self, skews: list[float], faulty: int) -> None:
        self.clock = ManualClock()
        self.servers = [MemoryServer(f"m{number}", clock=self.clock) for number in range(self.copies)]
        self.faulty = faulty % self.copies
        self.cell = ChangingPartition(host(NODE, vcpu=VCPU))
        self.views: list[tuple[View, float]] = [(self.cell.view, self.clock.monotonic())]
        self.allocations: dict[str, int] = {}
        self.orders: list[PendingOrder] = []
        self.over: set[str] = set()
        self.parties: list[Party] = []
        self.made: set[str] = set()
        self.at: dict[Party, int] = {}
        self.begun = 0
        for skew in skews:
            self.parties.append(self.new(skew))

    def new(self, skew: float) -> Party:
        self.begun += 1
        party = Party(f"s{self.begun}", self.servers, self.clock, ahead_s=skew, copies=self.copies)
        self.at[party] = len(self.views) - 1
        party.look(self.views[-1][0])
        return party

    def of(self, number: int) -> Party:
        return self.parties[number % len(self.parties)]

    # -- the agent

    def report(self) -> Version:
        tenants = {name: {"resources": {"VCPU": vcpu}} for name, vcpu in self.allocations.items()}
        generation = len(self.views) + 1
        self.cell.change(host(NODE, generation, vcpu=VCPU, used=sum(self.allocations.values()), instances=tenants))
        self.views.append((self.cell.view, self.clock.monotonic()))
        return Version(1, generation)

    @rule(which=numbers)
    def carry_out(self, which: int) -> None:
        """An order arrives, unless its deadline has passed."""
        if not self.orders:
            return
        order = self.orders.pop(which % len(self.orders))
        claim = order.claim
        if self.clock.monotonic() > order.ordered_at + ANSWER_TIMEOUT_S:
            return
        self.over.add(claim.id)
        if claim.resize and claim.instance not in self.allocations:
            order.party.claim_table.drop_claim(NODE, claim.id)
            return
        self.allocations[claim.instance] = self.allocations.get(claim.instance, 0) + claim.resources["VCPU"]
        assert sum(self.allocations.values()) <= VCPU, f"{claim.id} would have to be refused: {self.allocations}"
        version = self.report()
        if claim.resize:
            order.party.claim_table.drop_claim(NODE, claim.id, version)

    @rule(which=numbers)
    def end(self, which: int) -> None:
        if self.allocations:
            del self.allocations[sorted(self.allocations)[which % len(self.allocations)]]
            self.report()

    # -- schedulers

    @rule(number=numbers, steps=st.integers(1, 3))
    def look(self, number: int, steps: int) -> None:
        """Advance a scheduler to a newer view, which need not be the newest."""
        party = self.of(number)
        self.at[party] = min(self.at[party] + steps, len(self.views) - 1)
        party.look(self.views[self.at[party]][0])

    def ready(self, number: int, steps: int = 0) -> Party:
        """A scheduler whose view is not too old to decide on."""
        self.look(number, steps)
        party = self.of(number)
        oldest = self.clock.monotonic() - OLDEST_VIEW_S
        fresh = next((at for at, (_, until) in enumerate(self.views[1:]) if until > oldest), len(self.views) - 1)
        if self.at[party] < fresh:
            self.at[party] = fresh
            party.look(self.views[fresh][0])
        party.claim_table.expire()
        assert party.subtracts_all_claims(NODE)
        return party

    @rule(number=numbers, size=sizes, build=st.sampled_from(["no", "later", "now"]), steps=st.integers(0, 3))
    def claim(self, number: int, size: int, build: str, steps: int) -> None:
        party = self.ready(number, steps)
        for _ in range(2):  # after a conflict, look and try again
            if not party.usable(NODE) or party.free(NODE) < size:
                return
            claim = party.take(NODE, size)
            if isinstance(claim, Claim):
                if build != "no":
                    self.orders.append(PendingOrder(party, claim, self.clock.monotonic()))
                if build == "now":
                    self.carry_out(len(self.orders) - 1)
                return

    @rule(number=numbers, sizes=st.lists(sizes, min_size=2, max_size=3))
    def claim_many(self, number: int, sizes: list[int]) -> None:
        """Add several claims in one batch, without looking at the others."""
        party = self.ready(number)
        if party.usable(NODE):
            for size in sizes:
                party.claim_table.add_claim(NODE, party.claim(NODE, size))
            party.claim_table.flush()

    @rule(number=numbers, which=numbers, size=sizes)
    def resize(self, number: int, which: int, size: int) -> None:
        party = self.ready(number)
        tenants = sorted(party.fleet.instances.reported[party.fleet.rows[NODE]])
        if tenants and party.usable(NODE) and party.free(NODE) >= size:
            claim = party.take(NODE, size, instance=tenants[which % len(tenants)], resize=True)
            if isinstance(claim, Claim):
                self.orders.append(PendingOrder(party, claim, self.clock.monotonic()))

    def unordered(self, party: Party) -> list[Claim]:
        """The claims that a scheduler holds and has given to no agent."""
        ordered = {order.claim.id for order in self.orders} | self.over
        now = party.claim_table.servers.time(NODE)
        return [claim for _, claim in party.claim_table.own if claim.id not in ordered and claim.until > now]

    @rule(number=numbers, which=numbers, flush=st.booleans())
    def drop(self, number: int, which: int, flush: bool) -> None:
        party = self.of(number)
        if held := self.unordered(party):
            party.claim_table.drop_claim(NODE, held[which % len(held)].id)
            if flush:
                party.claim_table.flush()

    @rule(number=numbers, which=numbers)
    def extend(self, number: int, which: int) -> None:
        """Extend a claim until the outcome is known."""
        party = self.ready(number)
        if held := self.unordered(party):
            claim = held[which % len(held)]
            longer = party.claim(NODE, claim.resources["VCPU"], id=claim.id, instance=claim.instance)
            for _ in range(3):
                party.claim_table.add_claim(NODE, longer)
                party.claim_table.flush()

    @rule(number=numbers)
    def settle(self, number: int) -> None:
        self.of(number).claim_table.reassert_own_claims()
        self.of(number).claim_table.flush_all()

    @rule(number=numbers)
    def die(self, number: int) -> None:
        """A scheduler dies, and a new one without any knowledge starts."""
        self.parties[number % len(self.parties)] = self.new(0.0)

    # -- time and faults

    @rule(seconds=st.sampled_from([1.0, ANSWER_TIMEOUT_S, CLAIM_TTL_S - 0.5, CLAIM_TTL_S + 0.5]))
    def wait(self, seconds: float) -> None:
        """Let time pass, in which every scheduler reasserts its claims each ``REASSERT_S``."""
        self.clock.advance(seconds)

    @rule(number=numbers, fault=faults)
    def fail(self, number: int, fault: Fault) -> None:
        """The next call of a scheduler is not answered."""
        self.of(number).connections[self.faulty].faults.append(fault)

    @rule(number=numbers)
    def arrive(self, number: int) -> None:
        self.of(number).connections[self.faulty].arrive()

    # -- invariants

    def counts(self, claim: Claim) -> bool:
        """Whether a claim in a copy counts. Of two copies, one may have a claim that the other one could not take: its
        scheduler knows that it has no claim.
        """
        return self.copies == 1 or claim.id in self.made

    @invariant()
    def the_node_is_not_claimed_beyond_its_capacity(self) -> None:
        """Judged by the bytes in the servers and the agent's allocations."""
        if not hasattr(self, "servers"):
            return
        now = self.clock.monotonic()
        self.made |= {claim_id for party in self.parties for _, claim_id in party.own()}
        claims = [claim for claim in live_ids(self.servers).values() if self.counts(claim)]
        claimed = sum(c.resources["VCPU"] for c in claims if c.until > now and c.id not in self.over)
        assert claimed + sum(self.allocations.values()) <= VCPU

    @invariant()
    def held_claims_are_in_the_record(self) -> None:
        """A held claim stays in its record until it expires by its holder's clock, is dropped, or becomes an
        allocation.
        """
        if not hasattr(self, "servers"):
            return
        there = live_ids(self.servers).keys()
        for party in self.parties:
            assert {claim.id for claim in self.unordered(party)} <= there

    def teardown(self) -> None:
        """Without further events all schedulers see the same, and no room stays taken."""
        if not hasattr(self, "servers"):
            return
        for party in self.parties:
            party.connections[self.faulty].faults.clear()
        self.clock.advance(CLAIM_TTL_S + 2 * CLOCK_S)
        for party in self.parties:
            party.look(self.views[-1][0])
            party.claim_table.reassert_own_claims()
            party.claim_table.flush_all()
            party.claim_table.read_records([NODE])
            party.claim_table.expire()
            assert (party.own(), party.free(NODE)) == (set(), VCPU - sum(self.allocations.values()))


TestClaims = ClaimsMachine.TestCase
TestClaims.settings = settings(settings(), max_examples=2 * settings().max_examples, stateful_step_count=40)


class ClaimsInTwoCopiesMachine(ClaimsMachine):
    """The same with two copies of the record, as long as one server always answers."""

    copies = 2


TestClaimsInTwoCopies = ClaimsInTwoCopiesMachine.TestCase
TestClaimsInTwoCopies.settings = settings(settings(), stateful_step_count=40)


class LossMachine(RuleBasedStateMachine):
    """Schedulers that promise a node without asking its agent, on a server that loses records. Holders reassert their
    claims.

    All claims that are held never exceed the node's capacity together (I8, I9).
    """

    @initialize(skews=skews)
    def begin(self, skews: list[float]) -> None:
        self.clock = ManualClock()
        self.server = MemoryServer(clock=self.clock)
        self.parties = [
            Party(f"s{number}", [self.server], self.clock, ahead_s=skew) for number, skew in enumerate(skews)
        ]
        for party in self.parties:
            party.look(ChangingPartition(host(NODE, vcpu=VCPU)).view)
        self.wait(UNSURE_S + CLOCK_S)

    def of(self, number: int) -> Party:
        return self.parties[number % len(self.parties)]

    @rule(number=numbers, size=sizes, seconds=st.sampled_from([CLAIM_TTL_S, 10 * CLAIM_TTL_S]))
    def promise(self, number: int, size: int, seconds: float) -> None:
        party = self.of(number)
        for _ in range(2):  # after a conflict, look and try again
            if party.free(NODE) < size or isinstance(party.take(NODE, size, avoid_unsure=True, seconds=seconds), Claim):
                return

    @rule(number=numbers, size=sizes)
    def boot(self, number: int, size: int) -> None:
        """Claim for a boot, which may use an unsure record because it asks the agent. The agent refuses at once."""
        party = self.of(number)
        if party.free(NODE) >= size:
            claim = party.take(NODE, size)
            if isinstance(claim, Claim):
                party.claim_table.drop_claim(NODE, claim.id)

    @rule(number=numbers, which=numbers)
    def release(self, number: int, which: int) -> None:
        party = self.of(number)
        if held := sorted(party.own()):
            party.claim_table.drop_claim(*held[which % len(held)])
            party.claim_table.flush_all()

    @rule(how=st.sampled_from(["evict", "flush", "restart"]), finder=numbers, seconds=pauses)
    def lose(self, how: str, finder: int, seconds: float) -> None:
        """Lose the record; one scheduler finds that it is gone."""
        self.clock.advance(0.001)
        self.server.evict(KEY) if how == "evict" else getattr(self.server, how)()
        self.of(finder).claim_table.read_records([NODE])
        self.wait(seconds)

    @rule(seconds=pauses)
    def wait(self, seconds: float) -> None:
        """Let time pass, in which every scheduler reasserts its claims each ``REASSERT_S``."""
        while seconds > 0:
            self.clock.advance(min(seconds, REASSERT_S))
            seconds -= REASSERT_S
            for party in self.parties:
                party.claim_table.expire()
                party.claim_table.reassert_own_claims()
                party.claim_table.flush_all()

    @invariant()
    def the_node_is_not_promised_twice(self) -> None:
        held = {
            claim.id: claim.resources["VCPU"]
            for party in getattr(self, "parties", ())
            for _, claim in party.claim_table.own
            if claim.until > party.claim_table.servers.time(NODE)
        }
        assert sum(held.values()) <= VCPU, held


TestLoss = LossMachine.TestCase
TestLoss.settings = settings(settings(), max_examples=2 * settings().max_examples, stateful_step_count=40)
