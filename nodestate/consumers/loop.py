"""The consumer: takes the events that the broker delivers, folds them, writes every design, and only then acknowledges.

One partition in the loop::

    (not owned) --a delivery: the broker made us its consumer--> take over (CAS of the term) --> owned
    owned --deliveries--> folded --every design wrote them--> acknowledged; refused messages after they are dead letters
    folded --the store failed--> folded (the same batch again, after a pause; other partitions go on)
    owned --fenced: another owner took it--> (not owned), and so are all others: the connection is given up, and what
        was not acknowledged goes back to the queues, for the consumers that are active now
    owned --the connection to the broker broke--> (not owned), and so are all others
    owned --the store lost the epoch--> a new epoch is written from memory --> owned

A step is a plain function of an injected clock, source and stores, so that a seeded simulation can run it.
Assumptions: the broker delivers a partition to one consumer at a time and in order, unless the broker was wrong about
which consumer is alive; then the term in the head decides.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import structlog

from nodestate.config import Config
from nodestate.consumers.broker_session import BrokerSession
from nodestate.consumers.commits import Commits
from nodestate.consumers.dead_letters import DeadLetters
from nodestate.consumers.design_changes import DesignChanges
from nodestate.consumers.owned_partitions import OwnedPartitions
from nodestate.consumers.partition import OwnedPartition
from nodestate.consumers.partition_storage import PartitionStorage
from nodestate.consumers.renewal import Renewal
from nodestate.consumers.resync_requests import ResyncRequests
from nodestate.consumers.seed_layout import SeedLayout
from nodestate.consumers.statistics import ConsumerStats
from nodestate.consumers.store_failures import StoreFailures
from nodestate.consumers.takeover import Takeover
from nodestate.consumers.transition_log import TransitionLog
from nodestate.designs.layout_removal import remove_layout_epochs
from nodestate.errors import FencedError
from nodestate.ports import Clock, ResyncSender, Source
from nodestate.store.round_trips import Stores


class Consumer:
    """Owns the partitions of one layout that the broker gives to it, and writes them in one or several designs.

    ``config`` names the layout (its number of partitions), and the designs until ``follow`` names others. ``source``
    and ``stores`` are closed with the consumer. Give ``stats`` to count together with other consumers.
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
        owner = f"{name}/{rng.getrandbits(48):012x}"
        transitions = TransitionLog(self._log)
        self._owned = OwnedPartitions()
        """The partitions, which all parts work on."""
        self._session = BrokerSession(source, self._owned, self.stats, transitions, clock)
        """Deliveries in; acknowledgements, dead letters and watermark messages out."""
        self._storage = PartitionStorage(config, stores, owner, clock, rng, self.stats, self._log)
        """Where the partitions are stored."""
        failures = StoreFailures(self._session, self._owned, self.stats, transitions, clock, self._log)
        self._takeover = Takeover(config, self._owned, self._storage, failures, self.stats, clock, self._log)
        """Makes this consumer the owner of partitions."""
        self._changes = DesignChanges(config, self._owned, self._storage)
        """Begins and ends the writing of designs."""
        self._commits = Commits(
            config,
            self._owned,
            self._storage,
            self._session,
            self._changes,
            failures,
            self.stats,
            transitions,
            clock,
        )
        """Folds, writes and acknowledges."""
        self._dead_letters = DeadLetters(self._owned, self._session, transitions, clock, self._log)
        """Moves refused messages away."""
        self._renewal = Renewal(
            config, self._owned, self._storage, self._session, failures, self.stats, clock, self._log
        )
        """Renews heads."""
        self._resync_requests = ResyncRequests(config, self._owned, resync, self._session, self.stats, clock)
        """Asks agents for reports."""

    @property
    def owned(self) -> dict[int, OwnedPartition]:
        """The partitions that this consumer owns, by number."""
        return self._owned.by_number

    @property
    def designs(self) -> tuple[str, ...]:
        """The designs that this consumer writes, or begins to write."""
        return self._changes.designs

    # -- running --------------------------------------------------------------------------------

    def step(self) -> int:
        """Receive, take over, fold, write, acknowledge, renew.

        Returns how many messages came. Never raises for outages.
        """
        received = self._session.receive(self.config.batch_events, self.config.flush_s)
        taking_at = self._clock.monotonic()
        if self._takeover.take_due(self.designs):
            self._renewal.due_at = taking_at  # so that readers see the new owner's state at once
        self._commits.write_due()
        self._dead_letters.send_due()
        self._renewal.renew_due()
        self._resync_requests.send_due()
        return received

    def run(self, until: Callable[[], bool]) -> None:
        """Step until ``until`` returns True."""
        while not until():
            self.step()

    def close(self) -> None:
        """Close the connections. Unacknowledged messages go to the next owners."""
        self._session.close()
        self._stores.close()

    # -- following the cell ---------------------------------------------------------------------

    def follow(
        self, designs: Sequence[str], *, seed_layout: SeedLayout | None = None, serves_readers: bool = False
    ) -> None:
        """Write these designs from now on, and delete the others once one of these is written.

        Args:
            designs: names of designs, at least one.
            seed_layout: another layout, whose nodes a partition without usable stored state begins with. While the seed
                layout is incomplete the partition waits for some time, then begins empty and asks all agents to report.
            serves_readers: True if readers use this layout. If False, stored state is ignored unless its owner was
                caught up recently: it may be left over from a layout whose queues were deleted.
        """
        self._changes.adopt(designs)
        self._takeover.seed_layout = seed_layout
        self._takeover.serves_readers = serves_readers

    def leave(self) -> None:
        """Stop consuming this layout for good: close the connection, and delete everything stored of the layout unless
        another owner still writes it.
        """
        self._session.give_up()
        for (number, name), error in remove_layout_epochs(
            self.config, self._stores, self._storage.owner, self._clock
        ).items():
            if isinstance(error, FencedError):
                continue  # its owner will leave as well, or the layout is in use again
            self._log.warning(
                "could not delete the stored state of a partition", partition=number, design=name, reason=str(error)
            )
