"""Selection: filters and weighers, and the best nodes for a request by them."""

from nodestate.scheduling.selection.selector import Choice, Explanation, Lack, Remaining, Selector

__all__ = ["Choice", "Explanation", "Lack", "Remaining", "Selector"]
