"""Admission: the agent checks each order against the node's present state, then carries it out or refuses it.

The first line that matches decides:

    End, the instance is not on the node, or was built
        by another order than ``of``                   --> done, nothing changes
    End                                                --> ended
    Build, the instance is there as the order asks     --> done, nothing changes, even after the deadline
    Build, after its deadline, or the agent's clock
        was set since the scheduler learned it         --> refused: expired
    Build in place, the instance is not on the node,
        or was built by another order than ``of``      --> refused: not-here
    Build not in place, the instance is on the node,
        and was built by another order                 --> refused: here
    Build not in place, the node is not ``up``, or has
        a taint that the order does not tolerate       --> refused: status
    Build of a new member of a group, and a member on
        the node has another policy                    --> refused: group
    Build of a new member of a group that has enough
        members on the node (anti-affinity)            --> refused: group
    Build, its resources do not fit, or are not in the
        units in which the node gives them             --> refused: no-room
    Build                                              --> admitted, replacing what the instance had on the node
    Cordon or Uncordon that was carried out before     --> done, nothing changes
    Cordon or Uncordon, after its deadline, or the
        agent's clock was set since it was learned     --> refused: expired
    Cordon or Uncordon, the agent can't store it       --> refused: failed
    Cordon or Uncordon                                 --> carried out (``Cordons``)

A node that is cordoned is not ``up``. Each check compares the order with the node's present state, so an order may come
twice, late, or after a later order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import UNSET

from nodestate.agent.cordons import CORDON_BYTES, Cordons
from nodestate.agent.publisher import Publisher
from nodestate.agent.sources import AdmittingSource, FullState, NodeResources, StatePatch
from nodestate.errors import OrderFailedError, SourceUnavailableError
from nodestate.model import MAX_ALLOCATIONS_COUNT, NEVER, Inventory
from nodestate.model.group_policy import group_policy_of
from nodestate.model.orders import MAX_DETAIL_CHARS, Answer, Build, Cordon, End, Order, Refusal, Uncordon
from nodestate.ports import Clock
from nodestate.text import count_text

KEPT_REFUSALS_COUNT: Final = 8
"""Most refusals that a node's state lists. Older refusals are removed from the state."""
SPARE_BYTES: Final = 16 * 1024
"""Bytes of a report that must stay free when an instance is admitted, because usage, metrics and refusals may grow."""

CLOCK_SET_S: Final = 0.1
"""The clock counts as set if its origin moved by more seconds than this. NTP slews both clocks of Linux alike."""

_NO_INVENTORY: Final = Inventory(total=0)
"""The inventory of a resource class that a node does not have."""

_encode = msgspec.msgpack.Encoder().encode


class Rejection(NamedTuple):
    """The reason for the refusal of an order."""

    reason: Refusal
    """The reason, as the answer carries it."""
    detail: str
    """An explanation for people."""


# -- decisions ------------------------------------------------------------------------------------


def allocation_of(order: Build) -> dict[str, Any]:
    """Return the allocation that an order asks for, in the form of a node's state."""
    allocation: dict[str, Any] = {"resources": order.resources}
    if order.group is not None:
        allocation["group"] = order.group
    if order.hints:
        allocation["hints"] = order.hints
    return allocation


def is_done(order: Build | End, node: NodeResources) -> bool:
    """True if the node is already in the state that the order asks for, so nothing has to be done."""
    here = node.allocations.get(order.instance)
    if isinstance(order, End):
        return here is None or order.of not in ("", _built_by(here))
    return (
        here is not None
        and here["resources"] == order.resources
        and here.get("group") == order.group
        and (here.get("hints") or {}) == order.hints
    )


def clock_origin(clock: Clock) -> float:
    """Return the seconds since 1970 that a clock tells at monotonic time 0. Setting the clock changes them."""
    return clock.time() - clock.monotonic()


