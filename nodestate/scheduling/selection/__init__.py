"""Selection: filters and weighers, and the best nodes for a request by them."""

from nodestate.scheduling.selection.choice import Choice, Explanation, Lack, Remaining
from nodestate.scheduling.selection.node_preference import NodePreference
from nodestate.scheduling.selection.plugins import Policies, installed, own
from nodestate.scheduling.selection.selector import Selector

__all__ = [
    "Choice",
    "Explanation",
    "Lack",
    "NodePreference",
    "Policies",
    "Remaining",
    "Selector",
    "installed",
    "own",
]
