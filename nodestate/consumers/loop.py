"""The consumer: takes what the broker delivers, folds it, writes every design, and only then acks.

One partition in the loop::

    (not held) --a delivery: the broker made us its consumer--> take (CAS of the term) --> held
    held --deliveries--> folded --every design wrote it--> acked; what was refused of it, once it is dead-lettered
    folded --the store failed--> folded (the same batch again, after a pause; others go on)
    held --fenced: another owner took it--> (not held), as all others: the connection is given up, and what was
        not acked goes back to the queues, for whoever is the active consumer now
    held --the connection to the broker broke--> (not held), as all others
    held --the store lost the epoch--> begun anew from memory --> held

A step is a plain function of an injected clock, source and stores, so that a seeded simulation can run it.
Assumptions: the broker delivers a partition to one consumer at a time and in order, save when it was wrong about
who is alive; then the term in the head decides.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from nodestate.config import Config
from nodestate.consumers.partition import Counts, OwnedPartition, Pending, ResyncBackoff, watermark_message
from nodestate.consumers.seed_layout import SeedLayout
from nodestate.consumers.transition_log import TransitionLog
from nodestate.designs import DESIGNS
from nodestate.designs.layout_removal import forget_layout, fresh_s
from nodestate.errors import (
    BrokerUnavailableError,
    DeadLetterError,
    EpochLostError,
    FencedError,
    NodestateError,
    StoreError,
)
from nodestate.model import MAX_NODE_NAME_CHARS
from nodestate.ports import Clock, Delivery, Resync, ResyncSender, Source, Store, Where
from nodestate.store import keys
from nodestate.store.head import Place, forget
from nodestate.store.partition_writer import PartitionWriter, Taken
from nodestate.store.round_trips import Steps, Stores, run
from nodestate.store.wire import ENVELOPE_BYTES

MAX_RESYNC_NODES_COUNT: Final = 1_000
"""Above so many nodes in want of a report their whole partitions are asked."""
MAX_ASKING_S: Final = 60.0
"""Longest pause before a node is asked for a report again. Each answer that can't be kept is a dead letter."""
RETRY_S: Final = 0.2
"""Pause before a store or broker that failed is tried again."""
JOIN_AGAIN_S: Final = 1.0
"""Pause before a design that could not be begun is tried again."""
SEED_WAIT_RENEWALS_COUNT: Final = 30
"""For so many renewals another layout is waited for, and at least for as long as agents would take to report anew."""
BURY_AGAIN_S: Final = 1.0
"""Pause before dead letters are tried again that could not be given."""
ITEM_HEADER_BYTES: Final = 512
"""What an item holds beside a record's parts or an event, at most: format, stamp, lengths, the node's name."""
assert ITEM_HEADER_BYTES > ENVELOPE_BYTES + MAX_NODE_NAME_CHARS + 200


@dataclass(slots=True)
class Stats:
    """Counters of one consumer, since its start."""

    counts: Counts = field(default_factory=Counts)
    received: int = 0
    acked: int = 0
    commits: int = 0
    takeovers: int = 0
    fenced: int = 0
    epochs_begun: int = 0
    repairs: int = 0
    resyncs: int = 0
    store_errors: int = 0
    broker_errors: int = 0


