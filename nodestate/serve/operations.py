"""Operations that take long, such as boots: each is a resource that shows the state of each of its instances."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from nodestate.errors import NodestateError
from nodestate.scheduling import (
    Boot,
    Booted,
    BootOutcome,
    Confirmed,
    Failed,
    NodeDrain,
    NodeOrderResult,
    NotConfirmed,
    Scheduler,
)
from nodestate.scheduling.session import Operation, Wait
from nodestate.serve.decision_recorder import DecisionRecorder
from nodestate.serve.decisions import RefusedNode
from nodestate.serve.problems import FilterCount, VersionDocument, filter_counts, problem
from nodestate.serve.scheduler_thread import SchedulerThread
from nodestate.text import printable

MAX_REMEMBERED_COUNT: Final = 1_000
"""Operations that are kept after their end; the oldest is forgotten first."""


class InstanceProgress(msgspec.Struct):
    """One instance of an operation."""

    instance: Annotated[str, Meta(description="Id of the instance.")]
    state: Annotated[
        Literal["waiting", "asked", "booted", "failed", "terminated"],
        Meta(
            description="waiting: it needs a node; asked: an agent has the order; booted: the node has it; "
            "failed: no node took it, and a moved instance stays where it was; terminated: no node has it. While a "
            "drain is running, it tries failed instances again after it has moved another one."
        ),
    ]
    node: Annotated[str | None, Meta(description="The node that is asked, or has it, or had it; null if none.")]
    version: Annotated[VersionDocument | None, Meta(description="A version of the node that shows it; null if none.")]
    why: Annotated[str, Meta(description="Why it failed, for people; empty if it did not.")]
    filters: Annotated[
        list[FilterCount], Meta(description="If it failed by filters, what each filter left; otherwise empty.")
    ]
    refused: Annotated[list[RefusedNode], Meta(description="Nodes that were asked and did not take it.")]
    conflicts: Annotated[int, Meta(description="How often it lost its node to another scheduler.")]


class NodeOrderDocument(msgspec.Struct):
    """The answer of a node's agent to an order."""

    node: Annotated[str, Meta(description="Name of the node.")]
    done: Annotated[bool, Meta(description="True if the agent has carried the order out.")]
    version: Annotated[
        VersionDocument | None,
        Meta(description="A version of the node that shows it, to give as at_least; null if it was not done."),
    ]
    refused: Annotated[
        str,
        Meta(description="Frozen word why it was not done, such as no-agent or silent; empty if it was done."),
    ]
    detail: Annotated[str, Meta(description="Why it was not done, for people, with the remedy; empty if it was done.")]

    @classmethod
    def of(cls, result: NodeOrderResult) -> NodeOrderDocument:
        """Return the result of an order as a document."""
        version = VersionDocument(*result.version) if result.version is not None else None
        return cls(result.node, not result.refused, version, result.refused, printable(result.detail))


class OperationDocument(msgspec.Struct):
    """An operation."""

    id: Annotated[str, Meta(description="Id of the operation.")]
    kind: Annotated[str, Meta(description="boot, migrate, resize, terminate, evacuate, drain or confirm.")]
    subject: Annotated[str, Meta(description="The instance, node or reservation that it is about; empty for boots.")]
    state: Annotated[
        Literal["running", "done", "failed", "timeout"],
        Meta(
            description="running; done: each instance reached its aim; failed: at least one did not; timeout: the time "
            "was over before the end, and agents may still do the rest."
        ),
    ]
    begun_at: Annotated[float, Meta(description="When it began, in seconds since 1970.")]
    seconds: Annotated[float, Meta(description="Seconds from its begin to its end, or to now.")]
    error: Annotated[str, Meta(description="Why it failed as a whole, for people; empty if it did not.")]
    deadline_at: Annotated[
        float | None,
        Meta(description="When a drain stops to begin moves, in seconds since 1970; null for other operations."),
    ]
    cordon: Annotated[
        NodeOrderDocument | None,
        Meta(description="Answer to the cordon of a drain; null before it, and for other operations."),
    ]
    instances: Annotated[
        list[InstanceProgress], Meta(description="Its instances; those of a drain once the node is cordoned.")
    ]


