"""Scheduling: choose nodes for instances on a view, claim the nodes, and order the agents to build the instances.

This module exports all names that a user of the scheduler needs. The user creates a ``Scheduler`` and calls it for
every step in the life of an instance, from the request to the end of the allocation::

    Request --select--> Choice: a node and alternates; nothing is claimed
    Request --claim--> claim --boot: the agent gets an order and answers--> allocation, which the agent then reports
    GroupRequest --reserve--> reservation: every member is claimed, or no member is
    reservation --confirm: each member's agent gets an order--> an allocation for every member, or for no member
    reservation --release, or its time is over--> nothing is claimed
    allocation --migrate, evacuate: claim and build on another node, then end the original--> allocation there
    allocation --resize--> allocation with other resources, on the same node or on another one
    allocation --terminate: the agent gets an order--> nothing
    node --cordon: the agent gets an order--> a node that gets no new instances --uncordon--> node

    scheduler = Scheduler(config, courier=KombuCourier(config))
    [outcome] = scheduler.boot(parse({"resources": {"VCPU": 2, "MEMORY_MB": 4096}}))

Schedulers write claims, and agents report allocations. The package ``claims`` explains how a claim becomes an
allocation.
"""

from nodestate.scheduling.capacity import CapacityPart, ClassCapacity, FleetCapacity, RequestFit, capacity_of, fit_of
from nodestate.scheduling.claims import NoHostFound, Placing
from nodestate.scheduling.drain import LeftInstance, NodeDrain, draining
from nodestate.scheduling.fleet import Flags, Fleet, RowIndex, Scores
from nodestate.scheduling.migrations import Migrations
from nodestate.scheduling.node_details import NodeDetails, node_details
from nodestate.scheduling.node_orders import NodeOrders, cordoning, uncordoning
from nodestate.scheduling.node_removal import NodeAliveError, NotForgottenError, forget_node
from nodestate.scheduling.orders import Boot, Booted, BootOutcome, Failed, NodeOrderResult, NodeRefusal
from nodestate.scheduling.request import GroupRequest, InstanceGroup, Request, Spread, parse, parse_group
from nodestate.scheduling.reservation_claims import Reservation, ReservationMember
from nodestate.scheduling.reservations import Confirmed, NotConfirmed, NotReserved, Reservations
from nodestate.scheduling.scheduler import Scheduler
from nodestate.scheduling.selection import (
    FILTERS,
    WEIGHERS,
    Choice,
    Explanation,
    Filter,
    Lack,
    Policies,
    Remaining,
    Weigher,
    installed,
    own,
)
from nodestate.scheduling.tag_renewal import LeftAllocation, TagRenewal, TagRenewals
from nodestate.scheduling.terminations import Terminations
from nodestate.scheduling.updates import Updates
from nodestate.scheduling.what_if import WhatIf, what_if

__all__ = [  # noqa: RUF022  grouped by task, not sorted by name
    # the scheduler and its parts
    "Scheduler",
    "Reservations",
    "Migrations",
    "Terminations",
    "Updates",
    "TagRenewals",
    # requests
    "Request",
    "InstanceGroup",
    "Spread",
    "GroupRequest",
    "parse",
    "parse_group",
    # results of a selection
    "Choice",
    "Remaining",
    "Lack",
    "Explanation",
    # results of a claim or a boot
    "Placing",
    "NoHostFound",
    "Boot",
    "BootOutcome",
    "Booted",
    "Failed",
    "NodeRefusal",
    # reservations and the results of their operations
    "Reservation",
    "ReservationMember",
    "NotReserved",
    "Confirmed",
    "NotConfirmed",
    # questions about the fleet, and their answers
    "capacity_of",
    "FleetCapacity",
    "CapacityPart",
    "ClassCapacity",
    "fit_of",
    "RequestFit",
    "what_if",
    "WhatIf",
    # orders to whole nodes, and their results
    "NodeOrders",
    "cordoning",
    "uncordoning",
    "NodeOrderResult",
    "node_details",
    "NodeDetails",
    "forget_node",
    "NodeAliveError",
    "NotForgottenError",
    "draining",
    "NodeDrain",
    "LeftInstance",
    # the result of a renewal of tags
    "TagRenewal",
    "LeftAllocation",
    # to write filters and weighers
    "Fleet",
    "RowIndex",
    "Flags",
    "Scores",
    "Filter",
    "FILTERS",
    "Weigher",
    "WEIGHERS",
    "Policies",
    "own",
    "installed",
]
