"""The policy of a group, as the hints of its members state it: one group has one policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class GroupPolicy(NamedTuple):
    """The policy under which an instance was booted into its group."""

    policy: str
    """The policy's name, such as ``anti-affinity``."""
    max_per_node: int = 1
    """The largest number of members on one node; it counts for ``anti-affinity`` alone."""

    def __str__(self) -> str:
        return self.policy if self.max_per_node == 1 else f"{self.policy} with max_per_node {self.max_per_node}"


def group_policy_of(hints: Mapping[str, Any]) -> GroupPolicy | None:
    """Return the policy of an instance's group from the hints of the instance.

    Returns None if the hints state no policy, as with instances that no scheduler booted.
    """
    policy = hints.get("group_policy")
    if not isinstance(policy, str):
        return None
    limit = hints.get("max_per_node", 1)
    return GroupPolicy(policy, limit if policy == "anti-affinity" and type(limit) is int else 1)
