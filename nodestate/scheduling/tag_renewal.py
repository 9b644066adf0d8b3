"""Renewal of tags: existing allocations get a tag that is valid under the secrets that are in force now.

Every order to build is tagged (``orders.order_sender``), so an instance that is moved gets a new tag. An instance that
stays on its node keeps its tag. It has no tag if it was built before the cell had secrets, and no valid tag after its
secret was revoked. So an operator renews tags::

    valid under the oldest secret in force --renew--> valid under all secrets in force
    no valid tag --renew--> stays as it is       --renew and adopt--> valid: the operator believes the node

The order is a build in place with the same content, under the same order id. So agents of earlier versions carry it
out, too, and an allocation that was changed meanwhile is not changed back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from nodestate.auth import without_tag
from nodestate.errors import ConfigError, NotFoundError
from nodestate.scheduling.order_ids import new_order_id, order_id_of, without_future_ids
from nodestate.scheduling.orders import NO_ANSWER, HintUpdate, NodeRefusal, refused_by
from nodestate.scheduling.session import Session

MAX_UNDER_WAY_COUNT: Final = 500
"""Orders that wait for an answer at a time. An agent carries out hundreds of orders in one step."""


class LeftAllocation(msgspec.Struct, frozen=True):
    """An allocation whose tag was not renewed."""

    node: str
    """The node that reports it."""
    instance: str
    """The instance's id."""
    reason: str
    """Why the tag was not renewed, and the remedy."""


class TagRenewal(msgspec.Struct, frozen=True):
    """The result of a renewal of tags."""

    renewed_count: int
    """Number of allocations that got a new tag."""
    current_count: int
    """Number of allocations whose tag was already valid under all secrets in force."""
    left: tuple[LeftAllocation, ...]
    """Allocations whose tag was not renewed."""


class _Renewal(NamedTuple):
    """An allocation that is to get a new tag."""

    node: str
    """The node that reports it."""
    instance: str
    """The instance's id."""
    allocation: Mapping[str, Any]
    """The allocation as the node reports it."""
    hints: Mapping[str, Any]
    """The hints of the new allocation, without the tag."""


