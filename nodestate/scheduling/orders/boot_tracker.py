r"""The boots under way of one scheduler: each instance from its request to its allocation.

The scheduler exchanges only messages with the agents, and never waits for an answer::

    unplaced --a node is claimed--> claimed --Build sent--> sent --the agent accepted, or a view shows it--> booted
      ^  |                                                  |
      |  \--no node is left, or MAX_NODES_COUNT were asked--|--> failed
      |                       |                             |
      |<--the claim is over---/                             |
      |<--the agent refused: the claim is given back, ------|
      |   and this instance avoids the node                 |
      \<--no answer in answer_timeout_s: the claim is ------/
          left to expire, as the agent may have built it

Agents refuse an order that they read after its deadline (see ``deadlines``), and carry out orders in the sequence in
which they arrive. So if only the answer was lost, an ``End`` that is sent later undoes the order.

If a boot is not answered, the agent may still have built the instance, so we send ``End`` at once. If a migration is
not answered, we do not. The copy that the agent may have built has a newer order id than the original, so it is the
authoritative allocation (see ``order_ids``), and another scheduler that sees both may already be ending the original.
If we ended the copy as well, the instance would be lost. Instead::

    unanswered --another node takes the instance--> possible copy --End--> gone
    unanswered --a view shows the instance there--> booted there
    unanswered --no node is left: failed--> the original gets a newer order id (see supersession) --> copy --End--> gone
    unanswered --built, and migrated by another scheduler: a view shows it elsewhere--> booted there
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
from nodestate.scheduling.order_ids import lifetime_id_of, order_id_of
from nodestate.scheduling.orders.absent_agents import AbsentAgents
from nodestate.scheduling.orders.boot import NO_ANSWER, Boot, Booted, Failed, NodeRefusal
from nodestate.scheduling.orders.deadlines import OrderDeadlines
from nodestate.scheduling.orders.joint_boots import JointBoots, is_partly_built
from nodestate.scheduling.orders.order_sender import OrderSender
from nodestate.scheduling.orders.refusals import FAULTS, NO_AGENT, counts_as_try, refused_by, with_refusals
from nodestate.scheduling.orders.supersession import Supersessions
from nodestate.scheduling.orders.termination_orders import Termination, TerminationOrders
from nodestate.text import age_text

MAX_NODES_COUNT: Final = 8
"""Maximum number of nodes that are asked to take one instance."""


class BootTracker:
    """The boots of one scheduler that have no outcome. None of the methods waits for an answer.

    Args:
        placer: Chooses and claims nodes.
        fleet: The nodes as the last view shows them.
        claim_table: The claims of this scheduler and of others.
        sender: Sends orders to the agents.
        terminations: Ends allocations that unanswered orders may have created.
        supersessions: Gives the original of a failed migration a newer order id than possible copies.
        clock: The time for new order ids, and for the detection of overdue answers.
        ids: The source of the random part of new order ids.
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
        self._sender = sender  # sends orders to the agents
        self._terminations = terminations  # ends allocations that unanswered orders may have created
        self._supersessions = supersessions  # keeps the originals of failed migrations authoritative
        self._clock = clock  # the time for order ids and for overdue answers
        self._ids = ids  # the source of the random part of order ids
        self._answer_timeout_s = answer_timeout_s  # after this time an order counts as unanswered
        # Until when orders are valid.
        self._deadlines = OrderDeadlines(claim_table, sender.clocks, clock, answer_timeout_s)
        # Boots that succeed or fail together.
        self._joint = JointBoots(fleet, claim_table, terminations, supersessions, placer.stats)
        self._absent = AbsentAgents(fleet, clock, answer_timeout_s)  # boots that wait for agents
        self._unplaced: list[Boot] = []  # boots that need a node
        self._unplaced_lock = Lock()  # other threads may add to _unplaced
        self._sent: dict[str, Boot] = {}  # boots that wait for an answer, by the id of their order

    @property
    def under_way_count(self) -> int:
        """The number of boots that have no outcome."""
        return len(self._unplaced) + len(self._sent) + len(self._joint) + len(self._absent)

    @property
    def needs_view(self) -> bool:
        """Whether at least one boot needs a node, so that a view is needed to choose one."""
        return bool(self._unplaced)

    @property
    def idle_s(self) -> float:
        """Seconds until the next answer is overdue or a waiting boot is due; at most ``answer_timeout_s``."""
        now = self._clock.monotonic()
        answer_by = min((boot.answer_by for boot in self._sent.values()), default=now + self._answer_timeout_s)
        return self._absent.idle_s(max(0.0, answer_by - now))

    def max_requested_age(self, default: float) -> float:
        """Return the largest ``max_age``, in seconds, among the boots that need a node.

        An older view is of no use for any of them. Call this only if ``needs_view`` is True.

        Args:
            default: The ``max_age`` of requests that do not name one.
        """
        return max(boot.placing.request.max_age or default for boot in self._unplaced)

    def add(self, boots: Iterable[Boot]) -> None:
        """Begin these boots: the next step chooses nodes for them. May be called from any thread."""
        boots = list(boots)
        self._joint.join(boots)
        with self._unplaced_lock:
            self._unplaced += boots

    def step(self) -> None:
        """Choose and claim nodes for the boots that need one, and send their orders.

        Raises ``PolicyError`` if a filter or a weigher raised an error. All boots that needed a node have failed then,
        and no order has been sent.
        """
        unplaced = [boot for boot in self._take_unplaced() if not self._adopt_shown(boot)]
        if not unplaced:
            if self._claim_table.edited:
                self._claim_table.flush()
            return
        for boot in unplaced:
            if self._fail_if_obsolete(boot.placing) and boot.migrates:
                boot.leave_together()  # the others go on without an instance that no longer needs a node
        try:
            self._placer.place(boot.placing for boot in unplaced)
        except Exception as error:  # a filter or a weigher that a user installed: its boots get an outcome all the same
            for boot in unplaced:
                self._fail_unplaced(boot, error)
            raise
        claimed = [boot for boot in unplaced if boot.placing.claim is not None]
        for boot in unplaced:
            failure = boot.placing.failure
            if failure is not None and not self._absent.hold(boot):
                request = boot.placing.request
                self._fail(boot, with_refusals(failure, request, boot.refusals, self._answer_timeout_s))
        self._send(claimed)

    def accept_answers(self, answers: Iterable[Answer]) -> None:
        """Finish or retry the boots whose orders were answered. Answers that no boot waits for are ignored."""
        asked_again: list[Boot] = []
        for answer in answers:
            boot = self._sent.pop(answer.id, None)
            if boot is None:
                continue
            if self._may_ask_again(boot, answer):
                boot.retract()
                asked_again.append(boot)
            elif answer.refused:
                self._refuse(boot, NodeRefusal(answer.node, answer.refused, answer.detail), answer.version)
            else:
                self._succeed(boot, answer.version)
        if asked_again:
            self._send(asked_again)
        self._place_held()

    def finish_shown(self) -> None:
        """Finish the boots whose instances the last view shows on their nodes, although no answer has arrived."""
        for order_id, boot in list(self._sent.items()):
            row = self._fleet.rows.get(boot.placing.node or "")
            if row is not None and self._shows(row, boot, order_id):
                del self._sent[order_id]
                self._succeed(boot, self._fleet.version[row])
        self._place_held()

    def fail_if_too_stale(self, age: float) -> None:
        """Fail the boots that need a node and whose request does not accept a view as old as this.

        Args:
            age: The age of the view in seconds.
        """
        for boot in self._take_unplaced():
            bound = boot.placing.request.max_age
            if bound is None or age <= bound:
                self._unplaced.append(boot)
            else:
                reason = f"the view is {age_text(age)}, and the request's max_age is {bound:g} s"
                self._fail(boot, NoHostFound(reason=reason))

    def expire_unanswered(self, overdue_at: float) -> None:
        """Let each boot choose another node whose answer was overdue at a time, in monotonic seconds.

        The node that did not answer may have built the instance all the same, so the allocation is remembered as a
        possible copy. A booted instance is ended there. A resized instance was there before, so it leaves no copy.
        """
        unanswered = [order_id for order_id, boot in self._sent.items() if boot.answer_by <= overdue_at]
        obsolete: list[Termination] = []
        for order_id in unanswered:
            boot = self._sent.pop(order_id)
            assert boot.order is not None, "it was sent"
            assert boot.placing.claim is not None, "sent with a claim"
            copy = Termination(boot.order.node, boot.placing.instance, boot.order.id)
            if not boot.migrates:
                obsolete.append(copy)
            if not boot.placing.claim.resize:  # a resized instance was on that node before, and still is
                boot.add_possible_copy(copy)
            self._placer.stats.count_refusal(NO_ANSWER)
            self._claim_table.add_fault(boot.order.node, NO_ANSWER)
            detail = "" if self._sender.can_answer(boot.order) else "the connection to the broker broke meanwhile"
            boot.leave_unanswered(self._fleet.rows.get(boot.order.node), detail)
            self._retry_or_fail(boot)
        self._terminations.terminate_orders(obsolete)
        self._place_held()

    # -- boots that need a node

    def _take_unplaced(self) -> list[Boot]:
        """Remove the boots that need a node from the list, and return them."""
        with self._unplaced_lock:
            unplaced, self._unplaced = self._unplaced, []
        return unplaced

    def _adopt_shown(self, boot: Boot) -> bool:
        """Finish a boot if the last view shows an allocation that came from one of its unanswered orders.

        The agent has built that allocation, or another scheduler has migrated the instance from there since. An
        allocation of a boot that an unanswered order itself built is not accepted, because it is being ended. Nor is
        one with other resources than the requested ones: another scheduler may have migrated the original.

        Returns True if the boot is finished. Returns False if no such allocation is shown: the caller chooses a node
        for the boot as usual.
        """
        placing, copies, fleet = boot.placing, boot.possible_copies, self._fleet
        row = fleet.authoritative_row(placing.instance) if copies else None
        if row is None or (placing.original is not None and placing.original.row == row):
            return False
        hints = fleet.reports.hints(row, placing.instance)
        order_id = order_id_of(hints)
        if lifetime_id_of(hints) != boot.hints["boot"] or order_id < copies[0].order_id:
            return False
        is_copy = any(copy.order_id == order_id for copy in copies)
        if is_copy and not boot.migrates:
            return False
        if boot.migrates and not is_copy and not self._has_requested_resources(row, boot):
            return False
        later = boot.adopt(fleet.names[row], order_id)
        self._succeed(boot, fleet.version[row])
        if later:  # if a later copy was built, it would be authoritative: give the adopted one a newer order id
            self._supersessions.supersede_original(Exclusion(row, placing.instance, {}, order_id), boot.after, later)
        return True

    def _fail_if_obsolete(self, placing: Placing) -> bool:
        """Fail a placing if the instance is no longer in the state that its boot or migration began with.

        A boot fails if a node already reports an instance with this id; nodes that the boot avoids do not count, as
        they may have built it for this boot. A migration or resize fails if the original allocation was ended or
        changed, or is no longer the authoritative one. Returns whether the placing failed here.
        """
        if placing.settled:
            return False
        original = placing.original
        if original is None:
            node = self._fleet.instances.reporting_node(placing.instance, placing.avoided_rows)
            if node:
                placing.fail(NoHostFound(reason=f"{placing.instance} is on {node} already"))
            return bool(node)
        hints = self._fleet.reports.hints(original.row, original.instance)
        is_authoritative = self._fleet.authoritative_row(original.instance) == original.row
        if not is_authoritative or order_id_of(hints) != original.order:
            source = self._fleet.names[original.row]
            placing.fail(
                NoHostFound(reason=f"{placing.instance} was terminated, migrated or changed on {source} meanwhile")
            )
        return placing.failure is not None

    def _fail_unplaced(self, boot: Boot, error: Exception) -> None:
        """Fail a boot because a filter or a weigher raised an error, and drop its claim if it has one."""
        placing = boot.placing
        if placing.claim is not None and placing.node is not None:
            self._claim_table.drop_claim(placing.node, placing.claim.id)
        self._fail(boot, placing.failure or NoHostFound(reason=f"no node could be chosen: {error}"))

    # -- boots that are sent

    def _send(self, boots: Sequence[Boot]) -> None:
        """Send an order for each of these boots, which have a claim.

        A boot whose claim is over gets no order: its claim is dropped, and it needs a node again. If there is no
        connection to the broker, drop the claims and fail the boots.
        """
        try:
            reply_to = self._sender.reply_to
        except BrokerUnavailableError as error:
            self._placer.give_back(boot.placing for boot in boots)
            for boot in boots:
                self._fail(boot, NoHostFound(reason=f"no order can be sent: {error}"))
            return
        deadlines = {id(boot): self._deadlines.of(boot.placing) for boot in boots}
        overdue = [boot for boot in boots if any(deadlines.get(id(one), 0.0) is None for one in (boot, *boot.together))]
        self._release_overdue(overdue)
        orders: list[Build] = []
        for boot in boots:
            deadline = deadlines[id(boot)]
            if boot.placing.claim is not None and deadline is not None:
                origin = self._sender.clocks.origin(boot.placing.node or "")
                order = boot.new_order(self._clock, self._ids, deadline, origin, reply_to)
                boot.send(order, self._clock.monotonic() + self._answer_timeout_s)
                self._sent[order.id] = boot
                orders.append(order)
        self._sender.send(orders)

    def _release_overdue(self, boots: Sequence[Boot]) -> None:
        """Drop the claims of boots whose orders can't be sent in time, and let these boots choose a node again."""
        for boot in boots:
            boot.placing.count_conflict()
        self._placer.give_back(boot.placing for boot in boots)
        self._unplaced += boots

    def _shows(self, row: int, boot: Boot, order_id: str) -> bool:
        """Return whether the last view shows, on a row, the allocation that an order of a boot built.

        The result is also True if a later order of the same lifetime has changed the allocation. After a migration or a
        resize, that order may have come from another scheduler and found the original. So the resources must be the
        requested ones.
        """
        if boot.placing.instance not in self._fleet.instances.reported[row]:
            return False
        hints = self._fleet.reports.hints(row, boot.placing.instance)
        shown_id = order_id_of(hints)
        if lifetime_id_of(hints) != boot.hints.get("boot", order_id) or shown_id < order_id:
            return False
        return shown_id == order_id or not boot.migrates or self._has_requested_resources(row, boot)

    def _has_requested_resources(self, row: int, boot: Boot) -> bool:
        """Return whether the allocation that a row reports for the instance of a boot has the requested resources."""
        allocation = self._fleet.reports.allocations(row).get(boot.placing.instance, {})
        return dict(allocation.get("resources") or {}) == boot.placing.request.resources

    def _may_ask_again(self, boot: Boot, answer: Answer) -> bool:
        """Return whether an order was refused because of the agent's clock, and a second one would be in time."""
        if answer.refused != "expired" or answer.node in boot.asked_again:
            return False
        deadline = self._deadlines.of(boot.placing)
        return deadline is not None and 0.0 < answer.at < deadline

    def _refuse(self, boot: Boot, refusal: NodeRefusal, version: Version) -> None:
        """Drop the claim on a node that refused, and let the boot choose another node or fail.

        Args:
            boot: The boot.
            refusal: The node and its reason.
            version: The version of the node's state in which the agent refused.
        """
        placing = boot.placing
        assert placing.node is not None, "sent to a node"
        assert placing.claim is not None, "sent with a claim"
        self._claim_table.drop_claim(placing.node, placing.claim.id, version)
        if refusal.reason in FAULTS:
            self._claim_table.add_fault(placing.node, refusal.reason)
        waited_s = self._clock.monotonic() - boot.answer_by + self._answer_timeout_s
        counts = counts_as_try(refusal, boot.refusals, waited_s)
        boot.refuse(refusal, self._fleet.rows.get(placing.node), counts=counts)
        self._retry_or_fail(boot)

    def _retry_or_fail(self, boot: Boot) -> None:
        """Let a boot choose another node after its last refusal, or fail it.

        The boot fails if it is pinned to its node, if its instance is on the refusing node already, or if
        ``MAX_NODES_COUNT`` nodes that count have been asked.
        """
        refusal = boot.refusals[-1]
        is_elsewhere = refusal.reason == "here" and not boot.migrates
        is_last = boot.pinned or is_elsewhere or boot.tries_count >= MAX_NODES_COUNT
        if is_last and not (refusal.reason == NO_AGENT and self._absent.hold(boot)):
            reason = NoHostFound(reason=refused_by(refusal, self._answer_timeout_s))
            if not boot.possible_copies or boot.together:
                self._fail(boot, reason)
            else:  # the next view may show the instance on another node
                boot.placing.fail(reason)
                self._unplaced.append(boot)
        elif boot.follows_others:
            self._joint.hold(boot)
        elif not is_last:
            self._unplaced.append(boot)

    def _place_held(self) -> None:
        """Let joint boots choose another node when all of them have an answer, or fail them if some are built.

        Also lets boots choose a node that have waited for absent agents.
        """
        self._unplaced += self._absent.release()
        for boot in self._joint.release(self._sent.values()):
            if is_partly_built(boot.together):
                self._fail(boot, NoHostFound(reason=refused_by(boot.refusals[-1], self._answer_timeout_s)))
            else:
                self._unplaced.append(boot)

    # -- outcomes

    def _succeed(self, boot: Boot, version: Version) -> None:
        """Finish a boot whose instance is on its node.

        Args:
            boot: The boot.
            version: A version of the node's state that shows the instance.
        """
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
        self._joint.conclude(
            boot, Booted(placing.instance, placing.node, version, tuple(boot.refusals), placing.conflicts)
        )

    def _fail(self, boot: Boot, reason: NoHostFound) -> None:
        """Finish a boot without success.

        If a failed migration may have left copies, the original gets a newer order id, so that it stays authoritative.
        If a failed boot may have left copies, they are ended, also on nodes to which another scheduler migrates them.
        """
        if boot.refusals and all(one.reason == "expired" for one in boot.refusals):
            reason = NoHostFound(reason=self._sender.clocks.explain({one.node for one in boot.refusals}))
        original, lifetime_id = boot.placing.original, str(boot.hints.get("boot", ""))
        if boot.possible_copies and original is not None:
            self._supersessions.supersede_original(original, boot.after, boot.possible_copies)
        elif boot.possible_copies:
            self._terminations.terminate_orders(copy._replace(lifetime_id=lifetime_id) for copy in boot.possible_copies)
        self._joint.conclude(boot, Failed(boot.placing.instance, reason, tuple(boot.refusals), boot.placing.conflicts))
