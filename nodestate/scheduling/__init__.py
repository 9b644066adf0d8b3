"""Scheduling on a view: the names that a user of the scheduler needs.

A user holds one ``Scheduler``, and follows an instance through it from its request to its allocation on a node::

    Request --select--> Choice: a node and alternates, nothing is claimed
    Request --claim--> claim --boot: an order to the agent, its answer--> allocation: in every report from then on
    GroupRequest --reserve--> reservation: a claim for each member, or none --confirm: orders--> allocations, or none
    reservation --release, or its time is over--> nothing is claimed
    allocation --migrate, evacuate: a claim and an order elsewhere, then the old one is ended--> allocation there
    allocation --resize--> allocation with other resources, there or elsewhere
    allocation --terminate: an order to the agent--> nothing

    scheduler = Scheduler(config, courier=KombuCourier(config))
    [outcome] = scheduler.boot(parse({"resources": {"VCPU": 2, "MEMORY_MB": 4096}}))

A scheduler makes claims, an agent reports allocations; ``claims`` explains how a claim becomes an allocation.
"""

from nodestate.scheduling.claims import NoHostFound, Placing
from nodestate.scheduling.fleet import Flags, Fleet, RowIndex, Scores
from nodestate.scheduling.migrations import Migrations
from nodestate.scheduling.orders import Boot, Booted, BootOutcome, Failed, NodeRefusal
from nodestate.scheduling.request import GroupRequest, InstanceGroup, Request, parse, parse_group
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
from nodestate.scheduling.terminations import Terminations

__all__ = [  # noqa: RUF022  grouped by what a user is after, not by letter
    # what a user holds
    "Scheduler",
    "Reservations",
    "Migrations",
    "Terminations",
    # what is asked for
    "Request",
    "InstanceGroup",
    "GroupRequest",
    "parse",
    "parse_group",
    # selecting
    "Choice",
    "Remaining",
    "Lack",
    "Explanation",
    # claiming and booting
    "Placing",
    "NoHostFound",
    "Boot",
    "BootOutcome",
    "Booted",
    "Failed",
    "NodeRefusal",
    # reserving
    "Reservation",
    "ReservationMember",
    "NotReserved",
    "Confirmed",
    "NotConfirmed",
    # own filters and weighers
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
