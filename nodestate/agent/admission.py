"""The last word on what a node takes on: orders are held against what it has now, then carried out or refused.

    End, of what is here                  --> ended       of what is not here          --> done, nothing changed
    Build, of what is here as it is asked --> done, nothing changed, however late
    Build, overdue                        --> refused: expired
           in place of nothing, or of
           another order's                --> refused: not-here
           of what another order built    --> refused: here, unless it is in place
           the node is not ``up``         --> refused: status, unless it is in place
           anti-affinity, enough are here --> refused: group
           it does not fit                --> refused: no-room
           else                           --> admitted, in place of what the instance may have had

So an order may come twice, late, or after a later one: what is answered is what is so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from nodestate.agent.publisher import Publisher
from nodestate.agent.sources import AdmittingSource, FullState, Room, StatePatch
from nodestate.errors import OrderFailedError, SourceUnavailableError
from nodestate.model import MAX_ALLOCATIONS_COUNT, NEVER, Inventory
from nodestate.model.orders import MAX_DETAIL_CHARS, Answer, Build, End, Order, Refusal
from nodestate.ports import Clock

KEPT_REFUSALS_COUNT: Final = 8
"""Refusals that a node's state tells of: the last ones."""
SPARE_BYTES: Final = 16 * 1024
"""What must be left of a report's size beside the allocations: usage and metrics change, refusals are told of."""

_encode = msgspec.msgpack.Encoder().encode


class Rejection(NamedTuple):
    """Why not."""

    reason: Refusal
    detail: str


# -- judging --------------------------------------------------------------------------------------


def allocation_of(order: Build) -> dict[str, Any]:
    """The allocation that an order asks for, as it stands in a node's state."""
    allocation: dict[str, Any] = {"resources": order.resources}
    if order.group is not None:
        allocation["group"] = order.group
    if order.hints:
        allocation["hints"] = order.hints
    return allocation


def is_done(order: Order, room: Room) -> bool:
    """True where the node is as the order asks already."""
    here = room.allocations.get(order.instance)
    if isinstance(order, End):
        return here is None or order.of not in ("", _built_by(here))
    return (
        here is not None
        and here["resources"] == order.resources
        and here.get("group") == order.group
        and (here.get("hints") or {}) == order.hints
    )


def judge(order: Build, room: Room, now: float) -> Rejection | None:
    """Why a node must not take this on; None where it may. ``now`` in seconds since 1970."""
    if now > order.deadline:
        return Rejection("expired", f"its deadline was {now - order.deadline:.1f} s ago, by the agent's clock")
    if order.in_place:
        here = room.allocations.get(order.instance)
        if here is None:
            return Rejection("not-here", "the instance has nothing on this node that could be changed in place")
        if order.of not in ("", _built_by(here)):
            return Rejection("not-here", f"what the instance has on this node is not of order {order.of}")
    elif order.instance in room.allocations and _built_by(room.allocations[order.instance]) != order.hints.get("order"):
        return Rejection("here", "the instance is on this node already, as another order built it")
    elif room.status != "up":
        return Rejection("status", f"the node is {room.status}")
    return _too_many_of_its_group(order, room) or _does_not_fit(order, room)


def _built_by(allocation: Mapping[str, Any]) -> object:
    """The order that an allocation is of, if it says so."""
    return (allocation.get("hints") or {}).get("order")


def _too_many_of_its_group(order: Build, room: Room) -> Rejection | None:
    if order.group is None or order.hints.get("group_policy") != "anti-affinity":
        return None
    limit = order.hints.get("max_per_node", 1)
    if type(limit) is not int or limit < 1:
        return Rejection("bad-order", f"max_per_node is {limit!r:.40}, and should be a whole number from 1")
    others = sum(
        allocation.get("group") == order.group
        for instance, allocation in room.allocations.items()
        if instance != order.instance
    )
    if others < limit:
        return None
    return Rejection("group", f"{others} of group {order.group} are here, and there may be {limit}")


def _does_not_fit(order: Build, room: Room) -> Rejection | None:
    had = room.allocations.get(order.instance, {}).get("resources", {})
    for name, amount in order.resources.items():
        more = amount - had.get(name, 0)
        if more <= 0:  # also on a node that is over its capacity, since its inventory shrank
            continue
        capacity = msgspec.convert(room.inventory[name], Inventory).capacity if name in room.inventory else 0
        left = capacity - room.usage.get(name, 0)
        if more > left:
            return Rejection("no-room", f"{more} more of {name} are asked, and {max(0, left)} of {capacity} are left")
    return None


