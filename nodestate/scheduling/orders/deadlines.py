"""Deadlines of orders: an order is carried out in the time of its claim, or not at all.

An order with a deadline of its own, some seconds after its sending, is wrong if the scheduler was paused since it wrote
the claim: other schedulers may have claimed the same room meanwhile, and the agent would still carry the order out. So
the deadline is derived from the end of the claim. An agent that carries an order out at its deadline reports the
instance early enough for every view on which another scheduler may decide after the claim (``max_view_age_s``).
"""

from __future__ import annotations

from nodestate.errors import NodestateError
from nodestate.ports import Clock
from nodestate.scheduling.claims import ClaimTable, Placing, max_view_age_s
from nodestate.scheduling.orders.agent_clocks import AgentClocks


class OrderDeadlines:
    """Computes the deadlines of one scheduler's orders.

    Args:
        claim_table: The claims of this scheduler and of others.
        clocks: How far the agents' clocks are ahead of this machine's.
        clock: The time.
        answer_timeout_s: Seconds after which an order counts as unanswered.
    """

    def __init__(self, claim_table: ClaimTable, clocks: AgentClocks, clock: Clock, answer_timeout_s: float) -> None:
        self._claim_table = claim_table  # has the servers whose clocks the claims refer to
        self._clocks = clocks  # how far the agents' clocks are ahead
        self._clock = clock  # the time of deadlines
        self._answer_timeout_s = answer_timeout_s  # after this time an order counts as unanswered

    def of(self, placing: Placing) -> float | None:
        """Return the deadline of an order for a placing's claim, in seconds since 1970 by its agent's clock.

        Returns None if the claim is over, or if its server does not answer: no order may be sent then. Call this right
        before the order is sent.
        """
        assert placing.node is not None, "claimed"
        assert placing.claim is not None, "claimed"
        now = self._clock.time()  # read before the server's clock: a pause in between makes the deadline earlier
        try:
            server_now = self._claim_table.servers.time(placing.node)
        except NodestateError:
            return None
        left_s = placing.claim.until - server_now - max_view_age_s(placing.claim_ttl_s, self._answer_timeout_s)
        if left_s <= 0:
            return None
        return now + min(left_s, self._answer_timeout_s) + self._clocks.ahead_s(placing.node)
