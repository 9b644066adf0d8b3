"""Types of the fields of events and states, with the limits that msgspec checks when it decodes them."""

from __future__ import annotations

import sys
from typing import Annotated, Final, Literal

from msgspec import Meta

from nodestate.model.limits import (
    MAX_AMOUNT,
    MAX_COUNTER,
    MAX_NODE_NAME_CHARS,
    MAX_QUEUE_NAME_BYTES,
    MAX_RATIO,
    MAX_WORD_CHARS,
    NODE_NAME_PATTERN,
)

NodeName = Annotated[str, Meta(pattern=rf"\A{NODE_NAME_PATTERN}\Z")]
CLASS_PATTERN: Final = rf"[A-Z0-9_]{{1,{MAX_WORD_CHARS}}}"
"""The rule for the name of a resource class, as a regular expression that must match the whole name."""
ClassName = Annotated[str, Meta(pattern=rf"\A{CLASS_PATTERN}\Z")]
Word = Annotated[str, Meta(min_length=1, max_length=MAX_WORD_CHARS)]
QueueName = Annotated[str, Meta(pattern=rf"\A[ -~]{{0,{MAX_QUEUE_NAME_BYTES}}}\Z")]
"""The name of a queue for answers; empty for none. RabbitMQ accepts longer or other names nowhere."""
Amount = Annotated[int, Meta(ge=0, le=MAX_AMOUNT)]
Unit = Annotated[int, Meta(ge=1, le=MAX_AMOUNT)]
Measure = (  # Without NaN and infinity, which JSON lacks. An integer stays an integer, and fits a double exactly.
    Annotated[int, Meta(ge=-MAX_COUNTER, le=MAX_COUNTER)]
    | Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
)
Ratio = Annotated[float, Meta(gt=0, le=MAX_RATIO)]
Counter = Annotated[int, Meta(ge=1, le=MAX_COUNTER)]
Seconds = Annotated[float, Meta(ge=0, le=1e11)]
StoredName = Annotated[str, Meta(min_length=1, max_length=MAX_NODE_NAME_CHARS)]
"""The name in a stored record. Its characters are checked for many records at once, which is faster."""
StoredCounter = Annotated[int, Meta(ge=0, le=MAX_COUNTER)]
"""An incarnation or generation in a stored record; 0 if the node has no state."""
NodeStatus = Literal["up", "draining", "maintenance", "down"]
STATUSES: Final = ("up", "draining", "maintenance", "down")