def rejection_of(order: Build, node: NodeResources, clock: Clock) -> Rejection | None:
    """Return the reason to refuse an order; None if the node may carry it out.

    Args:
        order: the order, which is not done already (``is_done``).
        node: the node's present resources and allocations.
        clock: wall-clock and monotonic time.
    """
    expired = _expired(order, clock)
    if expired is not None:
        return expired
    if order.in_place:
        here = node.allocations.get(order.instance)
        if here is None:
            return Rejection("not-here", "the instance has no allocation on this node, so it can't be changed in place")
        if order.of not in ("", _built_by(here)):
            return Rejection("not-here", f"the instance's allocation on this node was not built by order {order.of}")
    elif order.instance in node.allocations and _built_by(node.allocations[order.instance]) != order.hints.get("order"):
        return Rejection("here", "the instance is on this node already, built by another order")
    elif node.status != "up":
        return Rejection("status", f"the node's status is {node.status}, not up")
    elif repelling := [taint for taint in node.taints if taint not in _tolerations_of(order)]:
        return Rejection("status", f"the node has the taint {repelling[0]}, which the request does not tolerate")
    return _group_forbids(order, node) or _does_not_fit(order, node)


def _expired(order: Build | Cordon | Uncordon, clock: Clock) -> Rejection | None:
    """Return a rejection if the order's deadline has passed, or may have passed because the clock was set."""
    now = clock.time()
    if order.clock_origin is not UNSET and abs(order.clock_origin - clock_origin(clock)) > CLOCK_SET_S:
        return Rejection(
            "expired", "the agent's clock was set after the scheduler learned it, so its deadline is wrong"
        )
    if now > order.deadline:
        return Rejection("expired", f"its deadline was {now - order.deadline:.1f} s ago, by the agent's clock")
    return None


def _built_by(allocation: Mapping[str, Any]) -> object:
    """Return the id of the order that built an allocation; None if the allocation does not name an order."""
    return (allocation.get("hints") or {}).get("order")


def _tolerations_of(order: Build) -> Sequence[object]:
    """Return the taints that the order's request tolerates. Hints may be of any type, so others are ignored."""
    tolerations = order.hints.get("tolerations")
    return tolerations if isinstance(tolerations, list | tuple) else ()


def _group_forbids(order: Build, node: NodeResources) -> Rejection | None:
    """Return a rejection if the group's members on the node do not allow one more member under the order's policy.

    An instance that is on the node already, as a member of the group under the same policy, is no new member.
    """
    policy = group_policy_of(order.hints)
    if order.group is None or policy is None:
        return None
    limit = order.hints.get("max_per_node", 1)
    if policy.policy == "anti-affinity" and (type(limit) is not int or limit < 1):
        return Rejection("bad-order", f"max_per_node is {limit!r:.40}; it must be a whole number of at least 1")
    members = {
        instance: group_policy_of(allocation.get("hints") or {})
        for instance, allocation in node.allocations.items()
        if allocation.get("group") == order.group
    }
    if order.instance in members and members.pop(order.instance) == policy:
        return None
    for instance, other in members.items():
        if other not in (None, policy):
            return Rejection("group", f"{instance} of group {order.group} has the policy {other}, not {policy}")
    if policy.policy != "anti-affinity" or len(members) < limit:
        return None
    return Rejection(
        "group",
        f"the node has {count_text(len(members), 'member')} of group {order.group}, and the group allows {limit}",
    )


def _does_not_fit(order: Build, node: NodeResources) -> Rejection | None:
    """Return a rejection if the node has too little left of a resource that the instance needs in addition.

    Also return one if the instance is to get another amount than it has, and the node does not give that amount to one
    instance. An amount that stays as it is needs no room and is in no wrong unit, whatever the inventory is now.
    """
    had = node.allocations.get(order.instance, {}).get("resources", {})
    for name, amount in order.resources.items():
        more = amount - had.get(name, 0)
        inventory = msgspec.convert(node.inventory[name], Inventory) if name in node.inventory else _NO_INVENTORY
        if (
            more
            and amount
            and not (inventory.min_unit <= amount <= inventory.max_unit and amount % inventory.step_size == 0)
        ):
            units = f"min_unit {inventory.min_unit}, max_unit {inventory.max_unit}, step_size {inventory.step_size}"
            return Rejection("no-room", f"the node does not give {amount} of {name} to one instance ({units})")
        if more <= 0:  # allowed even if the node is over its capacity because its inventory shrank
            continue
        capacity = inventory.capacity
        left = capacity - node.usage.get(name, 0)
        if more > left:
            return Rejection(
                "no-room", f"the order needs {more} more of {name}, and {max(0, left)} of {capacity} are left"
            )
    return None


# -- refusals in the state of a node --------------------------------------------------------------


