"""Events, node records and the fold: the data of nodestate, without clock, I/O or randomness.

An agent publishes an ``Event`` (event.py) with a ``State`` (state.py) or a patch (patch.py); ``fold`` (event_fold.py)
applies the event to the node's ``NodeRecord`` (record.py). Orders to agents are in orders.py, partitions in
partitioning.py.
"""

from __future__ import annotations

from nodestate.model.event import Change, Event, Heartbeat, Leave, Report, check_clock, parse_event
from nodestate.model.event_fold import Folded, FoldOutcome, fold, has_left
from nodestate.model.event_json import check_event, event_from_json
from nodestate.model.fields import (
    STATUSES,
    Amount,
    ClassName,
    Counter,
    Measure,
    NodeName,
    NodeStatus,
    Ratio,
    Seconds,
    Word,
)
from nodestate.model.limits import (
    FORMAT_VERSION,
    MAX_AGGREGATES_COUNT,
    MAX_ALLOCATIONS_COUNT,
    MAX_AMOUNT,
    MAX_CLASSES_COUNT,
    MAX_CLOCK_AHEAD_S,
    MAX_COUNTER,
    MAX_EVENT_BYTES,
    MAX_FREE_DEPTH,
    MAX_METRICS_COUNT,
    MAX_NODE_NAME_CHARS,
    MAX_RATIO,
    MAX_STATE_BYTES,
    MAX_TRAITS_COUNT,
    MAX_WORD_CHARS,
    NODE_NAME_CHARACTERS,
    NODE_NAME_PATTERN,
)
from nodestate.model.normalization import parse_state
from nodestate.model.patch import merge_patch
from nodestate.model.record import Heading, NodeRecord, columns_of
from nodestate.model.state import Allocation, Inventory, State
from nodestate.model.version import NEVER, Receipt, Version

__all__ = [
    "FORMAT_VERSION",
    "MAX_AGGREGATES_COUNT",
    "MAX_ALLOCATIONS_COUNT",
    "MAX_AMOUNT",
    "MAX_CLASSES_COUNT",
    "MAX_CLOCK_AHEAD_S",
    "MAX_COUNTER",
    "MAX_EVENT_BYTES",
    "MAX_FREE_DEPTH",
    "MAX_METRICS_COUNT",
    "MAX_NODE_NAME_CHARS",
    "MAX_RATIO",
    "MAX_STATE_BYTES",
    "MAX_TRAITS_COUNT",
    "MAX_WORD_CHARS",
    "NEVER",
    "NODE_NAME_CHARACTERS",
    "NODE_NAME_PATTERN",
    "STATUSES",
    "Allocation",
    "Amount",
    "Change",
    "ClassName",
    "Counter",
    "Event",
    "FoldOutcome",
    "Folded",
    "Heading",
    "Heartbeat",
    "Inventory",
    "Leave",
    "Measure",
    "NodeName",
    "NodeRecord",
    "NodeStatus",
    "Ratio",
    "Receipt",
    "Report",
    "Seconds",
    "State",
    "Version",
    "Word",
    "check_clock",
    "check_event",
    "columns_of",
    "event_from_json",
    "fold",
    "has_left",
    "merge_patch",
    "parse_event",
    "parse_state",
]
