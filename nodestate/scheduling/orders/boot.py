r"""One boot: the state of an instance between its request and its outcome, and all transitions of that state.

::

    wanted --send: a node is claimed, its Build is sent--> sent --complete(Booted)--> done
      ^                                                     |
      |<--refuse: the agent refused, the node is avoided----|
      \<--leave_unanswered: no answer in time---------------/        wanted, sent --complete(Failed)--> done

``boot_tracker`` decides which transition is due. No other module assigns to a boot's fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

from nodestate.model import Version
from nodestate.model.orders import Build
from nodestate.scheduling.claims import NoHostFound, Placing
from nodestate.scheduling.orders.termination_orders import Termination

NO_ANSWER: Final = "silent"
"""The ``reason`` of a ``NodeRefusal`` if the node's agent did not answer."""


@dataclass(frozen=True, slots=True)
class NodeRefusal:
    """A node that did not take an instance.

    ``node``: its name. ``reason``: one of ``orders.Refusal``, or ``silent`` (``NO_ANSWER``). ``detail``: the
    agent's remark, for people.
    """

    node: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Booted:
    """The instance is on a node.

    ``instance``: its id. ``node``: where it is. ``version``: the first state of the node that shows it. ``refusals``:
    nodes that were asked before. ``conflicts``: how many times another scheduler took the chosen node first.
    """

    instance: str
    node: str
    version: Version
    refusals: tuple[NodeRefusal, ...] = ()
    conflicts: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """The instance is on no node, or stays where it was if it was to be migrated.

    ``instance``: its id. ``reason``: which filter left no node, or the cause in words. ``refusals``: nodes that were
    asked. ``conflicts``: how many times another scheduler took the chosen node first.
    """

    instance: str
    reason: NoHostFound
    refusals: tuple[NodeRefusal, ...] = ()
    conflicts: int = 0


BootOutcome = Booted | Failed


def _uncancellable_future() -> Future[BootOutcome]:
    """Return a future whose ``cancel`` does nothing: an order that was sent can't be called back."""
    future: Future[BootOutcome] = Future()
    future.set_running_or_notify_cancel()
    return future


@dataclass(slots=True)
class Boot:
    """One instance that is being booted, migrated or resized. Users read ``outcome``, or wait for ``future``.

    Args:
        placing: The instance, and the node that was chosen for it.
        pinned: The instance goes to the node that it is claimed on, or nowhere.
        hints: Hints to keep with the allocation, in addition to the hints of the request.
        after: The order of this boot gets an id greater than this one.
        replaces: The id of the order that built the instance on the node before: the boot replaces that allocation in
            place, under a newer id. Empty if there is none.
    """

    placing: Placing
    pinned: bool = False
    hints: dict[str, Any] = field(default_factory=dict)
    after: str = ""
    replaces: str = ""
    possible_copies: list[Termination] = field(default_factory=list)
    """The allocations that unanswered orders of a migration may have created, the oldest first."""
    refusals: list[NodeRefusal] = field(default_factory=list)
    """The nodes that did not take the instance, in the order in which they were asked."""
    order: Build | None = None
    """The last order that was sent; None before the first one."""
    answer_by: float = 0.0
    """When the answer to that order is overdue, in monotonic seconds."""
    outcome: BootOutcome | None = None
    """How the boot ended; None while it is under way."""
    future: Future[BootOutcome] = field(default_factory=_uncancellable_future)
    """Gets the outcome, too; ``cancel`` does nothing."""

    @property
    def migrates(self) -> bool:
        """Whether the instance had an allocation before, so that this boot migrates or resizes it."""
        return self.placing.original is not None

    def pin_to(self, row: int) -> None:
        """Allow only the node of this row of the fleet."""
        self.placing.restrict_to(row)
        self.pinned = True

    def avoid(self, row: int) -> None:
        """Do not allow the node of this row of the fleet."""
        self.placing.avoid([row])

    def send(self, order: Build, answer_by: float) -> None:
        """Enter *sent*: this order is about to go to the claimed node. Only the first order replaces an allocation."""
        self.order = order
        self.answer_by = answer_by
        self.replaces = ""

    def refuse(self, refusal: NodeRefusal, row: int | None) -> None:
        """Return to *wanted*, without the node that refused; ``row`` is that node's row in the fleet, if it has one."""
        self.refusals.append(refusal)
        if row is not None:
            self.placing.avoid([row])
        self.placing.release()

    def leave_unanswered(self, row: int | None) -> None:
        """Return to *wanted*, without the node that did not answer.

        That node may have built the instance all the same. So the next order gets a greater id and names the same
        lifetime: then the next allocation takes precedence, and whatever ends one of them ends both.
        """
        assert self.order is not None, "only an order that was sent can be unanswered"
        self.after = self.order.id
        self.hints.setdefault("boot", self.order.id)
        self.refuse(NodeRefusal(self.order.node, NO_ANSWER), row)

    def add_possible_copy(self, copy: Termination) -> None:
        """Remember an allocation that an unanswered order of a migration may have created."""
        self.possible_copies.append(copy)

    def adopt_copy(self, number: int) -> Sequence[Termination]:
        """Take a copy that a view shows for the result of the boot.

        Args:
            number: The index of the copy in ``possible_copies``.

        Returns the copies that were ordered later than this one, which take precedence if they were built.
        """
        copy = self.possible_copies[number]
        later = self.possible_copies[number + 1 :]
        del self.possible_copies[number:]
        self.placing.locate(copy.node)
        return later

    def complete(self, outcome: BootOutcome) -> None:
        """Enter *done*, and wake whoever waits for the future."""
        self.outcome = outcome
        self.future.set_result(outcome)


def outcomes_of(boots: Iterable[Boot]) -> list[BootOutcome]:
    """Return the outcomes of those boots that are done."""
    return [boot.outcome for boot in boots if boot.outcome is not None]