# -- refusals in the state of a node --------------------------------------------------------------


class Refusals:
    """The last refusals of each node, which its state tells in ``namespaces``, so that others than who asked see them."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, dict[str, Any]]] = {}

    def note(self, order: Order, reason: Refusal, at: float) -> dict[str, Any] | None:
        """A patch that tells of one more; None where it was told already."""
        kept = self._of.setdefault(order.node, {})
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

    def onto(self, node: str, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """A whole state, as its source gives it, with them."""
        kept = self._of.get(node)
        if not kept:
            return state
        namespaces = dict(state.get("namespaces", {}))
        namespaces["nodestate"] = {**namespaces.get("nodestate", {}), "refused": dict(kept)}
        return {**state, "namespaces": namespaces}


# -- carrying out ---------------------------------------------------------------------------------


class _OrderResult(NamedTuple):
    """What became of one order: refused, or (with a reading) done now, or (without) done before."""

    order: Order
    source: AdmittingSource | None = None
    refused: Rejection | None = None
    reading: FullState | StatePatch | None = None


class Admission:
    """Carries out orders in batches::

        judged, and built or ended --the source keeps it--> durable --published--> seen --> answered

    So nobody is told of an allocation that would not outlive the agent. Where it can't be kept all orders of that source
    are refused as ``failed``.
    """

    def __init__(
        self,
        clock: Clock,
        publishers: Mapping[str, Publisher],
        source_of: Callable[[str], AdmittingSource | None],
        publish: Callable[[FullState | StatePatch], None],
    ) -> None:
        self.refusals = Refusals()
        self.admitted = 0
        self.ended = 0
        self.refused = 0
        self._clock = clock
        self._publishers = publishers
        self._source_of = source_of
        self._publish = publish

    def carry_out(self, orders: Sequence[Order]) -> list[Answer]:
        """One answer for each order, in their order."""
        promised: dict[str, int] = {}
        outcomes = [self._decide(order, promised) for order in orders]
        lost: dict[int, Rejection] = {}
        for source in {id(outcome.source): outcome.source for outcome in outcomes}.values():
            if source is not None:
                try:
                    source.keep()
                except SourceUnavailableError as error:
                    lost[id(source)] = Rejection("failed", str(error))
        return [
            self._tell(
                outcome
                if outcome.refused is not None or id(outcome.source) not in lost
                else _OrderResult(outcome.order, refused=lost[id(outcome.source)])
            )
            for outcome in outcomes
        ]

    def _decide(self, order: Order, promised: dict[str, int]) -> _OrderResult:
        publisher = self._live(order.node)
        if publisher is None:
            return _OrderResult(order, refused=Rejection("unknown-node", "the agent has no such node"))
        source = self._source_of(order.node)
        if source is None:
            return _OrderResult(
                order, refused=Rejection("failed", "what the agent reads the node from takes no orders")
            )
        try:
            room = source.room(order.node)
            if is_done(order, room):
                return _OrderResult(order, source)
            if isinstance(order, End):
                return _OrderResult(order, source, reading=source.end(order.node, order.instance))
            allocation = allocation_of(order)
            size = promised.get(order.node, 0) + len(_encode({order.instance: allocation}))
            refused = judge(order, room, self._clock.time())
            if refused is None and (
                size + SPARE_BYTES > publisher.spare_bytes or len(room.allocations) >= MAX_ALLOCATIONS_COUNT
            ):
                refused = Rejection("no-room", "its allocations would be more than a report can carry")
            if refused is not None:
                return _OrderResult(order, refused=refused)
            promised[order.node] = size
            return _OrderResult(order, source, reading=source.build(order.node, order.instance, allocation))
        except (SourceUnavailableError, OrderFailedError) as error:
            return _OrderResult(order, refused=Rejection("failed", str(error)))

    def _live(self, node: str) -> Publisher | None:
        publisher = self._publishers.get(node)
        return publisher if publisher is not None and publisher.live else None

    def _tell(self, outcome: _OrderResult) -> Answer:
        order, refused = outcome.order, outcome.refused
        publisher = self._live(order.node)
        if refused is not None:
            self.refused += 1
            patch = self.refusals.note(order, refused.reason, self._clock.time()) if publisher is not None else None
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
        )
