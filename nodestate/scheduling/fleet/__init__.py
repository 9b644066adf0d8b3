"""The fleet: every node of a view as one row of numpy arrays, with the claims of schedulers taken off."""

from nodestate.scheduling.fleet.fleet import Exclusion, Fleet, OutstandingClaims, PlacementMark

__all__ = ["Exclusion", "Fleet", "OutstandingClaims", "PlacementMark"]
