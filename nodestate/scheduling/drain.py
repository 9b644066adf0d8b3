"""Drain: close nodes to new instances, then move all their instances to other nodes.

    node --cordon--> closed --batches of at most ``max_parallel`` instances are evacuated--> empty
    closed --a pass moves nothing, or the deadline--> closed, with the instances that are left and the reason of each
    node whose agent refuses the cordon or does not answer--> the same; nothing is moved

A later move of a pass may make room for an instance that found no node earlier in the pass. So passes are repeated as
long as one of them moves an instance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial

import msgspec

from nodestate.errors import BadRequestError, NodestateError
from nodestate.scheduling.migrations import Migrations
from nodestate.scheduling.node_orders import cordoning
from nodestate.scheduling.orders import Booted, BootOutcome, Failed, NodeOrderResult
from nodestate.scheduling.session import Operation, Session, Wait


class LeftInstance(msgspec.Struct, frozen=True):
    """An instance that a drain has not moved."""

    instance: str
    """The instance's id."""
    reason: str
    """Why it stays, for people; empty while it was not tried."""


class NodeDrain(msgspec.Struct):
    """The progress of a drain for one node, and its result.

    Its lists are replaced as a whole, so another thread may read them while the drain goes on.
    """

    node: str
    """The node's name."""
    cordon: NodeOrderResult
    """The result of the cordon. If it was refused, nothing is moved."""
    moved: tuple[Booted, ...] = ()
    """The instances that were moved, with their new nodes."""
    left: tuple[LeftInstance, ...] = ()
    """The instances that are still on the node."""

    @property
    def is_drained(self) -> bool:
        """True if the node is closed and has no instances."""
        return not self.cordon.refused and not self.left


OnProgress = Callable[[Sequence[NodeDrain]], None]
"""Called with the drains of all nodes: once the cordons were answered, once the instances are known, and after each
batch.
"""


def draining(
    session: Session,
    migrations: Migrations,
    nodes: Sequence[str],
    *,
    by: str,
    reason: str = "",
    timeout_s: float = 10.0,
    deadline_s: float = 600.0,
    max_parallel: int = 10,
    on_progress: OnProgress = lambda _drains: None,
) -> Operation[list[NodeDrain]]:
    """Cordon nodes, and move all their instances to other nodes. The nodes stay cordoned.

    An operation: other work of the scheduler can go on between its steps, and ``session.complete`` runs it alone.

    Args:
        session: The parts of the scheduler that moves the instances. The scheduler needs a courier.
        migrations: The scheduler's migrations.
        nodes: The names of the nodes. All are cordoned before the first instance is moved.
        by: The name of the person or program that drains the nodes, at most 255 characters.
        reason: Why, at most 255 characters; may be empty.
        timeout_s: Seconds to wait for the answers to the cordons.
        deadline_s: Seconds after which no further instance is moved. A migration that is under way then goes on.
        max_parallel: Number of instances that are moved at a time. Members of one affinity group are moved together,
            even if they are more.
        on_progress: Called with the drains whenever they have changed.

    Returns one result for each node, in the order of ``nodes``.

    Raises:
        BadRequestError: If a name, a text or ``max_parallel`` is invalid. Nothing was changed.
        NotFoundError: If a node is unknown. All nodes may be cordoned.
        StaleViewError: If no view is fresh enough. All nodes are cordoned.
    """
    if max_parallel < 1:
        raise BadRequestError("max_parallel", f"{max_parallel}; want at least 1")
    clock = session.clock
    ends = clock.monotonic() + deadline_s
    results = yield from cordoning(session, nodes, by=by, reason=reason, timeout_s=timeout_s)
    drains = [NodeDrain(one.node, one) for one in results]
    on_progress(drains)
    closed = [one for one in drains if not one.cordon.refused]
    for one in closed:
        left_s = max(0.0, ends - clock.monotonic())
        with suppress(TimeoutError):  # the agent refuses new instances already; later passes see earlier ones
            yield Wait(partial(_shows_cordon, session, one.cordon), min(left_s, timeout_s))
    session.refresh()
    for one in closed:
        _update_left(session, one, {})
    on_progress(drains)
    for one in closed:
        yield from _drain_node(session, migrations, one, ends, max_parallel, lambda: on_progress(drains))
    return drains


def _shows_cordon(session: Session, cordon: NodeOrderResult) -> bool:
    """Return whether a view shows the state of a node in which its agent refuses new instances."""
    assert cordon.version is not None, "a cordon that was carried out has a version"
    row = session.fleet.rows.get(cordon.node) if session.try_refresh() else None
    return row is not None and session.fleet.version[row] >= cordon.version


def _drain_node(
    session: Session,
    migrations: Migrations,
    one: NodeDrain,
    ends: float,
    max_parallel: int,
    on_batch: Callable[[], None],
) -> Operation[None]:
    """Move the instances of one node in passes, until none is left, a pass moves nothing, or the deadline ``ends``."""
    reasons: dict[str, str] = {}
    has_moved = True
    while has_moved and one.left:
        has_moved = False
        for batch in _batches(session, one.node, [left.instance for left in one.left], max_parallel):
            left_s = ends - session.clock.monotonic()
            if left_s <= 0:
                reasons.update(dict.fromkeys(batch, "the deadline passed before it was tried"))
                continue
            outcomes = yield from _evacuated(migrations, one.node, batch, left_s, reasons)
            booted = [outcome for outcome in outcomes if isinstance(outcome, Booted)]
            one.moved += tuple(booted)
            has_moved = has_moved or bool(booted)
            reasons |= {out.instance: _reason_of(out) for out in outcomes if isinstance(out, Failed)}
            _update_left(session, one, reasons)
            on_batch()
    _update_left(session, one, reasons, untried="it was not tried")


def _evacuated(
    migrations: Migrations, node: str, batch: Sequence[str], timeout_s: float, reasons: dict[str, str]
) -> Operation[list[BootOutcome]]:
    """Move some instances. If there is no outcome in time or no view, the reason is added to ``reasons``."""
    try:
        return (yield from migrations.evacuation(node, timeout_s=timeout_s, only=frozenset(batch)))
    except TimeoutError:
        text = "there is no outcome within the deadline; the migration may still succeed: look again with 'node show'"
        reasons.update(dict.fromkeys(batch, text))
    except NodestateError as error:
        reasons.update(dict.fromkeys(batch, str(error)))
    return []


def _update_left(session: Session, one: NodeDrain, reasons: Mapping[str, str], untried: str = "") -> None:
    """Set ``left`` to the instances that the last view shows on a node, without the moved ones.

    Args:
        session: The parts of the scheduler.
        one: The drain of the node.
        reasons: Why instances stay, by instance.
        untried: The reason of instances that ``reasons`` does not name.
    """
    row = session.fleet.rows.get(one.node)
    moved = {outcome.instance for outcome in one.moved}
    found = session.fleet.reports.reported(row) if row is not None else {}
    one.left = tuple(LeftInstance(name, reasons.get(name, untried)) for name in found if name not in moved)


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
