"""The fleet: every node of a view as one row of numpy arrays, with the claims of schedulers taken off."""

from nodestate.scheduling.fleet.claim_overlay import Exclusion, OutstandingClaims
from nodestate.scheduling.fleet.fleet import Fleet
from nodestate.scheduling.fleet.placement_marks import PlacementMark

__all__ = ["Exclusion", "Fleet", "OutstandingClaims", "PlacementMark"]
