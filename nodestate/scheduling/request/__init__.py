"""Requests: the instances that a user wants to place on nodes. A request is immutable."""

from nodestate.scheduling.request.fields import Policy
from nodestate.scheduling.request.limits import (
    MAX_ALTERNATES_COUNT,
    MAX_COUNT,
    MAX_GROUP_COUNT,
    MAX_HOLD_S,
    MAX_NAMES_COUNT,
    MIN_HOLD_S,
)
from nodestate.scheduling.request.parsing import parse, parse_group, request_of
from nodestate.scheduling.request.request import (
    STORED_FIELDS,
    GroupRequest,
    InstanceGroup,
    Request,
    Spread,
    check_hold,
    hints_of,
    joint_request,
    parts_of,
)
from nodestate.scheduling.request.vocabulary import check_class

__all__ = [
    "MAX_ALTERNATES_COUNT",
    "MAX_COUNT",
    "MAX_GROUP_COUNT",
    "MAX_HOLD_S",
    "MAX_NAMES_COUNT",
    "MIN_HOLD_S",
    "STORED_FIELDS",
    "GroupRequest",
    "InstanceGroup",
    "Policy",
    "Request",
    "Spread",
    "check_class",
    "check_hold",
    "hints_of",
    "joint_request",
    "parse",
    "parse_group",
    "parts_of",
    "request_of",
]
