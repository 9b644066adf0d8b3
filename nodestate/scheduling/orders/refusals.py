"""Refusals of nodes: which of them count towards the limit of tries, and how a failed boot names them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

from nodestate.scheduling.claims import NoHostFound
from nodestate.scheduling.orders.boot import NO_ANSWER, NodeRefusal
from nodestate.scheduling.request import Request
from nodestate.text import count_text

NO_AGENT: Final = "no-agent"
"""The ``reason`` of a ``NodeRefusal`` if the broker returned the order, because no agent listens for the node."""
MAX_FAULTY_NODES_COUNT: Final[Mapping[str, int]] = {NO_AGENT: 256, "unknown-node": 256, "failed": 32}
"""Maximum number of nodes that may refuse one instance at once for each of these reasons without being counted.

Such a refusal costs no time. An instance that fails everywhere for a reason of its own is tried on few nodes.
"""
FAULTS: Final = frozenset({*MAX_FAULTY_NODES_COUNT, NO_ANSWER})
"""Reasons of a refusal that say something about the node and not about the instance: the node ranks lower then."""
AT_ONCE_S: Final = 1.0
"""Seconds after an order within which its answer comes at once."""
SHOWN_REFUSALS_COUNT: Final = 3
"""Maximum number of refusals that the reason of a failure names."""


def counts_as_try(refusal: NodeRefusal, earlier: Sequence[NodeRefusal], waited_s: float) -> bool:
    """Return whether a refusal counts towards the limit of nodes that are asked to take one instance.

    Args:
        refusal: The refusal.
        earlier: The earlier refusals of the same instance.
        waited_s: Seconds from the order to its answer.
    """
    free = MAX_FAULTY_NODES_COUNT.get(refusal.reason, 0)
    return waited_s >= AT_ONCE_S or sum(one.reason == refusal.reason for one in earlier) >= free


def refused_by(refusal: NodeRefusal, answer_timeout_s: float) -> str:
    """Return a clause about a node that did not take an instance: it refused, or no order or answer arrived.

    Args:
        refusal: The node and its reason.
        answer_timeout_s: Seconds after which an order counts as unanswered.
    """
    if refusal.reason == NO_ANSWER:
        clause = f"{refusal.node} did not answer within {answer_timeout_s:g} s"
    elif refusal.reason == NO_AGENT:
        clause = f"the order to {refusal.node} came back"
    else:
        clause = f"{refusal.node} refused it: {refusal.reason}"
    return f"{clause} ({refusal.detail})" if refusal.detail else clause


def with_refusals(
    failure: NoHostFound, request: Request, refusals: Sequence[NodeRefusal], answer_timeout_s: float
) -> NoHostFound:
    """Return the reason of a failure with the refusals that led to it: first the tried nodes, then the filters.

    If a node that the request forces has refused, its refusal is the reason, and not the filter that left no other.

    Args:
        failure: The reason why no node is left.
        request: The request of the instance.
        refusals: The nodes that did not take the instance.
        answer_timeout_s: Seconds after which an order counts as unanswered.
    """
    if not refusals or not failure.remaining:
        return failure
    forced = [refusal for refusal in refusals if refusal.node in request.force_nodes]
    shown = [refused_by(refusal, answer_timeout_s) for refusal in (forced or refusals)[:SHOWN_REFUSALS_COUNT]]
    more = len(forced or refusals) - len(shown)
    if more:
        shown.append(f"{count_text(more, 'more node')} did not take it")
    if not forced:
        shown.append(f"then {failure}" if failure.remaining[0].nodes else str(failure))
    return dataclasses.replace(failure, reason="; ".join(shown))
