r"""One boot: the state of an instance between its request and its outcome, and all transitions of that state.

::

    unplaced --send: a node is claimed, and the Build order is sent to its agent--> sent --finish(Booted)--> done
      ^                                                     |
      |<--refuse: the agent refused, the node is avoided----|
      \<--leave_unanswered: no answer in time---------------/        unplaced, sent --finish(Failed)--> done

``boot_tracker`` decides when a transition happens, and calls the method of ``Boot`` for it. No other code assigns to
the fields of a boot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec import UnsetType

from nodestate.model import Version
from nodestate.model.orders import Build
from nodestate.ports import Clock
from nodestate.ports.ids import IdSource
from nodestate.scheduling.claims import NoHostFound, Placing
from nodestate.scheduling.order_ids import new_order_id
from nodestate.scheduling.orders.termination_orders import Termination

NO_ANSWER: Final = "silent"
"""The ``reason`` of a ``NodeRefusal`` if the node's agent did not answer."""


@dataclass(frozen=True, slots=True)
class NodeRefusal:
    """A node that did not take an instance."""

    node: str
    """The node's name."""
    reason: str
    """One of the reasons in ``model.orders.Refusal``, or ``NO_ANSWER`` if the agent did not answer."""
    detail: str = ""
    """The explanation of the agent or of the broker's adapter, to be read by people."""


@dataclass(frozen=True, slots=True)
class Booted:
    """The outcome of a boot, migration or resize that succeeded: the instance is on a node."""

    instance: str
    """The instance's id."""
    node: str
    """The node that has the instance."""
    version: Version
    """A version of the node's state that shows the instance."""
    refusals: tuple[NodeRefusal, ...] = ()
    """The nodes that were asked before and did not take the instance."""
    conflicts: int = 0
    """How many times the instance lost its chosen node to another scheduler."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The outcome of a boot, migration or resize that failed.

    After a failed boot the instance is on no node. After a failed migration or resize it stays where it was, with the
    resources that it had.
    """

    instance: str
    """The instance's id."""
    reason: NoHostFound
    """Why it failed: the filter that no node passed, or the cause in words."""
    refusals: tuple[NodeRefusal, ...] = ()
    """The nodes that were asked and did not take the instance."""
    conflicts: int = 0
    """How many times the instance lost its chosen node to another scheduler."""


BootOutcome = Booted | Failed


def _uncancellable_future() -> Future[BootOutcome]:
    """Return a future whose ``cancel`` does nothing, because an order that was sent can't be called back."""
    future: Future[BootOutcome] = Future()
    future.set_running_or_notify_cancel()
    return future


