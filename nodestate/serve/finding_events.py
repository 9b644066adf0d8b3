"""The events about findings: a finding appeared, or went away.

While a client follows the topic ``findings``, the cell is examined as often as ``CellExamination`` allows. Without
such a client nothing is examined for events, because each examination asks all agents of the cell for a sign of life.
Examinations that other requests begin count as well.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Annotated, Final

import msgspec
import structlog
from msgspec import Meta

from nodestate.designs.control import Control
from nodestate.errors import NodestateError
from nodestate.findings import Finding, FindingDocument
from nodestate.serve.cell_examination import REUSE_S, CellExamination
from nodestate.serve.event_hub import EventHub, StreamEvent
from nodestate.serve.problems import ProblemError

TOPIC: Final = "findings"
LOOK_S: Final = 1.0
"""Seconds between two looks whether a client follows the topic and the last examination is too old."""

_log: Final = structlog.get_logger("nodestate.serve.finding_events")


class FindingKey(msgspec.Struct, frozen=True):
    """The identity of a finding. Its figures change from one examination to the next, and its identity does not."""

    code: Annotated[str, Meta(description="Frozen code of the finding.")]
    subject: Annotated[str, Meta(description="The part of the cell, or the node.")]


class FindingsEvent(msgspec.Struct):
    """Findings appeared or went away."""

    findings: Annotated[
        list[FindingDocument], Meta(description="All findings of the cell now, without the parts that work.")
    ]
    appeared: Annotated[list[FindingKey], Meta(description="Code and subject of each finding that is new.")]
    gone: Annotated[list[FindingKey], Meta(description="Code and subject of each finding that is gone.")]


class FindingEvents:
    """Publishes the findings of examinations in a hub. Belongs to the event loop."""

    def __init__(self, hub: EventHub) -> None:
        self._hub = hub
        # The findings of the last examination; None before the first one.
        self._last: list[FindingDocument] | None = None

    def on_examined(self, findings: Iterable[Finding]) -> None:
        """Take the findings of an examination, and publish an event if they differ from those before."""
        now = [document for document in (one.document() for one in findings) if document.code]
        before, self._last = self._last, now
        # Two findings may have one key, for example of two partitions: so keys are counted.
        keys, keys_before = _keys_of(now), _keys_of(before or ())
        appeared, gone = list((keys - keys_before).elements()), list((keys_before - keys).elements())
        if before is None or appeared or gone:
            self._hub.publish(TOPIC, FindingsEvent(now, appeared, gone))

    def opening(self) -> list[StreamEvent]:
        """Return the event with which a stream begins; none before the first examination."""
        if self._last is None:
            return []
        return [StreamEvent(0, TOPIC, "", TOPIC, FindingsEvent(self._last, [], []))]

    async def examine(self, examination: CellExamination, control: Callable[[], Control]) -> None:
        """Examine the cell while clients follow the topic, until this task is cancelled.

        Args:
            examination: examines the cell, and calls ``on_examined``.
            control: returns the control record to examine by.
        """
        while True:
            await asyncio.sleep(LOOK_S)
            if not any(TOPIC in client.topics for client in self._hub.clients):
                continue
            try:
                await examination.latest(control())
            except (NodestateError, ProblemError) as error:
                _log.warning("cannot examine the cell", reason=str(error))
                await asyncio.sleep(REUSE_S)


def _keys_of(documents: Iterable[FindingDocument]) -> Counter[FindingKey]:
    return Counter(FindingKey(one.code, one.subject) for one in documents)
