"""Selection: finds the best nodes for a request. Filters exclude nodes, and weighers rank the nodes that are left."""

from nodestate.scheduling.selection.choice import Choice, Explanation, Lack, Remaining
from nodestate.scheduling.selection.filters import FILTERS, Filter, spread_domain_flags
from nodestate.scheduling.selection.node_faults import NodeFaults, RecentFault
from nodestate.scheduling.selection.node_preference import NodePreference
from nodestate.scheduling.selection.plugins import Policies, installed, own
from nodestate.scheduling.selection.policy_guard import guarded_filter
from nodestate.scheduling.selection.selector import Selector
from nodestate.scheduling.selection.weighers import WEIGHERS, Weigher

__all__ = [
    "FILTERS",
    "WEIGHERS",
    "Choice",
    "Explanation",
    "Filter",
    "Lack",
    "NodeFaults",
    "NodePreference",
    "Policies",
    "RecentFault",
    "Remaining",
    "Selector",
    "Weigher",
    "guarded_filter",
    "installed",
    "own",
    "spread_domain_flags",
]
