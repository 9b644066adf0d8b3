r"""The boots under way of one scheduler: each instance from its request to its allocation, by messages alone.

::

    wanted --a node is claimed--> claimed --Build sent--> sent --the agent accepted, or a view shows it--> booted
      ^  |                                                  |
      |  \--no node is left, or MAX_NODES_COUNT were asked--|--> failed
      |                                                     |
      |<--the agent refused: the claim is given back, ------|
      |   and this instance avoids the node                 |
      \<--no answer in answer_timeout_s: the claim is ------/
          left to expire, as the agent may have built it

Agents refuse an order that they read after its deadline, and carry out orders in the sequence in which they arrive. So
if only the answer was lost, an ``End`` that is sent later undoes the order.

If a boot is not answered, the agent may still have built the instance, so we send ``End`` at once. If a migration is
not answered we do not: the late copy may hold the newer order id and win (see ``order_ids``), and another scheduler,
which sees both, may already be ending the original. Instead::

    unanswered --another node takes the instance--> possible copy --End--> gone
    unanswered --a view shows the instance there--> booted there
    unanswered --no node is left: failed--> the original gets a newer order id (see supersession) --> copy --End--> gone
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Final

from nodestate.errors import BrokerUnavailableError
from nodestate.model import Version
from nodestate.model.orders import Answer, Build
from nodestate.ports import Clock
from nodestate.ports.ids import IdSource
from nodestate.scheduling.claims import ClaimTable, NoHostFound, Placer, Placing
from nodestate.scheduling.fleet import Exclusion, Fleet
from nodestate.scheduling.order_ids import lifetime_id_of, new_order_id, order_id_of
from nodestate.scheduling.orders.boot import NO_ANSWER, Boot, Booted, Failed, NodeRefusal
from nodestate.scheduling.orders.order_sender import OrderSender
from nodestate.scheduling.orders.supersession import Supersessions
from nodestate.scheduling.orders.termination_orders import Termination, TerminationOrders

MAX_NODES_COUNT: Final = 8
"""Nodes that are asked for one instance, at most."""


class BootTracker:
    """The boots under way of one scheduler. ``step`` never waits.

    Args:
        placer: Chooses and claims nodes.
        fleet: The nodes as the last view shows them.
        claim_table: The claims of this scheduler and of others.
        sender: The way to the agents.
        terminations: Ends allocations that unanswered orders may have created.
        supersessions: Keeps the original of a failed migration ahead of possible copies.
        clock: For order ids and for overdue answers.
        ids: For order ids.
        answer_timeout_s: Seconds after which an order counts as unanswered.
    """

    def __init__(
        self,
        placer: Placer,
        fleet: Fleet,
        claim_table: ClaimTable,
        sender: OrderSender,
        terminations: TerminationOrders,
        supersessions: Supersessions,
        clock: Clock,
        ids: IdSource,
        answer_timeout_s: float,
    ) -> None:
        self._placer = placer  # chooses and claims nodes
        self._fleet = fleet  # the nodes as the last view shows them
        self._claim_table = claim_table  # the claims of this scheduler and of others
        self._sender = sender  # the way to the agents
        self._terminations = terminations  # ends allocations that unanswered orders may have created
        self._supersessions = supersessions  # keeps originals ahead of possible copies
        self._clock = clock  # for order ids and for overdue answers
        self._ids = ids  # for order ids
        self._answer_timeout_s = answer_timeout_s  # after this time an order counts as unanswered
        self._wanted: list[Boot] = []  # boots that need a node
        self._wanted_lock = Lock()  # other threads may add to _wanted
        self._sent: dict[str, Boot] = {}  # boots that wait for an answer, by the id of their order

    @property
    def under_way_count(self) -> int:
        """The number of boots without an outcome."""
        return len(self._wanted) + len(self._sent)

    @property
    def needs_view(self) -> bool:
        """Whether a boot needs a node, and so a view to choose it on."""
        return bool(self._wanted)

    @property
    def idle_s(self) -> float:
        """Seconds until the next answer is overdue; ``answer_timeout_s`` if no answer is awaited."""
        answer_by = min((boot.answer_by for boot in self._sent.values()), default=None)
        return max(0.0, answer_by - self._clock.monotonic()) if answer_by is not None else self._answer_timeout_s

    def max_requested_age(self, default: float) -> float:
        """Return the age, in seconds, that a view may have to be of use for at least one boot that needs a node.

        Args:
            default: The bound of requests that name none.
        """
        return max(boot.placing.request.max_age or default for boot in self._wanted)

    def add(self, boots: Iterable[Boot]) -> None:
        """Begin these boots. May be called from any thread."""
        boots = list(boots)
        with self._wanted_lock:
            self._wanted += boots

    def step(self) -> None:
        """Choose and claim nodes for the boots that need one, and send their orders.

        Raises ``PolicyError`` if a filter or a weigher failed; the boots concerned have failed by then.
        """
        wanted = [boot for boot in self._take_wanted() if not self._adopt_shown_copy(boot)]
        if not wanted:
            if self._claim_table.edited:
                self._claim_table.flush()
            return
        for boot in wanted:
            self._fail_if_obsolete(boot.placing)
        try:
            self._placer.place(boot.placing for boot in wanted)
        except Exception as error:  # a filter or a weigher that a user installed: its boots get an outcome all the same
            for boot in wanted:
                self._fail_unplaced(boot, error)
            raise
        claimed = [boot for boot in wanted if boot.placing.claim is not None]
        for boot in wanted:
            if boot.placing.failure is not None:
                self._fail(boot, boot.placing.failure)
        self._send(claimed)

    def accept_answers(self, answers: Iterable[Answer]) -> None:
        """Advance the boots whose orders were answered; answers that no boot waits for are ignored."""
        for answer in answers:
            boot = self._sent.pop(answer.id, None)
            if boot is None:
                continue
            if answer.refused:
                self._refuse(boot, NodeRefusal(answer.node, answer.refused, answer.detail), answer.version)
            else:
                self._complete(boot, answer.version)

    def complete_shown(self) -> None:
        """Complete the boots that the last view shows, whether or not their answers arrived."""
        for order_id, boot in list(self._sent.items()):
            row = self._fleet.rows.get(boot.placing.node or "")
            if row is not None and self._shows(row, boot, order_id):
                del self._sent[order_id]
                self._complete(boot, self._fleet.version[row])

    def fail_if_too_stale(self, age: float) -> None:
        """Fail the boots whose request demands a fresher view than one of this age, in seconds."""
        for boot in self._take_wanted():
            bound = boot.placing.request.max_age
            if bound is None or age <= bound:
                self._wanted.append(boot)
            else:
                reason = f"the view is {age:.1f} s old, and the request's max_age is {bound:g} s"
                self._fail(boot, NoHostFound(reason=reason))

    def expire_unanswered(self) -> None:
        """Try another node for each boot whose answer is overdue, and end the instance on the first node."""
        now = self._clock.monotonic()
        unanswered = [order_id for order_id, boot in self._sent.items() if boot.answer_by <= now]
        obsolete: list[Termination] = []
        for order_id in unanswered:
            boot = self._sent.pop(order_id)
            assert boot.order is not None, "it was sent"
            assert boot.placing.claim is not None, "sent with a claim"
            copy = Termination(boot.order.node, boot.placing.instance, boot.order.id)
            if not boot.migrates:
                obsolete.append(copy)
            elif not boot.placing.claim.resize:  # a resized instance was on that node before, and still is
                boot.add_possible_copy(copy)
            boot.leave_unanswered(self._fleet.rows.get(boot.order.node))
            self._retry_or_fail(boot)
        self._terminations.terminate_orders(obsolete)

    # -- boots that need a node

    def _take_wanted(self) -> list[Boot]:
        with self._wanted_lock:
            wanted, self._wanted = self._wanted, []
        return wanted

    def _adopt_shown_copy(self, boot: Boot) -> bool:
        """Complete a migration if the last view shows the result of one of its unanswered orders."""
        for number, copy in reversed(list(enumerate(boot.possible_copies))):
            row = self._fleet.rows.get(copy.node)
            if row is None or not self._shows(row, boot, copy.order_id):
                continue
            later = boot.adopt_copy(number)
            self._complete(boot, self._fleet.version[row])
            if later:  # they would take precedence if they were built, so the adopted copy gets a newer order id
                order_id = order_id_of(self._fleet.reports.hints(row, copy.instance))
                self._supersessions.supersede_original(Exclusion(row, copy.instance, {}, order_id), boot.after, later)
            return True
        return False

    def _fail_if_obsolete(self, placing: Placing) -> None:
        """Fail a boot of an id that a node already reports, and a migration of an instance that has left or changed.

        An id is one instance, so the failure names the node.
        """
        if placing.settled:
            return
        original = placing.original
        if original is None:
            node = self._fleet.instances.reporting_node(placing.instance, placing.avoided_rows)
            if node:
                placing.fail(NoHostFound(reason=f"{placing.instance} is on {node} already"))
            return
        hints = self._fleet.reports.hints(original.row, original.instance)
        is_authoritative = self._fleet.authoritative_row(original.instance) == original.row
        if not is_authoritative or order_id_of(hints) != original.order:
            source = self._fleet.names[original.row]
            placing.fail(
                NoHostFound(reason=f"{placing.instance} was terminated, migrated or changed on {source} meanwhile")
            )

    def _fail_unplaced(self, boot: Boot, error: Exception) -> None:
        """Fail a boot because a filter or a weigher raised an error, and give back its claim if it has one."""
        placing = boot.placing
        if placing.claim is not None and placing.node is not None:
            self._claim_table.drop_claim(placing.node, placing.claim.id)
        self._fail(boot, placing.failure or NoHostFound(reason=f"no node could be chosen: {error}"))

    # -- boots that are sent

    def _send(self, boots: Sequence[Boot]) -> None:
        """Send an order for each claimed boot; fail the boots if there is no connection to the broker."""
        deadline = self._sender.deadline
        try:
            reply_to = self._sender.reply_to
        except BrokerUnavailableError as error:
            self._placer.give_back(boot.placing for boot in boots)
            for boot in boots:
                self._fail(boot, NoHostFound(reason=f"no order can be sent: {error}"))
            return
        orders = [self._order_for(boot, deadline, reply_to) for boot in boots]
        for boot, order in zip(boots, orders, strict=True):
            boot.send(order, self._clock.monotonic() + self._answer_timeout_s)
            self._sent[order.id] = boot
        self._sender.send(orders)

    def _order_for(self, boot: Boot, deadline: float, reply_to: str) -> Build:
        """Return the order for a boot that is claimed.

        Its id is not the claim's: a claim of a reservation may be built, ended and built again, each time with a
        lifetime of its own.
        """
        placing = boot.placing
        claim, node, original = placing.claim, placing.node, placing.original
        assert claim is not None, "claimed"
        assert node is not None, "claimed"
        order_id = new_order_id(self._clock, self._ids, max(claim.id, boot.after, boot.replaces))
        return Build(
            id=order_id,
            node=node,
            instance=placing.instance,
            resources=placing.request.resources,
            group=claim.group,
            hints={**claim.hints, **boot.hints, "order": order_id},
            deadline=deadline,
            in_place=claim.resize or bool(boot.replaces),
            of=original.order if original is not None and claim.resize else boot.replaces,
            reply_to=reply_to,
        )

    def _shows(self, row: int, boot: Boot, order_id: str) -> bool:
        """Whether the last view shows, on a row, the allocation that an order built or that a later order changed."""
        if boot.placing.instance not in self._fleet.instances.reported[row]:
            return False
        hints = self._fleet.reports.hints(row, boot.placing.instance)
        return lifetime_id_of(hints) == boot.hints.get("boot", order_id) and order_id_of(hints) >= order_id

    def _refuse(self, boot: Boot, refusal: NodeRefusal, version: Version) -> None:
        """Give back the claim on the node that refused, and try another node if there is one left to try."""
        placing = boot.placing
        assert placing.node is not None, "sent to a node"
        assert placing.claim is not None, "sent with a claim"
        self._claim_table.drop_claim(placing.node, placing.claim.id, version)
        boot.refuse(refusal, self._fleet.rows.get(placing.node))
        self._retry_or_fail(boot)

    def _retry_or_fail(self, boot: Boot) -> None:
        """After a refusal: let the boot choose another node, unless no other node may or should be asked."""
        refusal = boot.refusals[-1]
        is_elsewhere = refusal.reason == "here" and not boot.migrates
        if boot.pinned or is_elsewhere or len(boot.refusals) >= MAX_NODES_COUNT:
            if refusal.reason == NO_ANSWER:
                reason = f"{refusal.node} did not answer within {self._answer_timeout_s:g} s"
            else:
                reason = f"{refusal.node} refused it: {refusal.reason} {refusal.detail}".rstrip()
            self._fail(boot, NoHostFound(reason=reason))
        else:
            self._wanted.append(boot)

    # -- outcomes

    def _complete(self, boot: Boot, version: Version) -> None:
        """Complete a boot whose instance is on its node; ``version`` is the node's first state that shows it."""
        placing = boot.placing
        assert placing.node is not None, "sent to a node"
        if placing.claim is not None and placing.claim.resize:
            # The allocation was there before the resize, so views would never show that this claim was used.
            self._claim_table.drop_claim(placing.node, placing.claim.id, version)
        elif placing.claim is not None:
            self._claim_table.own.mark_allocated(placing.node, placing.claim.id, version)
        if boot.possible_copies:
            self._terminations.terminate_orders(boot.possible_copies)
        if boot.order is not None and boot.order.node == placing.node:
            self._terminations.add_unseen_build(boot.order, version)
        boot.complete(Booted(placing.instance, placing.node, version, tuple(boot.refusals), placing.conflicts))

    def _fail(self, boot: Boot, reason: NoHostFound) -> None:
        """Fail a boot; the original of a failed migration is kept ahead of the copies that nodes may have built."""
        original = boot.placing.original
        if boot.possible_copies and original is not None:
            self._supersessions.supersede_original(original, boot.after, boot.possible_copies)
        boot.complete(Failed(boot.placing.instance, reason, tuple(boot.refusals), boot.placing.conflicts))