class Refusals:
    """The newest refusals of each node.

    The node's state lists its refusals in ``namespaces``. So every reader sees them, not only the scheduler that sent
    the order.
    """

    def __init__(self) -> None:
        self._by_node: dict[str, dict[str, dict[str, Any]]] = {}
        """By node and by order id, oldest first: the reason, the instance and the time of the refusal."""

    def add(self, order: Order, reason: Refusal, at: float) -> dict[str, Any] | None:
        """Record a refusal, and forget the oldest refusals of the node beyond ``KEPT_REFUSALS_COUNT``.

        Args:
            order: the refused order.
            reason: the reason of the refusal.
            at: the time of the refusal, in seconds since 1970.

        Returns:
            The patch of the node's state that lists the refusal. None if the state lists the same refusal already, so
            nothing has to be published.
        """
        kept = self._by_node.setdefault(order.node, {})
        known = kept.get(order.id)
        if known is not None and (known["reason"], known["instance"]) == (reason, order.instance):
            return None
        kept.pop(order.id, None)
        kept[order.id] = {"reason": reason, "instance": order.instance, "at": round(at, 3)}
        patch: dict[str, Any] = {order.id: kept[order.id]}
        for oldest in list(kept)[:-KEPT_REFUSALS_COUNT]:
            del kept[oldest]
            patch[oldest] = None
        return {"namespaces": {"nodestate": {"refused": patch}}}

    def merged_into(self, node: str, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return ``state``, the node's full state from its source, with the node's refusals added."""
        kept = self._by_node.get(node)
        if not kept:
            return state
        namespaces = dict(state.get("namespaces", {}))
        namespaces["nodestate"] = {**namespaces.get("nodestate", {}), "refused": dict(kept)}
        return {**state, "namespaces": namespaces}


# -- execution ------------------------------------------------------------------------------------


class _OrderResult(NamedTuple):
    """The result of one order."""

    order: Order
    """The order."""
    source: AdmittingSource | None = None
    """The source that carried the order out; None if the order was refused."""
    refused: Rejection | None = None
    """Why the order was refused; None if it was not."""
    reading: FullState | StatePatch | None = None
    """The reading to publish; None if the order was refused, or if the node was already in the requested state."""


class Admission:
    """Carries out orders in batches::

        order --checked, built or ended--> done in memory --the source stores it--> durable --published--> answered

    A change is stored before it is published or answered. So a scheduler never learns of an allocation that the agent
    would lose with a restart. If a source can't store the batch, it undoes its changes, and all orders for its nodes
    are refused as ``failed``.

    Args:
        clock: wall-clock and monotonic time.
        publishers: the agent's publishers, by name of the node.
        source_of: returns the source that carries out a node's orders; None if the node's source takes no orders.
        cordons_of: returns the cordons of the source of a node.
        publish: publishes a reading of a node.
    """

    def __init__(
        self,
        clock: Clock,
        publishers: Mapping[str, Publisher],
        source_of: Callable[[str], AdmittingSource | None],
        cordons_of: Callable[[str], Cordons],
        publish: Callable[[FullState | StatePatch], None],
    ) -> None:
        self.refusals = Refusals()
        """The newest refusals of each node."""
        self.admitted = 0
        """Orders that built or changed an instance."""
        self.ended = 0
        """Orders that ended an instance."""
        self.refused = 0
        """Orders that were refused."""
        self._clock = clock
        """Wall-clock time, for deadlines and the times of refusals."""
        self._publishers = publishers
        """The agent's publishers, by name of the node."""
        self._source_of = source_of
        """Returns the source that carries out a node's orders; None if the node's source takes no orders."""
        self._cordons_of = cordons_of
        """Returns the cordons of the source of a node."""
        self._publish = publish
        """Publishes a reading of a node."""

    def carry_out(self, orders: Sequence[Order]) -> list[Answer]:
        """Carry out a batch of orders. Returns one answer for each order, in the sequence of ``orders``."""
        promised: dict[str, int] = {}
        outcomes = [self._decide(order, promised) for order in orders]
        not_stored: dict[int, Rejection] = {}
        for source in {id(outcome.source): outcome.source for outcome in outcomes}.values():
            if source is not None:
                try:
                    source.save()
                except SourceUnavailableError as error:
                    not_stored[id(source)] = Rejection("failed", str(error))
        return [
            self._publish_and_answer(
                outcome
                if outcome.refused is not None or id(outcome.source) not in not_stored
                else _OrderResult(outcome.order, refused=not_stored[id(outcome.source)])
            )
            for outcome in outcomes
        ]

    def _decide(self, order: Order, promised: dict[str, int]) -> _OrderResult:
        """Refuse an order, or carry it out in the memory of the node's source.

        ``promised``: by name of the node, the bytes that the allocations of this batch add to the node's report. If
        this order gets an allocation, its bytes are added.
        """
        publisher = self._live(order.node)
        if publisher is None:
            return _OrderResult(order, refused=Rejection("unknown-node", f"this agent has no node {order.node}"))
        if isinstance(order, Cordon | Uncordon):
            return self._cordon(order, publisher)
        source = self._source_of(order.node)
        if source is None:
            return _OrderResult(order, refused=Rejection("failed", f"the source of {order.node} takes no orders"))
        try:
            node = source.resources_of(order.node)
            node = node._replace(status=self._cordons_of(order.node).status_of(order.node, node.status))
            if is_done(order, node):
                return _OrderResult(order, source)
            if isinstance(order, End):
                return _OrderResult(order, source, reading=source.end(order.node, order.instance))
            allocation = allocation_of(order)
            here = node.allocations.get(order.instance)
            more = len(_encode(allocation)) - len(_encode(here)) if here else len(_encode({order.instance: allocation}))
            size = promised.get(order.node, 0) + max(0, more)
            refused = rejection_of(order, node, self._clock)
            if refused is None and (
                (more > 0 and size + SPARE_BYTES > publisher.spare_bytes)
                or (here is None and len(node.allocations) >= MAX_ALLOCATIONS_COUNT)
            ):
                refused = Rejection("no-room", f"the allocations of {order.node} would not fit into a report")
            if refused is not None:
                return _OrderResult(order, refused=refused)
            promised[order.node] = size
            return _OrderResult(order, source, reading=source.build(order.node, order.instance, allocation))
        except (SourceUnavailableError, OrderFailedError) as error:
            return _OrderResult(order, refused=Rejection("failed", str(error)))

    def _cordon(self, order: Cordon | Uncordon, publisher: Publisher) -> _OrderResult:
        """Cordon a node or open it again, unless the order is late, was carried out before, or can't be stored."""
        cordons = self._cordons_of(order.node)
        if cordons.was_carried_out(order):
            return _OrderResult(order)
        refused = _expired(order, self._clock)
        if refused is None and publisher.spare_bytes < CORDON_BYTES:
            refused = Rejection("no-room", f"the cordon would not fit into a report of {order.node}")
        if refused is not None:
            return _OrderResult(order, refused=refused)
        try:
            patch = cordons.carry_out(order, publisher.state().get("status", "up"), self._clock.time())
        except OSError as error:
            return _OrderResult(
                order, refused=Rejection("failed", f"the agent can't store the cordon: {error.strerror or error}")
            )
        return _OrderResult(order, reading=StatePatch(order.node, patch) if patch else None)

    def _live(self, node: str) -> Publisher | None:
        """Return the node's publisher; None if this agent has no such node, or if the node has left."""
        publisher = self._publishers.get(node)
        return publisher if publisher is not None and publisher.live else None

    def _publish_and_answer(self, outcome: _OrderResult) -> Answer:
        """Publish the effect or the refusal of an order. Returns the answer, with the version that shows it."""
        order, refused = outcome.order, outcome.refused
        publisher = self._live(order.node)
        if refused is not None:
            self.refused += 1
            patch = None
            if publisher is not None and not isinstance(order, Cordon | Uncordon):  # its sender alone is concerned
                patch = self.refusals.add(order, refused.reason, self._clock.time())
            if patch is not None:
                self._publish(StatePatch(order.node, patch))
        elif outcome.reading is not None:
            self.admitted += isinstance(order, Build)
            self.ended += isinstance(order, End)
            self._publish(outcome.reading)
        version = publisher.version if publisher is not None else NEVER
        return Answer(
            id=order.id,
            node=order.node,
            instance=order.instance,
            incarnation=version.incarnation,
            generation=version.generation,
            refused=refused.reason if refused is not None else "",
            detail=refused.detail[:MAX_DETAIL_CHARS] if refused is not None else "",
            at=self._clock.time(),
            clock_origin=clock_origin(self._clock),
        )
