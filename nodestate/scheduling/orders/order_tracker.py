"""The order tracker: all orders of one scheduler that are under way, by kind."""

from __future__ import annotations

from nodestate.config import Config
from nodestate.ports import Clock, Courier
from nodestate.ports.ids import IdSource
from nodestate.scheduling.claims import REASSERT_S, ClaimTable, Placer
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.orders.boot_tracker import BootTracker
from nodestate.scheduling.orders.hint_updates import HintUpdates
from nodestate.scheduling.orders.order_sender import OrderSender
from nodestate.scheduling.orders.supersession import Supersessions
from nodestate.scheduling.orders.termination_orders import TerminationOrders


class OrderTracker:
    """Builds the parts that give orders, and tells each of them when answers arrive or the fleet advances.

    Args:
        courier: The connection to the broker.
        placer: Chooses and claims nodes.
        fleet: The nodes as the last view shows them.
        claim_table: The claims of this scheduler and of others.
        clock: For deadlines, ages and order ids.
        ids: For the ids of orders and messages.
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
        self._clock = clock  # for the time between retries
        self._retry_at = 0.0  # when terminations and supersessions are retried next, in monotonic seconds
        self._sender = OrderSender(courier, clock, ids, config.answer_timeout_s)  # the way to the agents
        # Instances that are to be ended on nodes, until views no longer show them.
        self.terminations = TerminationOrders(fleet, self._sender, clock, config.claim_ttl_s)
        # Originals of failed migrations that get a newer order id than possible copies.
        self.supersessions = Supersessions(fleet, self._sender, self.terminations, clock, ids)
        # Hints that agents are asked to add to allocations.
        self.hint_updates = HintUpdates(fleet, self._sender)
        # Instances that are booted, migrated or resized.
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
        """Wait up to ``timeout_s`` seconds for the first answer, and pass on all that arrived.

        Raises ``BrokerUnavailableError`` if there is no connection.
        """
        answers = self._sender.answers(timeout_s)
        self.hint_updates.accept_answers(answers)
        self.boots.accept_answers(answers)

    def on_fleet_advanced(self) -> None:
        """Compare the orders under way with the new view.

        Every ``REASSERT_S`` seconds, send again the orders whose effect the view lacks.
        """
        self.terminations.forget_seen_builds()
        now = self._clock.monotonic()
        if now >= self._retry_at:
            self._retry_at = now + REASSERT_S
            self.terminations.resend()
            self.supersessions.retry()
        self.boots.complete_shown()
