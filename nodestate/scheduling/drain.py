"""Drain: close nodes to new instances, then move all their instances to other nodes.

    node --cordon--> closed --batches of at most ``max_parallel`` instances are evacuated--> empty
    closed --a pass moves nothing, or the deadline--> closed, with the instances that are left and the reason of each
    node whose agent refuses the cordon or does not answer--> the same; nothing is moved

A later move of a pass may make room for an instance that found no node earlier in the pass. So passes are repeated as
long as one of them moves an instance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import msgspec

from nodestate.errors import BadRequestError, BehindError, NodestateError
from nodestate.model import Receipt
from nodestate.scheduling.migrations import Migrations
from nodestate.scheduling.node_orders import NodeOrderResult, NodeOrders
from nodestate.scheduling.orders import Booted, BootOutcome, Failed
from nodestate.scheduling.session import Session


class LeftInstance(msgspec.Struct, frozen=True):
    """An instance that a drain did not move."""

    instance: str
    """The instance's id."""
    reason: str
    """Why it stays, for people."""


class NodeDrain(msgspec.Struct):
    """The result of a drain for one node."""

    node: str
    """The node's name."""
    cordon: NodeOrderResult
    """The result of the cordon. If it was refused, nothing was moved."""
    moved: list[Booted] = []
    """The instances that were moved, with their new nodes."""
    left: list[LeftInstance] = []
    """The instances that are still on the node."""

    @property
    def is_drained(self) -> bool:
        """True if the node is closed and has no instances."""
        return not self.cordon.refused and not self.left


OnProgress = Callable[[int, int], None]
"""Called with the number of instances that have an outcome, and the number of all instances of the nodes."""


def drain(
    session: Session,
    migrations: Migrations,
    orders: NodeOrders,
    nodes: Sequence[str],
    *,
    by: str,
    reason: str = "",
    timeout_s: float = 10.0,
    deadline_s: float = 600.0,
    max_parallel: int = 10,
    on_progress: OnProgress = lambda _done, _all: None,
) -> list[NodeDrain]:
    """Cordon nodes, and move all their instances to other nodes. The nodes stay cordoned.

    Args:
        session: The parts of the scheduler that moves the instances.
        migrations: The scheduler's migrations.
        orders: Sends the cordons, over a connection of its own.
        nodes: The names of the nodes. All are cordoned before the first instance is moved.
        by: The name of the person or program that drains the nodes, at most 255 characters.
        reason: Why, at most 255 characters; may be empty.
        timeout_s: Seconds to wait for the answers to the cordons.
        deadline_s: Seconds after which no further instance is moved. A migration that is under way then goes on.
        max_parallel: Number of instances that are moved at a time. Members of one affinity group are moved together,
            even if they are more.
        on_progress: Called after each batch.

    Returns one result for each node, in the order of ``nodes``.

    Raises:
        BadRequestError: If a name, a text or ``max_parallel`` is invalid. Nothing was changed.
        NotFoundError: If a node is unknown. All nodes may be cordoned.
        StaleViewError: If no view is fresh enough. All nodes are cordoned.
    """
    if max_parallel < 1:
        raise BadRequestError("max_parallel", f"{max_parallel}; want at least 1")
    ends = session.clock.monotonic() + deadline_s
    results = [NodeDrain(one.node, one) for one in orders.cordon(nodes, by=by, reason=reason, timeout_s=timeout_s)]
    drains = [one for one in results if not one.cordon.refused]
    for one in drains:
        assert one.cordon.version is not None, "a cordon that was carried out has a version"
        left_s = max(0.0, ends - session.clock.monotonic())
        with suppress(BehindError):  # the agent refuses new instances already; later passes see earlier ones
            session.refresher.wait_for_receipt(Receipt(one.node, one.cordon.version), min(left_s, timeout_s))
    session.refresh()
    counts = _Progress(on_progress, sum(len(_instances(session, one)) for one in drains))
    for one in drains:
        _drain_node(session, migrations, one, ends, max_parallel, counts)
    return results


class _Progress:
    """Counts the instances that have an outcome."""

    def __init__(self, on_progress: OnProgress, total: int) -> None:
        self._on_progress = on_progress  # gets the counts
        self._total = total  # the number of all instances
        self._seen: set[tuple[str, str]] = set()  # the instances that have an outcome, each with its node
        on_progress(0, total)

    def add(self, node: str, instances: Sequence[str]) -> None:
        self._seen.update((node, instance) for instance in instances)
        self._total = max(self._total, len(self._seen))
        self._on_progress(len(self._seen), self._total)


def _drain_node(
    session: Session, migrations: Migrations, one: NodeDrain, ends: float, max_parallel: int, counts: _Progress
) -> None:
    """Move the instances of one node in passes, until none is left, a pass moves nothing, or the deadline ``ends``."""
    reasons: dict[str, str] = {}
    has_moved = True
    while has_moved and (waiting := _instances(session, one)):
        has_moved = False
        for batch in _batches(session, one.node, waiting, max_parallel):
            left_s = ends - session.clock.monotonic()
            if left_s <= 0:
                reasons.update(dict.fromkeys(batch, "the deadline passed before it was tried"))
                continue
            outcomes = _evacuated(migrations, one.node, batch, left_s, reasons)
            booted = [outcome for outcome in outcomes if isinstance(outcome, Booted)]
            one.moved.extend(booted)
            has_moved = has_moved or bool(booted)
            counts.add(one.node, batch)
            reasons |= {out.instance: _reason_of(out) for out in outcomes if isinstance(out, Failed)}
    unknown = "it was not tried"
    one.left.extend(LeftInstance(name, reasons.get(name, unknown)) for name in _instances(session, one))


def _evacuated(
    migrations: Migrations, node: str, batch: Sequence[str], timeout_s: float, reasons: dict[str, str]
) -> list[BootOutcome]:
    """Move some instances. If there is no outcome in time or no view, the reason is added to ``reasons``."""
    try:
        return migrations.evacuate(node, timeout_s=timeout_s, only=frozenset(batch))
    except TimeoutError:
        text = "there is no outcome within the deadline; the migration may still succeed: look again with 'node show'"
        reasons.update(dict.fromkeys(batch, text))
    except NodestateError as error:
        reasons.update(dict.fromkeys(batch, str(error)))
    return []


def _instances(session: Session, one: NodeDrain) -> list[str]:
    """Return the instances that the last view shows on a node, without the moved ones."""
    row = session.fleet.rows.get(one.node)
    moved = {outcome.instance for outcome in one.moved}
    found = session.fleet.reports.reported(row) if row is not None else {}
    return [instance for instance in found if instance not in moved]


def _batches(session: Session, node: str, instances: Sequence[str], size: int) -> Iterator[list[str]]:
    """Yield the instances in batches of at most ``size``. An affinity group is in one batch, even if it is larger."""
    row = session.fleet.rows[node]
    together: dict[str, list[str]] = {}
    for instance, allocation in session.fleet.reports.reported(row).items():
        if instance in instances:
            hints, group = allocation.get("hints") or {}, allocation.get("group")
            is_joined = group is not None and hints.get("group_policy") == "affinity"
            together.setdefault(f"group {group}" if is_joined else f"instance {instance}", []).append(instance)
    batch: list[str] = []
    for members in together.values():
        if batch and len(batch) + len(members) > size:
            yield batch
            batch = []
        batch += members
    if batch:
        yield batch


def _reason_of(outcome: Failed) -> str:
    tried = ", ".join(f"{one.node}: {one.reason}" for one in outcome.refusals)
    return f"{outcome.reason} (tried {tried})" if tried else str(outcome.reason)
