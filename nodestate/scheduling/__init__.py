"""Scheduling on a view: what a user needs of it.

One ``Scheduler`` is what a user holds. From what somebody wants to what an agent has, through it::

    Request --select--> Choice: a node and alternates, nothing taken
    Request --claim--> claim --boot: an order to the agent, its answer--> allocation: in every report from then on
    GroupRequest --reserve--> reservation: a claim for each member, or none --confirm: orders--> allocations, or none
    reservation --release, or its time is over--> nothing is taken
    allocation --move, evacuate: a claim elsewhere, an order, the old one ended--> allocation there, under the same request
    allocation --resize--> allocation with other resources, there or elsewhere

    scheduler = Scheduler(config, courier=KombuCourier(config))
    [outcome] = scheduler.boot(parse({"resources": {"VCPU": 2, "MEMORY_MB": 4096}}))

A claim is a scheduler's word, an allocation the agent's; what stands between the two is in ``claims``.
"""

from nodestate.scheduling.claims.placing import NoHostFound, Placing
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.fleet.row_types import Flags, RowIndex, Scores
from nodestate.scheduling.migrations import Migrations
from nodestate.scheduling.orders.boots import Boot, Booted, Failed, Outcome, Refused
from nodestate.scheduling.request import GroupRequest, InstanceGroup, Request, parse, parse_group
from nodestate.scheduling.reservations import Confirmed, Groups, Member, NotConfirmed, NotReserved, Reservation
from nodestate.scheduling.scheduler import Scheduler
from nodestate.scheduling.selection import Choice, Explanation, Lack, Remaining
from nodestate.scheduling.selection.filters import FILTERS, Filter
from nodestate.scheduling.selection.plugins import Policies, installed, own
from nodestate.scheduling.selection.weighers import WEIGHERS, Weigher

__all__ = [  # noqa: RUF022  grouped by what a user is after, not by letter
    # what a user holds
    "Scheduler",
    "Groups",
    "Migrations",
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
    "Outcome",
    "Booted",
    "Failed",
    "Refused",
    # reserving
    "Reservation",
    "Member",
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
