"""The fleet: every node of a view as one row of numpy arrays, with the claims of schedulers taken off."""

from nodestate.scheduling.fleet.claim_overlay import Exclusion, OutstandingClaims
from nodestate.scheduling.fleet.fleet import Fleet
from nodestate.scheduling.fleet.placement_marks import PlacementMark
from nodestate.scheduling.fleet.row_types import Flags, RowAmounts, RowIndex, Scores, count_of

__all__ = [
    "Exclusion",
    "Flags",
    "Fleet",
    "OutstandingClaims",
    "PlacementMark",
    "RowAmounts",
    "RowIndex",
    "Scores",
    "count_of",
]
