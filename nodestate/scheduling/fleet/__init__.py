"""The fleet: the nodes of a view as numpy arrays, one row for each node. Claimed amounts are subtracted from them."""

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
