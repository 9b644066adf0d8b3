"""Claims: how a scheduler reserves room on a node before the node's agent reports the allocation."""

from nodestate.scheduling.claims.affinity_seed import AffinitySeed
from nodestate.scheduling.claims.claim_table import ClaimTable
from nodestate.scheduling.claims.placer import Placer
from nodestate.scheduling.claims.placing import NoHostFound, Placing, join_groups
from nodestate.scheduling.claims.record import (
    CLAIMS,
    CLOCK_S,
    MAX_CLAIMS_COUNT,
    REASSERT_S,
    UNSURE_S,
    Claim,
    ClaimRecord,
    claims_by_reservation,
    max_view_age_s,
)

__all__ = [
    "CLAIMS",
    "CLOCK_S",
    "MAX_CLAIMS_COUNT",
    "REASSERT_S",
    "UNSURE_S",
    "AffinitySeed",
    "Claim",
    "ClaimRecord",
    "ClaimTable",
    "NoHostFound",
    "Placer",
    "Placing",
    "claims_by_reservation",
    "join_groups",
    "max_view_age_s",
]