class OperationRecord:
    """One operation. The scheduler's thread sets ``boots``, ``drain``, ``result`` and ``error``; the event loop reads
    them.

    Args:
        kind: its kind, as in its document.
        subject: what it is about.
        by: name of the token of the request.
        claims: words of which only one operation at a time may have each, such as the instance that is moved.
        deadline_s: seconds after which a drain stops; None for other operations.
    """

    def __init__(
        self, kind: str, subject: str, by: str, claims: Collection[str], deadline_s: float | None = None
    ) -> None:
        self.id = secrets.token_hex(8)
        self.kind = kind
        self.subject = subject
        self.by = by
        self.claims = claims
        self.begun_at = time.time()
        self.begun = time.monotonic()
        self.deadline_at = self.begun_at + deadline_s if deadline_s is not None else None
        self.ended: float | None = None
        self.boots: Mapping[str, Boot] = {}
        """By instance, its last boot."""
        self.drain: NodeDrain | None = None
        """The progress of a drain; None before the cordon was answered."""
        self.result: Any = None
        self.error: Exception | None = None
        self.end = asyncio.Event()

    def show_drains(self, drains: Sequence[NodeDrain]) -> None:
        """Set the progress of the drain of one node."""
        [self.drain] = drains

    def document(self) -> OperationDocument:
        """Return the operation as a document."""
        instances = self._instances()
        state: Literal["running", "done", "failed", "timeout"] = "running"
        if self.ended is not None:
            reached = all(one.state in ("booted", "terminated") for one in instances)
            state = "done" if reached and not self._error_text() else "failed"
            if isinstance(self.error, TimeoutError):
                state = "timeout"
        elapsed = (self.ended if self.ended is not None else time.monotonic()) - self.begun
        return OperationDocument(
            self.id,
            self.kind,
            self.subject,
            state,
            self.begun_at,
            round(elapsed, 3),
            self._error_text(),
            self.deadline_at,
            NodeOrderDocument.of(self.drain.cordon) if self.drain is not None else None,
            instances,
        )

    def _error_text(self) -> str:
        if isinstance(self.error, (NodestateError, TimeoutError)):
            return printable(str(self.error))
        if self.error is not None:
            return "the scheduler failed: the service's log has the cause"
        if self.drain is not None and self.drain.cordon.refused:
            return printable(f"the node is not cordoned, so nothing was moved: {self.drain.cordon.detail}")
        return ""

    def _instances(self) -> list[InstanceProgress]:
        if self.drain is not None:
            return self._drained_instances(self.drain)
        if isinstance(self.result, dict):  # a termination: by instance the nodes that had it
            return [
                InstanceProgress(name, "terminated", next(iter(nodes), None), None, "", [], [], 0)
                for name, nodes in self.result.items()
            ]
        if self.ended is not None and self.result is not None:
            return [_outcome(one) for one in outcomes_in(self.result)]
        return [_progress(boot) for boot in self.boots.values()]

    def _drained_instances(self, drain: NodeDrain) -> list[InstanceProgress]:
        """Return the instances that were moved, and the instances that are left with the reason of each."""
        left, found = drain.left, [_outcome(one) for one in drain.moved]
        moved = {one.instance for one in found}
        for one in left:
            if one.instance in moved:
                continue  # it was moved between the two reads
            boot = self.boots.get(one.instance)
            shown = InstanceProgress(one.instance, "waiting", None, None, "", [], [], 0)
            if boot is not None:
                shown = _progress(boot)
            if one.reason and (boot is None or boot.outcome is not None or self.ended is not None):
                shown.state, shown.node, shown.why = "failed", None, printable(one.reason)
            found.append(shown)
        return found

    def outcomes(self) -> Iterable[BootOutcome]:
        """Return the outcomes of the instances that have one, after the end."""
        if self.result is not None and self.drain is None:
            return outcomes_in(self.result)
        return [boot.outcome for boot in self.boots.values() if boot.outcome is not None]


def outcomes_in(result: Any) -> Iterable[BootOutcome]:
    """Return the outcomes of the instances in the result of an operation."""
    if isinstance(result, (Booted, Failed)):
        return [result]
    if isinstance(result, Confirmed):
        return result.members
    if isinstance(result, NotConfirmed):
        return result.failed
    return result if isinstance(result, list) else []


