"""Questions of the form "what if": the answer to a request if some nodes were gone, or if all nodes were empty.

The nodes are changed in a view of their own, which a fleet of its own then shows. So the answer is the one that a
scheduler would give after the change, and the scheduler that is asked does not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from nodestate.errors import BadEventError, CorruptItemError, NotFoundError
from nodestate.model import Change, Leave, NodeRecord, fold
from nodestate.model.inventory_ceilings import InventoryCeilings
from nodestate.scheduling.capacity import RequestFit, fit_of
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.request import Request
from nodestate.scheduling.selection import Choice, Explanation, Selector
from nodestate.scheduling.session import Session

_EMPTYING: Final = msgspec.Raw(msgspec.msgpack.encode({"usage": None, "allocations": None}))
"""The patch of a node's state after which the node has no instances and no usage."""


@dataclass(frozen=True, slots=True)
class WhatIf:
    """The answer to a request on a changed fleet. Nothing was claimed."""

    choices: list[Choice]
    """The choice for each instance of the request."""
    explanation: Explanation
    """How many nodes each filter leaves for the first instance, and the best nodes."""
    fit: RequestFit
    """How many instances of the request fit."""


def what_if(
    session: Session, request: Request, *, without: Sequence[str] = (), assume_empty: bool = False, seed: int = 0
) -> WhatIf:
    """Return the answer to a request if some nodes were gone with their instances, or if all nodes were empty.

    Args:
        session: The parts of the scheduler whose last view and claims are used.
        request: The request.
        without: The names of the nodes that are regarded as gone, with all their instances and claims.
        assume_empty: Regard all other nodes as without instances, usage and claims.
        seed: The seed of the random order of equally good nodes.

    Raises:
        NotFoundError: If a node in ``without`` is unknown.
        BadRequestError: If the request names a weigher that is not installed.
        StaleViewError: If no view is fresh enough.
    """
    session.selector.check(request)
    session.refresh(request.max_age)
    before = session.fleet
    unknown = [name for name in without if name not in before.rows]
    if unknown:
        raise NotFoundError("without", f"no node {unknown[0]} is known; 'nodestate view' lists them")
    removed = frozenset(without)

    def change(record: NodeRecord) -> NodeRecord:
        changed = _emptied(record) if assume_empty or record.name in removed else record
        return _gone(changed) if record.name in removed else changed

    fleet = Fleet(session.clock, before.reports.tags, InventoryCeilings(session.config.inventory_ceilings))
    fleet.advance(session.refresher.view.changed(change))
    for row, outstanding in before.claim_overlay.outstanding.items() if not assume_empty else ():
        now_at = fleet.rows.get(before.names[row])
        if now_at is not None and before.names[row] not in removed:
            fleet.overlay(now_at, outstanding)
    selector = Selector(fleet, session.selector.policies, seed)
    return WhatIf(selector.choices(request), selector.explain(request), fit_of(selector, request))


def _emptied(record: NodeRecord) -> NodeRecord:
    """Return a node without instances and usage. A node without a readable state stays as it is."""
    incarnation, generation = record.version
    emptying = Change(
        node=record.name,
        incarnation=incarnation,
        generation=generation + 1,
        reported_at=record.reported_at,
        patch=_EMPTYING,
    )
    with suppress(BadEventError, CorruptItemError):
        return fold(record, emptying).record or record
    return record


def _gone(record: NodeRecord) -> NodeRecord:
    """Return the record of a node without instances after the node has left."""
    incarnation, generation = record.version
    leave = Leave(
        node=record.name, incarnation=incarnation, generation=generation + 1, reported_at=record.reported_at
    )  # fmt: skip
    return fold(record, leave).record or record
