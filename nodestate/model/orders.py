"""Orders: what a scheduler asks of a node, and what its agent answers. The messages between the two, and nothing else.

An order goes to the node's agent, and to nobody in between; what became of it is told twice: at once by an ``Answer``
to who asked, and for good by the node's next event, whose version the answer names::

    Build --fits--> allocation, in every report from then on         Build --does not--> refused, nothing changed
    Build in place of what is here --fits--> takes the place of that allocation (a resize; the same again changes nothing)
    End --> the instance's allocation is gone (also where there was none: the order may have come before)

The agent is the only one who knows what the node has, so its answer is the last word.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from nodestate.errors import BadEventError
from nodestate.model import (
    MAX_CLASSES_COUNT,
    NEVER,
    Amount,
    ClassName,
    NodeName,
    Seconds,
    Version,
    Word,
    parse_state,
)

MAX_ORDER_BYTES: Final = 64 * 1024
MAX_DETAIL_CHARS: Final = 1_000

Refusal = Literal[
    "no-room", "group", "expired", "status", "here", "not-here", "unknown-node", "no-agent", "bad-order", "failed"
]
"""``no-room``: it does not fit; ``group``: the node has as many of its group as its policy allows; ``expired``: the
deadline is over; ``status``: the node takes nothing new; ``here``: another order built the instance on it; ``not-here``: the instance has nothing on the node that could be
changed in place; ``unknown-node``: the agent has no such node; ``no-agent``: no agent listens for the node (the broker
says so, not an agent); ``bad-order``: it was not understood; ``failed``: the hypervisor could not.
"""


class _Order(msgspec.Struct, frozen=True, tag_field="kind", forbid_unknown_fields=True, kw_only=True):
    """``id`` names the order in its answer; ``reply_to`` is the queue that it goes to, empty where nobody waits."""

    id: Word
    node: NodeName
    instance: Word
    reply_to: str = ""


class Build(_Order, frozen=True, tag="build", kw_only=True):
    """Give the instance these resources. ``hints`` and ``group`` stay with the allocation for its life. ``deadline`` is in
    seconds since 1970: who gave the order no longer counts on it then, so it is refused. ``in_place``: only where the
    instance has an allocation on the node, which this takes the place of; with ``of`` only if that is what the order of
    this id built, so that a mark which is late undoes no resize.
    """

    resources: Annotated[dict[ClassName, Amount], Meta(max_length=MAX_CLASSES_COUNT)]
    group: str | None = None
    hints: dict[str, Any] = {}
    deadline: Seconds
    in_place: bool = False
    of: str = ""


class End(_Order, frozen=True, tag="end", kw_only=True):
    """Take away what the instance has on the node. ``of``: only what the order of this id built (its ``order`` among the hints),
    so that an End which is late, or given again, ends nothing else; empty: whatever it has.
    """

    of: str = ""


Order = Build | End


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an order. ``version``: the state of the node that shows it, or that it was refused in; ``NEVER`` where
    no agent answered. ``refused`` is empty where it was carried out.
    """

    id: str
    node: str
    instance: str
    incarnation: int = 0
    generation: int = 0
    refused: Refusal | Literal[""] = ""
    detail: str = ""

    @property
    def version(self) -> Version:
        """The state of the node that the answer is of."""
        return Version(self.incarnation, self.generation) if self.generation else NEVER


class _Asked(msgspec.Struct):
    """What is read of an order only to answer it."""

    id: str
    node: str = ""
    instance: str = ""
    reply_to: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decode_asked = msgspec.msgpack.Decoder(_Asked).decode
_decode_order = msgspec.msgpack.Decoder(Order).decode
_decode_answer = msgspec.msgpack.Decoder(Answer).decode


def encode(message: Order | Answer) -> bytes:
    """As it goes on the wire: a msgpack map of its fields. Raises ``BadEventError`` where an order is too large."""
    body = _encode(message)
    if len(body) > MAX_ORDER_BYTES:
        raise BadEventError("too-large", f"an order of {len(body):,} bytes, over {MAX_ORDER_BYTES:,}")
    return body


def decode_order(body: bytes) -> Order:
    """Validate and decode an order. Raises ``BadEventError`` with reason ``wrong-type``, ``undecodable``, ``too-deep`` or
    ``too-large``.
    """
    if len(body) > MAX_ORDER_BYTES:
        raise BadEventError("too-large", f"an order of {len(body):,} bytes, over {MAX_ORDER_BYTES:,}")
    try:
        order: Order = _decode_order(body)
    except msgspec.ValidationError as error:
        raise BadEventError("wrong-type", f"order: {error}") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadEventError("undecodable", f"order: {error}") from None
    if isinstance(order, Build) and order.hints:  # what no report could carry must not become an allocation
        parse_state(_encode({"allocations": {order.instance: {"resources": {}, "hints": order.hints}}}))
    return order


def bad_order(body: bytes, error: BadEventError) -> tuple[str, Answer] | None:
    """Where to say that an order was not understood, and what; None where it does not tell who gave it."""
    try:
        asked = _decode_asked(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    if not asked.reply_to:
        return None
    detail = str(error)[:MAX_DETAIL_CHARS]
    return asked.reply_to, Answer(
        id=asked.id, node=asked.node, instance=asked.instance, refused="bad-order", detail=detail
    )


def no_agent(body: bytes) -> Answer:
    """What the way to an agent answers in its place where nobody listens for the node of an order."""
    asked = _decode_asked(body)
    return Answer(
        id=asked.id, node=asked.node, instance=asked.instance, refused="no-agent", detail="nobody listens for it"
    )


def decode_answer(body: bytes) -> Answer:
    """The reverse of ``encode``. Raises ``BadEventError``."""
    try:
        return _decode_answer(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadEventError("wrong-type", f"answer: {error}") from None
