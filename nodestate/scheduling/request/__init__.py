"""Requests: the instances that a user wants to place on nodes. A request is immutable."""

from nodestate.scheduling.request.parsing import parse, parse_group, request_of
from nodestate.scheduling.request.request import GroupRequest, InstanceGroup, Request, check_hold, hints_of
from nodestate.scheduling.request.vocabulary import check_class

__all__ = [
    "GroupRequest",
    "InstanceGroup",
    "Request",
    "check_class",
    "check_hold",
    "hints_of",
    "parse",
    "parse_group",
    "request_of",
]
