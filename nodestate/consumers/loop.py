"""The consumer: takes the events that the broker delivers, folds them, writes every design, and only then acknowledges.

One partition::

    (not owned) --a delivery: the broker made us its consumer--> take over (CAS of the term) --> owned
    owned --deliveries--> folded --every design stored them--> acknowledged; a refused message after it is a dead letter
    folded --a store failed--> folded (the same batch again, after a pause; other partitions go on)
    owned --fenced: another owner took the partition--> no partition is owned: the consumer closes its connection, and
        the broker delivers the unacknowledged messages to the consumers that are active now
    owned --the connection to the broker broke--> no partition is owned; its nodes stay in memory, for the next takeover
        by this consumer, or for another owner that finds less in the stores
    owned --a store lost the epoch--> a new epoch is written from memory --> owned

A step uses only an injected clock, source and stores, so a seeded simulation can run it.

Assumption: the broker delivers each partition in order, and to one consumer at a time. The broker may take a living
consumer for dead and deliver the partition to a second one; then the term in the head decides which of the two writes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import structlog

from nodestate.auth import EventAuth, event_auth
from nodestate.config import Config
from nodestate.consumers.broker_session import BrokerSession
from nodestate.consumers.commits import Commits
from nodestate.consumers.dead_letters import DeadLetters
from nodestate.consumers.design_changes import DesignChanges
from nodestate.consumers.handover import Handover
from nodestate.consumers.owned_partitions import OwnedPartitions
from nodestate.consumers.partition import OwnedPartition
from nodestate.consumers.partition_storage import PartitionStorage
from nodestate.consumers.renewal import Renewal
from nodestate.consumers.replicas import Replicas
from nodestate.consumers.resync_requests import ResyncRequests
from nodestate.consumers.seed_layout import SeedLayout
from nodestate.consumers.statistics import ConsumerStats
from nodestate.consumers.store_failures import StoreFailures
from nodestate.consumers.takeover import Takeover
from nodestate.consumers.transition_log import TransitionLog
from nodestate.consumers.watermarks import KEY_BYTES, Watermarks
from nodestate.designs.layout_removal import remove_layout_epochs
from nodestate.errors import FencedError
from nodestate.ports import Clock, ResyncSender, Source
from nodestate.store.round_trips import Stores


class Consumer:
    """Owns the partitions of one layout that the broker delivers to it, and writes them in one or several designs.

    Args:
        config: settings of the cell. ``partitions`` names the layout. ``designs`` are written until ``follow`` names
            other designs.
        source: the connection to the broker. ``close`` closes it.
        stores: the servers of the cell. ``close`` closes them.
        resync: sends resync requests to the agents.
        clock: wall-clock and monotonic time.
        rng: chooses the ids of epochs, a unique part of the owner's name, and the key of its watermark messages.
        name: first part of the owner's name.
        stats: counters that several consumers share; None for counters of this consumer alone.
        auth: checks the signatures of messages; None to check them as the settings say.
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
        stats: ConsumerStats | None = None,
        auth: EventAuth | None = None,
    ) -> None:
        self.config = config
        """Settings of the cell, with this consumer's layout as ``partitions``."""
        self.stats = stats or ConsumerStats()
        """Counters since the start."""
        self._stores = stores
        """The servers of the cell."""
        self._clock = clock
        """Monotonic time."""
        self._log = structlog.get_logger("nodestate.consumer").bind(member=name, layout=config.partitions)
        """The logger of all parts."""
        auth = auth or event_auth(config, clock)
        owner = f"{name}/{rng.getrandbits(48):012x}"
        watermarks = Watermarks(rng.randbytes(KEY_BYTES))
        transitions = TransitionLog(self._log)
        self._owned = OwnedPartitions()
        """The consumer's partitions, on which all other parts work."""
        self._session = BrokerSession(source, self._owned, watermarks, self.stats, transitions, clock)
        """Receives deliveries; sends acknowledgements, dead letters and watermark messages."""
        self._storage = PartitionStorage(config, stores, owner, clock, rng, self.stats, self._log)
        """Gives the stores and the writers of the partitions."""
        replicas = Replicas(config, self._storage, self._log)
        failures = StoreFailures(self._session, self._owned, replicas, self.stats, transitions, clock, self._log)
        self._takeover = Takeover(config, self._owned, self._storage, replicas, failures, self.stats, clock, self._log)
        """Makes this consumer the owner of partitions."""
        self._changes = DesignChanges(config, self._owned, self._storage)
        """Begins and ends the writing of designs."""
        self._commits = Commits(
            config,
            self._owned,
            self._storage,
            self._session,
            watermarks,
            auth,
            self._changes,
            failures,
            self.stats,
            transitions,
            clock,
            self._log,
        )
        """Folds events, writes them, and acknowledges their messages."""
        self._dead_letters = DeadLetters(self._owned, self._session, transitions, clock, self._log)
        """Moves refused messages to the dead-letter queue."""
        self._renewal = Renewal(
            config, self._owned, self._storage, self._session, failures, self.stats, clock, self._log
        )
        """Renews heads."""
        self._handover = Handover(config, self._owned, self._storage, self._session, auth.handovers, clock, self._log)
        """Gives nodes of former partitions to the partitions' new owners."""
        self._resync_requests = ResyncRequests(config, self._owned, resync, self._session, self.stats, clock)
        """Asks agents for reports."""

    @property
    def owned(self) -> dict[int, OwnedPartition]:
        """The partitions that this consumer owns, by number."""
        return self._owned.by_number

    @property
    def designs(self) -> tuple[str, ...]:
        """Names of the designs that this consumer writes or begins to write."""
        return self._changes.designs

    # -- running --------------------------------------------------------------------------------

    def step(self) -> int:
        """Do everything that is due: receive, take over, fold, write, acknowledge, renew, and ask for reports.

        Returns the number of messages received. Raises nothing if the broker or a store is away.
        """
        received = self._session.receive(self.config.batch_events, self.config.flush_s)
        taking_at = self._clock.monotonic()
        if self._takeover.take_due(self.designs):
            self._renewal.due_at = taking_at  # so that readers see the new owner's state at once
        self._commits.write_due()
        self._dead_letters.send_due()
        self._renewal.renew_due()
        self._handover.send_due(self.designs)
        self._resync_requests.send_due()
        return received

    def run(self, until: Callable[[], bool]) -> None:
        """Step until ``until`` returns True."""
        while not until():
            self.step()

    def close(self) -> None:
        """Close the connections. The broker delivers the unacknowledged messages to the next owners."""
        self._session.close()
        self._stores.close()

    # -- following the cell ---------------------------------------------------------------------

    def follow(
        self, designs: Sequence[str], *, seed_layout: SeedLayout | None = None, serves_readers: bool = False
    ) -> None:
        """Write these designs from now on. Delete all other designs once one of these is written.

        Args:
            designs: names of the designs, at least one.
            seed_layout: another layout of the cell, or None. A partition whose stored state cannot be used begins with
                the nodes of the seed layout. While the seed layout is incomplete, the partition waits for it. The wait
                is limited; after it, the partition begins without the seed layout.
            serves_readers: True if readers use this layout. If False, stored state is used only if its owner was caught
                up recently: older state may be left over from a layout whose queues were deleted.
        """
        self._changes.adopt(designs)
        self._takeover.seed_layout = seed_layout
        self._takeover.serves_readers = serves_readers

    def retire_layout(self) -> None:
        """Stop consuming this layout for good: close the connection and delete the layout's stored state.

        Partitions that another owner still writes are kept. If a store fails, the failure is logged and the state stays
        in that store.
        """
        self._session.give_up()
        for (number, name), error in remove_layout_epochs(
            self.config, self._stores, self._storage.owner, self._clock
        ).items():
            if isinstance(error, FencedError):
                continue  # the other owner retires the layout as well, or the layout is in use again
            self._log.warning(
                "could not delete the stored state of a partition", partition=number, design=name, reason=str(error)
            )