def _progress(boot: Boot) -> InstanceProgress:
    outcome = boot.outcome
    if outcome is not None:
        return _outcome(outcome)
    placing = boot.placing
    is_asked = boot.order is not None and placing.node is not None
    refused = [RefusedNode(one.node, one.reason) for one in list(boot.refusals)]
    return InstanceProgress(
        placing.instance,
        "asked" if is_asked else "waiting",
        placing.node if is_asked else None,
        None,
        "",
        [],
        refused,
        placing.conflicts,
    )


def _outcome(outcome: BootOutcome) -> InstanceProgress:
    refused = [RefusedNode(one.node, one.reason) for one in outcome.refusals]
    if isinstance(outcome, Booted):
        version = VersionDocument(*outcome.version)
        return InstanceProgress(outcome.instance, "booted", outcome.node, version, "", [], refused, outcome.conflicts)
    filters = filter_counts(outcome.reason.remaining)
    why = printable(str(outcome.reason))
    return InstanceProgress(outcome.instance, "failed", None, None, why, filters, refused, outcome.conflicts)


class Operations:
    """The operations of a service. Belongs to the event loop."""

    def __init__(self, thread: SchedulerThread, recorder: DecisionRecorder) -> None:
        self._thread = thread
        self._recorder = recorder
        self._by_id: OrderedDict[str, OperationRecord] = OrderedDict()
        # Words that operations under way claim.
        self._claimed: set[str] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Call it in the event loop before the first operation."""
        self._loop = asyncio.get_running_loop()

    def end_waits(self) -> None:
        """Let no request wait for an operation."""
        for record in self._by_id.values():
            record.end.set()

    def find(self, operation: str) -> OperationRecord | None:
        """Return an operation; None if it is not kept."""
        return self._by_id.get(operation)

    async def begin(self, record: OperationRecord, make: Callable[[Scheduler], Operation[Any]], max_age: float) -> None:
        """Begin an operation, once the scheduler has a view of the accepted age.

        Args:
            record: the new record of the operation.
            make: makes the operation; called in the scheduler's thread.
            max_age: accepted age of the view in seconds.

        Raises ``StaleViewError``, ``ProblemError``, and the errors of the operation before its first wait.
        """
        taken = self._claimed.intersection(record.claims)
        if taken:
            raise problem("conflict", f"another operation on {min(taken)} is under way; wait for its end")
        self._claimed.update(record.claims)

        def job(scheduler: Scheduler) -> None:
            scheduler.refresh(max_age)

            def on_wait(wait: Wait) -> None:
                record.boots = {**record.boots, **{boot.placing.instance: boot for boot in wait.boots}}

            def on_end(result: Any, error: Exception | None) -> None:
                record.result, record.error = result, error
                placed = {name: boot.placing.request for name, boot in record.boots.items()}
                ended = [(placed[one.instance], one) for one in record.outcomes() if one.instance in placed]
                try:  # first: a client that sees the end looks for the decisions
                    self._recorder.record_outcomes(scheduler, record.kind, record.by, ended)
                finally:
                    assert self._loop is not None, "start() comes first"
                    with suppress(RuntimeError):  # the event loop has ended
                        self._loop.call_soon_threadsafe(self._end, record)

            self._thread.begin(make(scheduler), on_wait, on_end)

        # A request that is cancelled does not stop its operation: it may have begun.
        await asyncio.shield(asyncio.ensure_future(self._run(record, job)))

    async def _run(self, record: OperationRecord, job: Callable[[Scheduler], None]) -> None:
        """Begin an operation in the thread, and keep it."""
        try:
            await self._thread.run(job)
        except BaseException:
            self._claimed.difference_update(record.claims)
            raise
        self._by_id[record.id] = record
        ended = [name for name, one in self._by_id.items() if one.ended is not None]
        for name in ended[: max(0, len(ended) - MAX_REMEMBERED_COUNT)]:
            del self._by_id[name]

    def _end(self, record: OperationRecord) -> None:
        record.ended = time.monotonic()
        self._claimed.difference_update(record.claims)
        record.end.set()
