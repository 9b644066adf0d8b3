"""Hint updates: an agent is asked to keep further hints with an allocation, until it has answered.

Members of a reservation carry the hint ``placed`` once all of them are built; see ``reconciler``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from nodestate.errors import BrokerUnavailableError
from nodestate.model.orders import Answer, Build
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.order_ids import order_id_of
from nodestate.scheduling.orders.order_sender import OrderSender


class HintUpdates:
    """The unanswered hint updates of one scheduler.

    Args:
        fleet: The nodes as the last view shows them.
        sender: The way to the agents.
    """

    def __init__(self, fleet: Fleet, sender: OrderSender) -> None:
        self._fleet = fleet  # the nodes as the last view shows them
        self._sender = sender  # the way to the agents
        self._unacknowledged: set[str] = set()  # ids of updates that no agent has answered

    def update_hints(self, order: Build, hints: Mapping[str, Any]) -> str:
        """Ask an agent to add these hints to the allocation that an order built.

        The agent refuses if the allocation was changed since. Returns the id of the update, for ``acknowledged``.
        """
        update = self._sender.build_in_place(
            order.node, order.instance, order.resources, order.group, {**order.hints, **hints}, order.id
        )
        with suppress(BrokerUnavailableError):
            update = msgspec.structs.replace(update, reply_to=self._sender.reply_to)
        self._unacknowledged.add(update.id)
        self._sender.send([update])
        return update.id

    def accept_answers(self, answers: Iterable[Answer]) -> None:
        """Note which updates these answers acknowledge; answers to other orders are ignored."""
        for answer in answers:
            self._unacknowledged.discard(answer.id)

    def acknowledged(self, ids: Collection[str]) -> bool:
        """Whether agents have answered all updates of these ids."""
        return self._unacknowledged.isdisjoint(ids)

    def abandon(self, ids: Collection[str]) -> None:
        """Stop waiting for the answers to these updates."""
        self._unacknowledged -= set(ids)

    def set_placed(self, node: str, instance: str) -> None:
        """Ask an agent to mark an allocation of the last view as a member of a reservation that is placed in full.

        No answer is awaited; the caller repeats it until a view shows the mark. Does nothing if the view does not show
        the allocation.
        """
        row = self._fleet.rows.get(node)
        allocation = self._fleet.reports.allocations(row).get(instance) if row is not None else None
        if allocation:
            hints = {**allocation.get("hints", {}), "placed": True}
            update = self._sender.build_in_place(
                node, instance, allocation["resources"], allocation.get("group"), hints, order_id_of(hints)
            )
            self._sender.send([update])