@dataclass(slots=True)
class Boot:
    """One instance that is being booted, migrated or resized. Users read ``outcome``, or wait for ``future``."""

    placing: Placing
    """The instance, with its request, its chosen node and its claim."""
    pinned: bool = False
    """Whether only one node is allowed: if that node does not take the instance, the boot fails."""
    hints: dict[str, Any] = field(default_factory=dict)
    """Hints that the agent keeps with the allocation, in addition to the hints of the request."""
    after: str = ""
    """An order id. The next order of this boot gets a greater one."""
    replaces: str = ""
    """The id of the order that built the instance on the claimed node earlier; empty if there is no such allocation.
    The first order of this boot replaces that allocation in place, under a newer id.
    """
    possible_copies: list[Termination] = field(default_factory=list)
    """The allocations that may exist because an agent did not answer an order of this boot, the oldest first."""
    refusals: list[NodeRefusal] = field(default_factory=list)
    """The nodes that did not take the instance, in the order in which they were asked."""
    asked_again: set[str] = field(default_factory=set)
    """The nodes that got a second order because the first deadline did not allow for their clock."""
    tries_count: int = 0
    """How many of these refusals count towards the limit of nodes that are asked to take one instance."""
    order: Build | None = None
    """The last order that was sent; None before the first one."""
    answer_by: float = 0.0
    """The time, in monotonic seconds, from which the answer to that order is overdue."""
    waits_count: int = 0
    """How many times this boot has waited for absent agents."""
    last_wait_by: float = 0.0
    """The time, in monotonic seconds, from which it no longer waits for them; 0 before the first wait."""
    together: list[Boot] = field(default_factory=list, compare=False, repr=False)
    """All boots, this one included, that succeed together or fail together; empty if the boot is alone."""
    result: BootOutcome | None = None
    """How this boot ended by itself. It becomes the outcome when the boots of ``together`` have ended, too."""
    outcome: BootOutcome | None = None
    """How the boot ended; None while it is under way."""
    future: Future[BootOutcome] = field(default_factory=_uncancellable_future)
    """A future with the same outcome; its ``cancel`` does nothing."""

    @property
    def follows_others(self) -> bool:
        """Whether the other boots of ``together`` must be on the same node, as an affinity group requires."""
        group = self.placing.request.group
        return bool(self.together) and group is not None and group.policy == "affinity"

    @property
    def migrates(self) -> bool:
        """Whether the instance had an allocation before, so that this boot migrates or resizes it."""
        return self.placing.original is not None

    def pin_to(self, row: int) -> None:
        """Allow only the node of this row of the fleet."""
        self.placing.restrict_to(row)
        self.pinned = True

    def avoid(self, row: int) -> None:
        """Exclude the node of this row of the fleet."""
        self.placing.avoid([row])

    def new_order(
        self, clock: Clock, ids: IdSource, deadline: float, clock_origin: float | UnsetType, reply_to: str
    ) -> Build:
        """Return an order that builds the instance on the claimed node.

        The order's id differs from the claim's id, because the instance may be built, ended and built again under
        one claim of a reservation. Each build needs an order id and a lifetime of its own.

        Args:
            clock: The time for the order's id.
            ids: The source of the random part of the order's id.
            deadline: The time after which the agent refuses the order, in seconds since 1970 by the agent's clock.
            clock_origin: The agent's wall-clock time minus its monotonic time, as the agent told it last. An agent
                whose clock was set since then refuses the order. Unset if the agent did not tell it.
            reply_to: The queue for the answer.
        """
        claim, node, original = self.placing.claim, self.placing.node, self.placing.original
        assert claim is not None, "claimed"
        assert node is not None, "claimed"
        order_id = new_order_id(clock, ids, max(claim.id, self.after, self.replaces))
        return Build(
            id=order_id,
            node=node,
            instance=self.placing.instance,
            resources=self.placing.request.resources,
            group=claim.group,
            hints={**claim.hints, **self.hints, "order": order_id},
            deadline=deadline,
            in_place=claim.resize or bool(self.replaces),
            of=original.order if original is not None and claim.resize else self.replaces,
            reply_to=reply_to,
            clock_origin=clock_origin,
        )

    def send(self, order: Build, answer_by: float) -> None:
        """Enter the state *sent*, right before the order is sent to the claimed node.

        Clears ``replaces``, because a later order goes to another node, which has no allocation to replace.

        Args:
            order: The order.
            answer_by: The time, in monotonic seconds, from which the answer is overdue.
        """
        self.order = order
        self.answer_by = answer_by
        self.replaces = ""

    def retract(self) -> None:
        """Return from *sent* to the claim, so that the same node gets another order.

        Called if the agent refused the order only because its clock differs from the scheduler's.
        """
        assert self.order is not None, "only an order that was sent can be retracted"
        assert self.placing.claim is not None, "sent with a claim"
        self.asked_again.add(self.order.node)
        self.replaces = "" if self.placing.claim.resize else self.order.of

    def refuse(self, refusal: NodeRefusal, row: int | None, *, counts: bool = True) -> None:
        """Return to the state *unplaced*, and avoid the node that did not take the instance.

        Args:
            refusal: The node and its reason.
            row: The node's row in the fleet; None if the fleet does not have the node.
            counts: Whether the refusal counts towards the limit of nodes that are asked.
        """
        self.refusals.append(refusal)
        self.tries_count += counts
        if row is not None:
            self.placing.avoid([row])
        self.placing.release()

    def leave_unanswered(self, row: int | None, detail: str = "") -> None:
        """Return to the state *unplaced*, and avoid the node that did not answer the order.

        That node may have built the instance all the same. The next order then builds a second allocation. So the next
        order gets a greater id, which makes the second allocation the authoritative one. The next order also names the
        same lifetime, so that a termination of the instance ends both allocations.

        Args:
            row: The node's row in the fleet; None if the fleet does not have the node.
            detail: Why no answer came, to be read by people; empty if that is not known.
        """
        assert self.order is not None, "only an order that was sent can be unanswered"
        self.after = self.order.id
        self.hints.setdefault("boot", self.order.id)
        self.refuse(NodeRefusal(self.order.node, NO_ANSWER, detail), row)

    def wait_until(self, latest: float) -> float:
        """Return the time from which this boot no longer waits for absent agents; ``latest`` at the first call."""
        self.last_wait_by = self.last_wait_by or latest
        return self.last_wait_by

    def ask_again(self, rows: Iterable[int], reason: str) -> None:
        """Return to the state *unplaced*, and forget the refusals for one reason: their nodes may be asked again.

        Args:
            rows: The rows of these nodes in the fleet.
            reason: The ``reason`` of the refusals.
        """
        self.refusals = [refusal for refusal in self.refusals if refusal.reason != reason]
        self.tries_count = min(self.tries_count, len(self.refusals))
        self.placing.avoided_rows.difference_update(rows)
        self.placing.restart()

    def add_possible_copy(self, copy: Termination) -> None:
        """Remember an allocation that may exist because its agent did not answer an order of this boot."""
        self.possible_copies.append(copy)

    def adopt(self, node: str, order_id: str) -> Sequence[Termination]:
        """Accept an allocation that a view shows as the result of the boot.

        One of the unanswered orders built the allocation, or another scheduler has migrated the instance since. The
        copies that were ordered earlier remain in ``possible_copies``, to be ended.

        Args:
            node: The node that has the allocation.
            order_id: The id of the order that built the allocation.

        Returns the possible copies that were ordered later. A later copy that was built would be authoritative, so the
        caller has to give the accepted allocation a newer order id.
        """
        later = [copy for copy in self.possible_copies if copy.order_id > order_id]
        self.possible_copies = [copy for copy in self.possible_copies if copy.order_id < order_id]
        self.placing.locate(node)
        return later

    def leave_together(self) -> None:
        """Leave the boots that succeed or fail together: they go on without this one."""
        self.together[:] = [boot for boot in self.together if boot is not self]
        self.placing.together[:] = [placing for placing in self.placing.together if placing is not self.placing]
        self.together, self.placing.together = [], []

    def finish(self, outcome: BootOutcome) -> None:
        """Enter the state *done*, and set the outcome of the future."""
        self.outcome = outcome
        self.future.set_result(outcome)


def outcomes_of(boots: Iterable[Boot]) -> list[BootOutcome]:
    """Return the outcomes of the boots that are done; boots that are under way are skipped."""
    return [boot.outcome for boot in boots if boot.outcome is not None]
