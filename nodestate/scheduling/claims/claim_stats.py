"""The counters of a claim table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class ClaimTableStats:
    """Counters since the start."""

    written: int = 0
    """Records that were written."""
    conflicts: int = 0
    """Writes that failed because another scheduler had changed or replaced the record first."""
    created: int = 0
    """Records that were missing or corrupt, and that this scheduler created."""
    lost: int = 0
    """Losses that this scheduler noticed: a record that it knew was lost, and any scheduler created it again."""
    restored: int = 0
    """Claims of this scheduler that were lost with their record, and that it wrote again."""
    unanswered: int = 0
    """Records whose write was not answered by their server."""
