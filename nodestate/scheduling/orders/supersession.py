r"""Supersession: the original of a failed migration gets a newer order id than the copies that may exist.

If an agent does not answer the order of a migration, it may still have built the instance, under a newer order id than
the original's. The copy is then authoritative (see ``order_ids``) although the migration failed, and another scheduler
may already be ending the original. If the copy were ended at once, the instance would be lost. So the scheduler first
gives the original an even newer order id, waits until a view shows that id, and then ends the copies::

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
    """One original that is to get a newer order id."""

    original: Exclusion
    """The original allocation, with its former order id."""
    order_id: str
    """The new order id."""
    copies: tuple[Termination, ...]
    """The possible copies, which are ended once a view shows the new order id."""
    since: float
    """When the supersession began, in monotonic seconds."""


class Supersessions:
    """Gives the originals of failed migrations newer order ids, for one scheduler, and then ends their copies.

    Args:
        fleet: The nodes as the last view shows them.
        sender: Sends orders to the agents.
        terminations: Ends the copies.
        clock: The time for new order ids and for the age of supersessions.
        ids: The source of the random part of new order ids.
    """

    def __init__(
        self, fleet: Fleet, sender: OrderSender, terminations: TerminationOrders, clock: Clock, ids: IdSource
    ) -> None:
        self._fleet = fleet  # the nodes as the last view shows them
        self._sender = sender  # sends orders to the agents
        self._terminations = terminations  # ends the copies
        self._clock = clock  # the time for order ids and ages
        self._ids = ids  # the source of the random part of order ids
        self._under_way: list[_Supersession] = []  # originals whose new order id no view has shown

    def supersede_original(self, original: Exclusion, after: str, copies: Sequence[Termination]) -> None:
        """Begin to give an allocation a newer order id, so that it stays authoritative. Then its copies are ended.

        Args:
            original: The allocation that is to stay.
            after: The newest order id of a possible copy; the new order id is greater.
            copies: The allocations that may exist because agents did not answer.
        """
        order_id = new_order_id(self._clock, self._ids, after)
        self._advance(_Supersession(original, order_id, tuple(copies), self._clock.monotonic()))

    def retry(self) -> None:
        """Check each supersession against the last view, and take its next step."""
        under_way, self._under_way = self._under_way, []
        for supersession in under_way:
            self._advance(supersession)

    def _advance(self, supersession: _Supersession) -> None:
        """Take the next step of a supersession, by the last view.

        - The view shows the new order id, or no node has the instance: end the copies. The supersession is done.
        - A copy is authoritative on a responsive node, and the original's node is unresponsive: keep the copy. Done.
        - The view shows the former order id: send the order again, and stay under way for up to
          ``TERMINATION_UNCONFIRMED_S``.
        - Otherwise another order changed the original, or that time has passed: give up.
        """
        fleet, original = self._fleet, supersession.original
        row, instance = original.row, original.instance
        allocation = fleet.reports.allocations(row).get(instance, {})
        hints = allocation.get("hints") or {}
        authoritative = fleet.authoritative_row(instance)
        if order_id_of(hints) == supersession.order_id or not fleet.instances.reporting_rows(instance):
            self._terminations.terminate_orders(supersession.copies)  # the original stays, or no node has the instance
        elif authoritative not in (row, None) and fleet.is_responsive(authoritative) and not fleet.is_responsive(row):
            return  # the original's node is gone, and a copy was built after all: keep the copy
        elif allocation and order_id_of(hints) == original.order and not self._is_too_old(supersession):
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
