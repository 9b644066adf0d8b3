"""Group policies: under which policies the members of a group were booted, as nodes and claims state them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nodestate.model import Version
from nodestate.model.group_policy import GroupPolicy, group_policy_of
from nodestate.scheduling.fleet.claim_overlay import ClaimOverlay
from nodestate.scheduling.fleet.instance_locations import InstanceLocations
from nodestate.scheduling.fleet.node_reports import NodeReports


class GroupMember(NamedTuple):
    """A member of a group, with the policy under which it was booted or claimed."""

    instance: str
    """The instance's id."""
    row: int
    """The row of its node."""
    policy: GroupPolicy
    """The policy in its hints."""


class GroupPolicies:
    """Finds members of a group with another policy than a request has.

    The hints of a node's instances are decoded when a request for one of their groups asks for them, once for each
    version of the node.

    Args:
        version: The version of the node's state that each row shows.
        instances: The instances that each row's node reports, with their groups.
        reports: The hints that each node reports.
        claim_overlay: The outstanding claims of each row.
    """

    def __init__(
        self,
        version: Sequence[Version],
        instances: InstanceLocations,
        reports: NodeReports,
        claim_overlay: ClaimOverlay,
    ) -> None:
        self._version = version
        """The version of the node's state that each row shows."""
        self._instances = instances
        """The instances that each row's node reports, with their groups."""
        self._reports = reports
        """The hints that each node reports."""
        self._claim_overlay = claim_overlay
        """The outstanding claims of each row."""
        self._decoded: dict[int, tuple[Version, Mapping[str, Mapping[str, GroupPolicy]]]] = {}
        """For each decoded row, the version of its node, and for each group the policies of its members there."""

    def contradiction(self, group: str, policy: GroupPolicy) -> GroupMember | None:
        """Return a member of a group that has another policy; None if there is none.

        Members whose hints state no policy contradict no policy.
        """
        for row in self._instances.groups.get(group, ()):
            outstanding = self._claim_overlay.outstanding.get(row)
            reported = self._reported(row).get(group, {})
            claimed = outstanding.policies.get(group, {}) if outstanding is not None else {}
            if all(own == policy for members in (reported, claimed) for own in members.values()):
                continue
            present = self._claim_overlay.instances(row, self._instances.reported[row])
            for instance, own in {**claimed, **reported}.items():
                if own != policy and instance in present:
                    return GroupMember(instance, row, own)
        return None

    def _reported(self, row: int) -> Mapping[str, Mapping[str, GroupPolicy]]:
        """Return for each group the policies of its members that a row's node reports, by instance."""
        version, policies = self._decoded.get(row, (None, {}))
        if version == self._version[row]:
            return policies
        found: dict[str, dict[str, GroupPolicy]] = {}
        groups = self._instances.reported[row]
        for instance, hints in self._reports.hints_by_instance(row).items():
            group, policy = groups.get(instance), group_policy_of(hints)
            if group is not None and policy is not None:
                found.setdefault(group, {})[instance] = policy
        self._decoded[row] = self._version[row], found
        return found