class Consumer:
    """Owns the partitions that the broker gives it of one layout, that of its settings, and writes them in the designs of its
    settings, or those that it is told to ``adopt``.

    ``seed_layout``: another layout, where partitions begin of which nothing is stored. While it is not whole they are not begun, for
    some time; then with nothing, and all agents are asked. What is stored and was long behind counts as nothing, save where the layout
    is the one that ``serves_readers``: it may have been left, its queues deleted, and not forgotten.
    """

    def __init__(
        self,
        config: Config,
        source: Source,
        stores: Stores,
        resync: ResyncSender,
        clock: Clock,
        rng: random.Random,
        name: str,
        *,
        stats: Stats | None = None,
        seed_layout: SeedLayout | None = None,
    ) -> None:
        self.config = config
        self.designs = config.designs
        self.seed_layout = seed_layout
        self.serves_readers = False
        self.stats = stats or Stats()
        self.owned: dict[int, OwnedPartition] = {}
        self._source = source
        self._stores = stores
        self._resync = resync
        self._clock = clock
        self._rng = rng
        self._owner = f"{name}/{rng.getrandbits(48):012x}"
        self._log = structlog.get_logger("nodestate.consumer").bind(member=name, layout=config.partitions)
        self._transitions = TransitionLog(self._log)
        self._renew_at = clock.monotonic()
        self._bury_at = self._ask_at = self._received_at = clock.monotonic()
        self._ask_pause_s = 0.0
        self._retry_at: dict[int, float] = {}
        self._arrived: dict[int, list[Delivery]] = {}
        self._arrived_at: dict[int, float] = {}
        self._joining: int | None = None
        self._join_at = clock.monotonic()

    # -- one step -------------------------------------------------------------------------------

    def step(self) -> int:
        """Receive, take, fold, write, ack, renew. Returns how many messages came; never raises for outages."""
        came = self._receive()
        self._take_new()
        self._write_due()
        self._bury_refused()
        self._renew_due()
        self._ask_due()
        return came

    def run(self, until: Callable[[], bool]) -> None:
        """Step until told to stop."""
        while not until():
            self.step()

    def close(self) -> None:
        """Give the connections back; what is not acked goes to the next owner."""
        self._source.close()
        self._stores.close()

    # -- receiving ------------------------------------------------------------------------------

    def _receive(self) -> int:
        # The batch before took its time, too: what came meanwhile has waited for that long already.
        wait_s = max(0.0, self.config.flush_s - (self._clock.monotonic() - self._received_at))
        try:
            deliveries = self._source.receive(self.config.batch_events, wait_s)
        except BrokerUnavailableError as error:
            self._session_ended(error)
            self._clock.sleep(RETRY_S)
            return 0
        self._received_at = self._clock.monotonic()
        self._transitions.recovered("broker")
        for delivery in deliveries:
            held = self.owned.get(delivery.partition)
            if held is None:
                self._arrived.setdefault(delivery.partition, []).append(delivery)
                self._arrived_at.setdefault(delivery.partition, self._received_at)
            else:
                held.backlog.append(delivery)
        self.stats.received += len(deliveries)
        return len(deliveries)

    def _drop_all(self) -> None:
        """The session is over: all that is not acked comes again, here or elsewhere. Whose the partitions are now, only
        the next deliveries tell; then they are taken anew, from the stores.
        """
        self._arrived.clear()
        self._arrived_at.clear()
        self.owned.clear()
        self._retry_at.clear()

    # -- taking ---------------------------------------------------------------------------------

    def _take_new(self) -> None:
        """Become the owner of every partition that messages came for, with what the stores have of it, else another layout."""
        now = self._clock.monotonic()
        due = [number for number in self._arrived if self._retry_at.get(number, now) <= now]
        if not due:
            return
        fresh = {number: OwnedPartition(number, self._writers(number, self.designs), now) for number in due}
        results = run(
            {
                (number, name): (self._store(number, name), writer.take())
                for number, held in fresh.items()
                for name, writer in held.writers.items()
            }
        )
        stored: dict[int, dict[str, Taken]] = {}
        for number, held in fresh.items():
            found = {name: results[number, name] for name in held.writers}
            failed = [result for result in found.values() if isinstance(result, NodestateError)]
            if failed:
                self._postpone(number, failed[0])
            else:
                stored[number] = {name: one for name, one in found.items() if isinstance(one, Taken)}
        self._seed_partitions(stored, now)
        begin: dict[tuple[int, str], tuple[Store, Steps[None]]] = {}
        forgotten: dict[tuple[int, str], tuple[Store, Steps[None]]] = {}
        for number, taken in stored.items():
            held = fresh[number]
            for name in self._reconcile(held, taken, now):
                begin[number, name] = (self._store(number, name), self._begin(held, name, now))
            unwritten = [name for name in DESIGNS.keys() - held.writers.keys() if self._has_place(name)]
            forgotten |= {(number, name): self._forgetting(number, name) for name in unwritten}
        self._forget(forgotten)
        begun = run(begin)
        for number, held in fresh.items():
            failed = [error for (p, _), error in begun.items() if p == number and isinstance(error, NodestateError)]
            if failed:
                self._postpone(number, failed[0])
            elif self._retry_at.get(number, now) <= now:
                self._retry_at.pop(number, None)
                self._arrived_at.pop(number)
                held.backlog.extend(self._arrived.pop(number))
                self.owned[number] = held
                self.stats.takeovers += 1
                self._renew_at = now
                self._log.info("took", partition=number, nodes=len(held.records), vouched=held.complete)

    def _seed_partitions(self, stored: dict[int, dict[str, Taken]], now: float) -> None:
        """Where nothing is stored that counts, take what the seed_layout has; leave those out that are to wait for it."""
        if self.seed_layout is None:
            return
        wanted = {number: self._arrived_at[number] for number, taken in stored.items() if not self._counts(taken)}
        given = self.seed_layout.parts(self.config.partitions, wanted) if wanted else {}
        for number, arrived_at in wanted.items():
            if number in given:
                stored[number] = {"seed_layout": given[number]}
            elif now < arrived_at + max(self.config.settle_s, SEED_WAIT_RENEWALS_COUNT * self.config.renew_s):
                del stored[number]
                self._retry_at[number] = now + RETRY_S

    def _counts(self, taken: Mapping[str, Taken]) -> bool:
        """Whether what is stored can be built upon without a look at another layout. (A head gets older with each owner that takes it
        and goes, so that nobody who was here for a moment makes an old state a fresh one.)
        """
        known_ms = [one.behind_ms for one in taken.values() if one.behind_ms is not None]
        return min(known_ms, default=math.inf) <= fresh_s(self.config) * 1000 or (
            self.serves_readers and len(taken) > 0
        )

    def _writers(
        self, number: int, names: Iterable[str], owned_since: float | None = None
    ) -> dict[str, PartitionWriter]:
        return {name: DESIGNS[name].writer(self._place(number, name, owned_since)) for name in names}

    def _place(self, number: int, name: str, owned_since: float | None = None) -> Place:
        prefix = keys.prefix(self.config.cell, self.config.partitions, number, DESIGNS[name].letter)
        store, lease_s = self._store(number, name), int(self.config.lease_s)
        return Place(prefix, number, self._owner, lease_s, store, self._clock, owned_since)

    def _has_place(self, name: str) -> bool:
        return self._stores.has(DESIGNS[name].where)

    def _store(self, number: int, name: str) -> Store:
        """Where a partition of a design lives."""
        return self._stores.of(number, DESIGNS[name].where)

    def _begin(self, held: OwnedPartition, name: str, now: float) -> Steps[None]:
        epoch = self._rng.getrandbits(63)
        self.stats.epochs_begun += 1
        self._log.info(
            "begins an epoch", partition=held.number, design=name, epoch=f"{epoch:x}", nodes=len(held.records)
        )
        return held.writers[name].begin(epoch, held, held.vitals(now))

    def _reconcile(self, held: OwnedPartition, taken: dict[str, Taken], asked_at: float) -> list[str]:
        """Fill the partition with the newest that any design, or the seed_layout, has of each node. Ages in ``taken`` were true at
        ``asked_at`` or later. Returns the designs to write anew:
        those that had nothing, not all, or not the same. (A crash between two designs' commits leaves one behind; its
        events come again, but the newer design's fold would drop them as duplicates.)
        """
        now = self._clock.monotonic()
        if taken:
            first = max(taken.values(), key=lambda one: len(one.records))
            newest = {record.name: record for record in first.records}
            for other in taken.values():
                for record in other.records:
                    known = newest.get(record.name)
                    if known is None or (record.version, record.wanted) > (known.version, known.wanted):
                        newest[record.name] = record
            held.fill(list(newest.values()), first.ages_ms, asked_at)
            held.complete = any(one.vouched for one in taken.values())
            # Only of a design that is all there: what another lacks may be just what its claim was about.
            behind_ms = [one.behind_ms for one in taken.values() if one.behind_ms is not None and one.whole]
            held.caught_up_at = asked_at - min(behind_ms) / 1000 if behind_ms else held.caught_up_at
        held.complete_after = now + self.config.settle_s
        held.needs_full_resync = not held.complete
        same = {name for name, one in taken.items() if one.whole and one.records == held.records}
        return [name for name in held.writers if name not in same]

    # -- writing --------------------------------------------------------------------------------

    def _write_due(self) -> None:
        """Fold what waits, write it in every design, ack what all have written."""
        now = self._clock.monotonic()
        work: dict[tuple[int, str], tuple[Store, Steps[None]]] = {}
        for held in self.owned.values():
            if self._retry_at.get(held.number, now) > now:
                continue
            try:
                pending = self._pending(held)
            except StoreError as error:
                self._postpone(held.number, error)
                continue
            for name in sorted(pending.unconfirmed_designs) if pending else ():
                work[held.number, name] = (self._store(held.number, name), self._write(held, name, now))
        for (number, name), result in run(work).items():
            self._written(number, name, result)
        for held in list(self.owned.values()):
            if (
                self.owned.get(held.number) is held
                and held.pending is not None
                and not held.pending.unconfirmed_designs
            ):
                self._finish(held)
        self._joining = None

    def _pending(self, held: OwnedPartition) -> Pending | None:
        """What is to be written of a partition: the work under way, or new work. What the store lost comes first, as
        under steady traffic there would be no time for it after.
        """
        if held.pending is None and held.lost:
            held.pending = held.maintenance(held.lost)
        elif (
            held.pending is None and held.joining and self._joining is None and self._join_at <= self._clock.monotonic()
        ):
            self._joining = held.number  # one in a step, as all rows of a large partition take their time
            held.pending = held.maintenance(held.joining)
        elif held.pending is None and held.wants_repair:
            held.pending = held.maintenance(held.wants_repair, frozenset(held.wants_repair))
            held.wants_repair = set()
        elif held.pending is None and held.backlog and (there := held.writers.keys() - held.joining):
            room = min(self._store(held.number, name).max_value_bytes for name in there) - ITEM_HEADER_BYTES
            held.pending = held.take_batch(
                self._clock.time(), self.config.partitions, room, self._owner, self.stats.counts
            )
        return held.pending

    def _write(self, held: OwnedPartition, name: str, now: float) -> Steps[None]:
        assert held.pending is not None
        if name in held.lost:
            return self._begin(held, name, now)
        if name in held.joining:
            return self._join(held, name, now)
        vitals = held.vitals(now)
        if name in held.pending.repair:
            return held.writers[name].repair(held, vitals)
        return held.writers[name].commit(held.pending.batch, held, vitals)

    def _written(self, number: int, name: str, result: NodestateError | None) -> None:
        held = self.owned.get(number)
        if held is None or held.pending is None:
            return
        if result is None:
            held.lost.discard(name)
            if name in held.joining:
                held.joining.discard(name)
                self._drop_leaving()
            held.pending.unconfirmed_designs.discard(name)
            self.stats.commits += 1
            self._retry_at.pop(number, None)
            self._transitions.recovered(f"partition {number}")
        elif name in held.joining and not isinstance(result, FencedError):
            # What is not there yet must not keep those waiting that are: no events are in this, so nothing is lost with it.
            held.pending = None
            self._join_at = self._clock.monotonic() + JOIN_AGAIN_S
            self._transitions.failing(f"begin of {name}", str(result))
        else:
            self._failed(held, name, result)

    def _finish(self, held: OwnedPartition) -> None:
        """All designs have the batch: ack what was taken of it, and have the rest dead-lettered."""
        pending, held.pending = held.pending, None
        assert pending is not None
        held.caught_up_at = max(held.caught_up_at, pending.caught_up_at)
        held.refused.extend(pending.bad)
        bad = {id(delivery) for delivery, _ in pending.bad}
        self._ack([delivery for delivery in pending.deliveries if id(delivery) not in bad])

    def _bury_refused(self) -> None:
        """Give what was refused to the dead-letter queue, then ack it. While that takes nothing, everything else goes on,
        up to as many refused messages as the broker sends without an ack.
        """
        now = self._clock.monotonic()
        if now < self._bury_at:
            return
        for held in list(self.owned.values()):
            while held.refused and self.owned.get(held.number) is held:
                delivery, error = held.refused[0]
                try:
                    self._source.dead_letter(delivery, error.reason, error.detail)
                except DeadLetterError as blocked:
                    self._transitions.failing("dead letters", str(blocked))
                    self._bury_at = now + BURY_AGAIN_S
                    return
                except BrokerUnavailableError as gone:
                    self._session_ended(gone)
                    return
                held.refused.popleft()
                self._transitions.recovered("dead letters")
                self._log.warning("dead letter", partition=held.number, reason=error.reason, detail=error.detail)
                self._ack([delivery])

    def _ack(self, deliveries: list[Delivery]) -> None:
        """The only place that acks: what all designs have, and what the dead-letter queue has."""
        if not deliveries:
            return
        try:
            self._source.ack(deliveries)
        except BrokerUnavailableError as error:
            self._session_ended(error)  # not acked, so they come again, as duplicates
        else:
            self.stats.acked += len(deliveries)

    # -- failing --------------------------------------------------------------------------------

    def _failed(self, held: OwnedPartition, name: str, error: NodestateError) -> None:
        if isinstance(error, FencedError):
            # Another owner took it. The connection is given up: what its session still holds in buffers must go
            # back to the queue, to whoever is the active consumer now.
            self.stats.fenced += 1
            self._log.warning("fenced", partition=held.number, why=str(error))
            self._source.close()
            self._drop_all()
        elif isinstance(error, EpochLostError):
            self._log.warning("the store lost an epoch", partition=held.number, design=name, why=str(error))
            held.lost.add(name)
            held.mark_uncertain(self._clock.monotonic())
        else:
            self._postpone(held.number, error)

    def _postpone(self, number: int, error: NodestateError) -> None:
        self.stats.store_errors += 1
        self._transitions.failing(f"partition {number}", str(error))
        self._retry_at[number] = self._clock.monotonic() + RETRY_S

    def _session_ended(self, error: BrokerUnavailableError) -> None:
        """Any call of the source may be the one to tell; the next one would begin another session in silence."""
        self._broker_failed(error)
        self._drop_all()

    def _broker_failed(self, error: BrokerUnavailableError) -> None:
        self.stats.broker_errors += 1
        self._transitions.failing("broker", str(error))

    # -- renewing -------------------------------------------------------------------------------

    def _renew_due(self) -> None:
        """Confirm every partition also when nothing happens; see what the store lost and readers ask for."""
        now = self._clock.monotonic()
        if now < self._renew_at:
            return
        self._renew_at = now + self.config.renew_s
        try:
            for held in self.owned.values():
                self._source.send_marker(held.number, watermark_message(self._owner, now))
        except BrokerUnavailableError as error:
            self._session_ended(error)
            return
        work: dict[tuple[int, str], tuple[Store, Steps[bool]]] = {}
        for held in self.owned.values():
            if held.pending is not None:
                continue
            if not held.complete and held.caught_up_at >= held.complete_after:
                held.complete = True
                self._log.info("vouches for", partition=held.number, nodes=len(held.records))
            vitals = held.full_vitals(now)
            for name, writer in held.writers.items():
                if name not in held.joining:
                    work[held.number, name] = (self._store(held.number, name), writer.renew(vitals))
        for (number, name), result in run(work).items():
            renewed = self.owned.get(number)
            if renewed is None:
                continue
            if isinstance(result, NodestateError):
                self._failed(renewed, name, result)
            elif result:
                self.stats.repairs += 1
                renewed.wants_repair.add(name)

    # -- going along with the cell ----------------------------------------------------------------

    def adopt(self, designs: Sequence[str]) -> None:
        """Write these from now on. One that is new is begun, partition by partition, from what is held; one that is gone is
        forgotten, as soon as another one is there.
        """
        came, gone = set(designs) - set(self.designs), set(self.designs) - set(designs)
        self.designs = tuple(designs)
        for held in self.owned.values():
            held.leaving = (held.leaving | gone & held.writers.keys()) - came
            new = came - held.writers.keys()
            # A machine that stood still may have stopped its clock, too: then another's head is as old as a renewal at most.
            owned_since = held.taken_at - fresh_s(self.config)
            held.writers |= self._writers(held.number, new, owned_since)
            held.joining |= new
        self._drop_leaving()

    def leave(self) -> None:
        """This layout is not written any more: forget all of it, and go."""
        self._source.close()
        self._drop_all()
        for (number, name), error in forget_layout(self.config, self._stores, self._owner, self._clock).items():
            if isinstance(error, FencedError):
                continue  # its owner leaves, too, or has come back
            self._log.warning("could not forget", partition=number, design=name, why=str(error))

    def _drop_leaving(self) -> None:
        """Write those no longer that are to go, unless nothing else is there yet: events are acked for what has them."""
        forgotten: dict[tuple[int, str], tuple[Store, Steps[None]]] = {}
        for held in self.owned.values():
            staying = held.writers.keys() - held.leaving - held.joining
            for name in held.leaving if staying else held.leaving & held.joining:
                held.drop(name)
                forgotten[held.number, name] = self._forgetting(held.number, name)
            held.leaving &= held.writers.keys()
        self._forget(forgotten)

    def _forgetting(self, number: int, name: str) -> tuple[Store, Steps[None]]:
        return self._store(number, name), forget(self._place(number, name), rows=DESIGNS[name].where is Where.SQL)

    def _forget(self, forgotten: Mapping[tuple[int, str], tuple[Store, Steps[None]]]) -> None:
        """Take away what is not written any more. Where that can't be, its heads are renewed no longer, and readers see it."""
        for (number, name), error in run(forgotten).items():
            if isinstance(error, NodestateError):
                self._log.warning("could not forget", partition=number, design=name, why=str(error))

    def _join(self, held: OwnedPartition, name: str, now: float) -> Steps[None]:
        """Become the owner of a design that was not written so far, and write it anew unless it is as held already. Where another
        owner wrote it since we took the partition, we slept meanwhile and are fenced.
        """
        taken = yield from held.writers[name].take()
        if taken is None or not taken.whole or taken.records != held.records:
            yield from self._begin(held, name, now)

    # -- resync_backoffs ---------------------------------------------------------------------------------

    def _ask_due(self) -> None:
        """Ask agents for what is known to be missing: partitions that began with nothing, nodes with gaps."""
        now = self._clock.monotonic()
        if now < self._ask_at:
            return
        everything = [held for held in self.owned.values() if held.needs_full_resync]
        nodes = [
            (held, name)
            for held in self.owned.values()
            for name in held.incomplete
            if not held.needs_full_resync
            and (name not in held.resync_backoffs or held.resync_backoffs[name].again_at <= now)
        ]
        if len(nodes) > MAX_RESYNC_NODES_COUNT:
            everything += {held.number: held for held, _ in nodes}.values()
        if not everything and not nodes:
            return
        if everything:
            numbers = tuple(held.number for held in everything)
            request = Resync((), numbers, self.config.partitions, self.config.resync_jitter_s)
        else:
            request = Resync(nodes=tuple(name for _, name in nodes), jitter_s=0.0)
        try:
            self._resync.request_resync(request)
        except BrokerUnavailableError as error:
            self._broker_failed(error)
            # A broker that is short of memory lets each try wait for its whole timeout.
            self._ask_pause_s = min(max(RETRY_S, 2 * self._ask_pause_s), MAX_ASKING_S)
            self._ask_at = self._clock.monotonic() + self._ask_pause_s
            return
        self._ask_pause_s = 0.0
        self.stats.resyncs += 1
        asked = set(nodes)
        for held in everything:
            held.needs_full_resync = False
            asked.update((held, name) for name in held.incomplete)
        for held, name in asked:
            before = held.resync_backoffs.get(name)
            pause_s = min(2 * before.pause_s, MAX_ASKING_S) if before else max(1.0, self.config.resync_jitter_s)
            held.resync_backoffs[name] = ResyncBackoff(now + pause_s, pause_s)
