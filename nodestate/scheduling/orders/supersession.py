r"""Supersession: an original allocation gets a newer order id than copies that an unanswered migration may have built.

If a node does not answer the order of a migration, its agent may still have built the instance there, under an order id
that is newer than the original's: the copy would win (see ``order_ids``) although the migration failed. So the
scheduler does not end the copy at once. It first gives the original a newer order id, waits until a view shows that,
and then ends the copies::

    migration unanswered, failed --> superseding --a view shows the new order id--> copies are ended --> done
                                     |  ^ |   |
         sent again every REASSERT_S \--/ |   \--its node is unresponsive, and a copy was built elsewhere--> done
                                          \--TERMINATION_UNCONFIRMED_S--> given up
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nodestate.ports import Clock
from nodestate.ports.ids import IdSource
from nodestate.scheduling.fleet import Exclusion, Fleet
from nodestate.scheduling.order_ids import lifetime_id_of, new_order_id, order_id_of
from nodestate.scheduling.orders.order_sender import OrderSender
from nodestate.scheduling.orders.termination_orders import (
    TERMINATION_UNCONFIRMED_S,
    Termination,
    TerminationOrders,
)


@dataclass(frozen=True, slots=True)
class _Supersession:
    """One original that stays where it is under a newer order id.

    ``original``: the allocation. ``order_id``: its new id. ``copies``: the allocations to end once a view shows the new
    id. ``since``: when it began, in monotonic seconds.
    """

    original: Exclusion
    order_id: str
    copies: tuple[Termination, ...]
    since: float


class Supersessions:
    """The supersessions of one scheduler that are under way.

    Args:
        fleet: The nodes as the last view shows them.
        sender: The way to the agents.
        terminations: Ends the copies.
        clock: For order ids and ages.
        ids: For order ids.
    """

    def __init__(
        self, fleet: Fleet, sender: OrderSender, terminations: TerminationOrders, clock: Clock, ids: IdSource
    ) -> None:
        self._fleet = fleet  # the nodes as the last view shows them
        self._sender = sender  # the way to the agents
        self._terminations = terminations  # ends the copies
        self._clock = clock  # for order ids and ages
        self._ids = ids  # for order ids
        self._under_way: list[_Supersession] = []  # originals whose new order id no view has shown

    def supersede_original(self, original: Exclusion, after: str, copies: Sequence[Termination]) -> None:
        """Give an allocation an order id newer than ``after``, then end the copies that may exist.

        Args:
            original: The allocation that is to win.
            after: The newest order id of a copy.
            copies: Allocations that unanswered orders may have created.
        """
        order_id = new_order_id(self._clock, self._ids, after)
        self._advance(_Supersession(original, order_id, tuple(copies), self._clock.monotonic()))

    def retry(self) -> None:
        """Take the next step of each supersession, as far as the last view allows."""
        under_way, self._under_way = self._under_way, []
        for supersession in under_way:
            self._advance(supersession)

    def _advance(self, supersession: _Supersession) -> None:
        """End the copies if the original has its new order id, give up if it is moot, else send the order again."""
        fleet, original = self._fleet, supersession.original
        row, instance = original.row, original.instance
        allocation = fleet.reports.allocations(row).get(instance, {})
        hints = allocation.get("hints") or {}
        authoritative = fleet.authoritative_row(instance)
        if order_id_of(hints) == supersession.order_id or not fleet.instances.reporting_rows(instance):
            self._terminations.terminate_orders(supersession.copies)  # the original won, or its user ended the instance
        elif authoritative not in (row, None) and fleet.is_responsive(authoritative) and not fleet.is_responsive(row):
            return  # the original's node is gone, and a copy was built after all: it is kept
        elif order_id_of(hints) == original.order and not self._is_too_old(supersession):
            hints = {
                **hints,
                "boot": lifetime_id_of(hints) or supersession.order_id,
                "order": supersession.order_id,
            }
            order = self._sender.build_in_place(
                fleet.names[row], instance, allocation["resources"], allocation.get("group"), hints, original.order
            )
            self._sender.send([order])
            self._under_way.append(supersession)

    def _is_too_old(self, supersession: _Supersession) -> bool:
        return self._clock.monotonic() >= supersession.since + TERMINATION_UNCONFIRMED_S
