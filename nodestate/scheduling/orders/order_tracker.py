"""The order tracker: the orders of one scheduler that are under way, with one part for each kind of order."""

from __future__ import annotations

from nodestate.config import Config
from nodestate.ports import Clock, Courier
from nodestate.ports.ids import IdSource
from nodestate.scheduling.claims import REASSERT_S, ClaimTable, Placer
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.orders.boot_tracker import BootTracker
from nodestate.scheduling.orders.hint_updates import HintUpdates
from nodestate.scheduling.orders.node_order_batches import NodeOrderBatches
from nodestate.scheduling.orders.order_sender import OrderSender
from nodestate.scheduling.orders.supersession import Supersessions
from nodestate.scheduling.orders.termination_orders import TerminationOrders


class OrderTracker:
    """Builds the parts that send orders, and passes on to them the answers that arrive and the advances of the fleet.

    Args:
        courier: The connection to the broker.
        placer: Chooses and claims nodes.
        fleet: The nodes as the last view shows them.
        claim_table: The claims of this scheduler and of others.
        clock: The time for deadlines, ages and order ids.
        ids: The source of the random part of order ids and message ids.
        config: The cell's ``answer_timeout_s`` and ``claim_ttl_s``.
    """

    def __init__(
        self,
        courier: Courier,
        placer: Placer,
        fleet: Fleet,
        claim_table: ClaimTable,
        clock: Clock,
        ids: IdSource,
        config: Config,
    ) -> None:
        self._clock = clock  # the time, for the interval between retries
        self._retry_at = 0.0  # when terminations and supersessions are retried next, in monotonic seconds
        self._sender = OrderSender(  # sends orders to the agents
            courier, clock, ids, config.answer_timeout_s, fleet.reports.tags, placer.stats
        )
        # Ends instances on nodes, and repeats the orders until views no longer show the instances.
        self.terminations = TerminationOrders(fleet, self._sender, clock, config.claim_ttl_s)
        # Gives the originals of failed migrations newer order ids than possible copies have.
        self.supersessions = Supersessions(fleet, self._sender, self.terminations, clock, ids)
        # Asks agents to add hints to allocations.
        self.hint_updates = HintUpdates(fleet, self._sender, clock)
        self.node_orders = NodeOrderBatches(self._sender, clock, ids)  # closes and opens nodes
        # Boots, migrates and resizes instances.
        self.boots = BootTracker(
            placer,
            fleet,
            claim_table,
            self._sender,
            self.terminations,
            self.supersessions,
            clock,
            ids,
            config.answer_timeout_s,
        )

    def receive_answers(self, timeout_s: float) -> None:
        """Wait up to ``timeout_s`` seconds for the first answer, and pass all arrived answers to the parts.

        Raises ``BrokerUnavailableError`` if there is no connection.
        """
        answers = self._sender.answers(timeout_s)
        self.hint_updates.accept_answers(answers)
        self.node_orders.accept_answers(answers)
        self.boots.accept_answers(answers)

    def refused_answers(self) -> tuple[int, str]:
        """Return how many answers were refused so far, and why the last one was, for people."""
        return self._sender.refused_answers()

    def on_fleet_advanced(self) -> None:
        """Finish the orders whose effect the new view shows.

        Every ``REASSERT_S`` seconds, terminations and supersessions whose effect the view does not show are sent again.
        """
        self.terminations.forget_seen_builds()
        now = self._clock.monotonic()
        if now >= self._retry_at:
            self._retry_at = now + REASSERT_S
            self.terminations.resend()
            self.supersessions.retry()
        self.boots.finish_shown()
