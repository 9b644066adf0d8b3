"""Claims: how schedulers reserve room on a node before the node's agent reports the allocation."""

from nodestate.scheduling.claims.record import (
    CLAIMS,
    CLOCK_S,
    MAX_CLAIMS_COUNT,
    REASSERT_S,
    UNSURE_S,
    Claim,
    ClaimRecord,
)

__all__ = ["CLAIMS", "CLOCK_S", "MAX_CLAIMS_COUNT", "REASSERT_S", "UNSURE_S", "Claim", "ClaimRecord"]