class TagRenewals:
    """Renews the tags of allocations, through one scheduler."""

    def __init__(self, session: Session) -> None:
        self._session = session  # the parts of the scheduler
        self._tags = session.fleet.reports.tags  # makes and checks tags

    def renew(self, nodes: Collection[str] = (), *, adopt: bool = False, timeout_s: float = 60.0) -> TagRenewal:
        """Give allocations a tag that is valid under all secrets in force, and wait for the agents.

        Args:
            nodes: The nodes whose allocations get a new tag; empty: all nodes.
            adopt: Whether allocations without a valid tag get one, too. The caller believes the nodes then: all
                schedulers take these allocations as ordered by a scheduler from then on. Without ``nodes``, an
                allocation is adopted if it names an order, and if no other node reports the instance.
            timeout_s: Seconds to wait for the answer to one order.

        Raises:
            ConfigError: If this scheduler has no secrets, or ``auth_orders`` is off.
            NotFoundError: If a node is unknown.
            StaleViewError: If no view is fresh enough. No order was sent.
        """
        if not self._tags.ids_in_force:
            raise ConfigError(
                "no tags can be made: set auth_orders to accept, warn or require, and keys_file to the file that "
                "'nodestate key init' wrote"
            )
        self._session.refresh()
        self._session.refresher.refresh_unresponsive_nodes()
        rows = self._session.fleet.rows
        unknown = next((node for node in nodes if node not in rows), "")
        if unknown:
            raise NotFoundError("node", f"no node {unknown} is known; 'nodestate view' lists them")
        current_count, renewals, left = 0, list[_Renewal](), list[LeftAllocation]()
        for row in [rows[node] for node in dict.fromkeys(nodes)] or range(len(self._session.fleet)):
            for found in self._examine(row, nodes, adopt=adopt):
                if isinstance(found, _Renewal):
                    renewals.append(found)
                elif found is not None:
                    left.append(found)
                else:
                    current_count += 1
        renewed_count, failed = self._send(renewals, timeout_s)
        return TagRenewal(renewed_count, current_count, (*left, *failed))

    def _examine(self, row: int, nodes: Collection[str], *, adopt: bool) -> Iterator[_Renewal | LeftAllocation | None]:
        """Yield a result for each allocation on one node.

        The result is a ``_Renewal`` if the allocation is to get a new tag, and a ``LeftAllocation`` if it needs one and
        gets none. It is None if the tag is valid under all secrets in force. Another service started an allocation that
        names no order and has no tag: it is skipped, unless ``adopt`` and ``nodes`` are both given.

        Args:
            row: the node's row in the fleet.
            nodes: as ``renew`` has it.
            adopt: as ``renew`` has it.
        """
        fleet = self._session.fleet
        node = fleet.names[row]
        for instance, allocation in fleet.reports.reported(row).items():
            valid = self._tags.valid_ids(node, instance, allocation)
            if set(valid) == set(self._tags.ids_in_force):
                yield None
                continue
            hints = without_future_ids(without_tag(allocation.get("hints") or {}), self._session.clock.time())
            if not valid and not order_id_of(hints) and not (adopt and nodes):
                continue  # another service started it, so no scheduler of any version tagged it
            reason = "" if valid else self._why_not_adopted(row, instance, nodes, adopt=adopt)
            if not reason and not fleet.is_responsive(row):
                reason = "its node gives no sign of life; try again when its agent runs"
            if reason:
                yield LeftAllocation(node, instance, reason)
                continue
            if not order_id_of(hints):
                hints = {**hints, "order": new_order_id(self._session.clock, self._session.ids)}
            yield _Renewal(node, instance, allocation, hints)

    def _why_not_adopted(self, row: int, instance: str, nodes: Collection[str], *, adopt: bool) -> str:
        """Return why an allocation without a valid tag gets none; empty if it gets one."""
        if not adopt:
            return "it has no valid tag; adopt it with --adopt if the instance is on this node"
        names, rows = self._session.fleet.names, self._session.fleet.instances.reporting_rows(instance)
        others = [names[other] for other in rows if other != row and (not nodes or names[other] in nodes)]
        if others:
            return (
                f"it is also reported by {others[0]}; if it is on {names[row]}, run 'nodestate retag {names[row]} "
                "--adopt'"
            )
        return ""

    def _send(self, renewals: list[_Renewal], timeout_s: float) -> tuple[int, list[LeftAllocation]]:
        """Send the orders. Returns how many agents carried out, and the allocations of the others.

        An allocation that is no longer on its node, or was changed by another order meanwhile, is in neither result.
        """
        session, updates = self._session, self._session.orders.hint_updates
        waiting, failed, renewed_count = list(reversed(renewals)), list[LeftAllocation](), 0
        under_way: dict[str, tuple[_Renewal, HintUpdate, float]] = {}
        while waiting or under_way:
            while waiting and len(under_way) < MAX_UNDER_WAY_COUNT:
                one = waiting.pop()
                expected = order_id_of(one.allocation.get("hints") or {})
                update = updates.begin(one.node, one.instance, one.allocation, one.hints, expected)
                under_way[update.order.id] = one, update, session.clock.monotonic() + timeout_s

            def settled() -> list[str]:
                now, found = session.clock.monotonic(), []
                for order_id, (_, update, give_up_at) in under_way.items():
                    update.resend()
                    if update.answer is not None or now >= give_up_at:
                        found.append(order_id)
                return found

            session.run(lambda: bool(settled()), timeout_s * 2)
            for order_id in settled():
                one, update, _ = under_way.pop(order_id)
                answer = update.answer
                updates.abandon([order_id])
                refused = answer.refused if answer is not None else NO_ANSWER
                renewed_count += not refused
                if refused not in ("", "not-here"):
                    refusal = NodeRefusal(one.node, refused, answer.detail if answer is not None else "")
                    failed.append(LeftAllocation(one.node, one.instance, refused_by(refusal, timeout_s)))
        return renewed_count, failed
