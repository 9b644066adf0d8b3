"""Orders of schedulers to agents, and the agents' answers: the messages, and nothing else.

An order goes to the agent of its node. The agent reports its outcome twice: at once by an ``Answer`` to the scheduler,
and durably by the node's next event, whose version the answer names::

    Build --fits--> allocation, in every report from then on
    Build --does not fit--> refused, nothing changed
    Build in place --fits--> replaces the instance's allocation (a resize; a repeated order changes nothing)
    End --> the instance has no allocation (also if it had none, because the order may have been carried out before)
    Cordon --> the node is closed to new instances until an Uncordon, also after a restart of its agent

Only the agent knows the state of its node, so its answer decides.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from nodestate.errors import BadEventError
from nodestate.model import (
    MAX_CLASSES_COUNT,
    MAX_COUNTER,
    MAX_WORD_CHARS,
    NEVER,
    Amount,
    ClassName,
    NodeName,
    Seconds,
    Version,
    Word,
    parse_state,
)
from nodestate.model.fields import QueueName

MAX_ORDER_BYTES: Final = 64 * 1024
MAX_DETAIL_CHARS: Final = 1_000

ShortText = Annotated[str, Meta(max_length=MAX_WORD_CHARS)]
CounterOrZero = Annotated[int, Meta(ge=0, le=MAX_COUNTER)]
Refusal = Literal[
    "no-room",
    "group",
    "expired",
    "status",
    "here",
    "not-here",
    "unknown-node",
    "no-agent",
    "bad-order",
    "unsigned",
    "bad-signature",
    "failed",
]
"""Why an agent refused an order:

- ``no-room``: the resources do not fit.
- ``group``: the node has as many members of the group as its policy allows.
- ``expired``: the deadline of the order has passed.
- ``status``: the node accepts no new instances.
- ``here``: another order built the instance on this node.
- ``not-here``: the instance has no allocation on the node that could be changed in place.
- ``unknown-node``: the agent has no such node.
- ``no-agent``: no agent listens for the node. The broker's adapter says so, not an agent.
- ``bad-order``: the order could not be decoded.
- ``unsigned``: the order has no signature, and the agent's setting ``auth_orders`` refuses it.
- ``bad-signature``: the signature does not match the order, or its key is unknown or revoked.
- ``failed``: the hypervisor could not carry it out.
"""


_REFUSED_SIGNATURES: Final[dict[str, Refusal]] = {"unsigned": "unsigned", "bad-signature": "bad-signature"}
"""By reason of a ``BadEventError`` about a signature, the refusal of the order."""


class _Order(msgspec.Struct, frozen=True, tag_field="kind", kw_only=True):
    """The fields that all orders have. An agent ignores fields of a later version; ``hints`` are kept whole."""

    id: Word
    """Names the order in its answer."""
    node: NodeName
    instance: Word
    reply_to: QueueName = ""
    """The queue for the answer; empty if no scheduler waits for it."""
    signature: str | UnsetType = UNSET
    """The signature of the order, which is its last field; absent if the order is not signed."""


class Build(_Order, frozen=True, tag="build", kw_only=True):
    """Allocate resources to an instance."""

    resources: Annotated[dict[ClassName, Amount], Meta(max_length=MAX_CLASSES_COUNT)]
    group: str | None = None
    """Stays with the allocation for its life, like ``hints``."""
    hints: dict[str, Any] = {}
    deadline: Seconds
    """Seconds since 1970, by the agent's clock as far as the scheduler knows it.

    The agent refuses a later order, because its scheduler has given up waiting, or the claim is over.
    """
    in_place: bool = False
    """Carry the order out only if the instance has an allocation on the node, and replace that one."""
    of: str = ""
    """With ``in_place``: replace only the allocation that the order with this id built.

    So a late order cannot undo a resize.
    """
    clock_origin: float | UnsetType = UNSET
    """The ``clock_origin`` of the answer from which the scheduler knows the agent's clock; absent if it does not.

    If the agent's clock was set since then, the deadline means another moment. The agent refuses the order as expired.
    """


class End(_Order, frozen=True, tag="end", kw_only=True):
    """Remove the instance's allocation from the node."""

    of: str = ""
    """Remove only the allocation that the order with this id built (``order`` among its hints).

    So a late or repeated ``End`` removes no other. Empty: remove any allocation of the instance.
    """


class _NodeOrder(_Order, frozen=True, kw_only=True):
    """The fields of orders that concern a node and none of its instances."""

    instance: ShortText = ""
    """Empty: the order concerns no instance."""
    deadline: Seconds
    """Seconds since 1970 by the agent's clock; the agent refuses a later order as expired.

    With the deadline 0 the order asks for the agent's time: its refusal tells the time.
    """
    clock_origin: float | UnsetType = UNSET
    """As in ``Build``."""


class Cordon(_NodeOrder, frozen=True, tag="cordon", kw_only=True):
    """Close a node to new instances. Its instances stay."""

    by: ShortText = ""
    """The name of the person or program that closes the node."""
    why: ShortText = ""
    """The reason, for people."""


class Uncordon(_NodeOrder, frozen=True, tag="uncordon", kw_only=True):
    """Open a node again that was closed by a ``Cordon``."""


Order = Build | End | Cordon | Uncordon


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of an order."""

    id: ShortText
    node: ShortText
    instance: ShortText
    incarnation: CounterOrZero = 0
    generation: CounterOrZero = 0
    refused: Refusal | Literal[""] = ""
    """Why it was refused; empty if it was carried out."""
    detail: str = ""
    """Text for people."""
    at: Seconds = 0.0
    """The time of the agent's clock at which it decided, in seconds since 1970; 0 if it is not told."""
    clock_origin: float | UnsetType = UNSET
    """The seconds since 1970 that the agent's clock tells at monotonic time 0. Setting the clock changes them."""
    signature: str | UnsetType = UNSET
    """The signature of the answer, which is its last field; absent if the answer is not signed."""

    @property
    def version(self) -> Version:
        """The version of the node that shows the outcome; ``NEVER`` if no agent answered."""
        return Version(self.incarnation, self.generation) if self.generation else NEVER


class _LaterAnswer(Answer, frozen=True, kw_only=True):
    """An answer whose reason for a refusal may be one of a later version."""

    refused: str = ""  # type: ignore[assignment]  # wider than Answer's, for decoding only


class _OrderAddress(msgspec.Struct):
    """The fields of an order that its answer needs, read without validating the rest."""

    id: ShortText
    node: ShortText = ""
    instance: ShortText = ""
    reply_to: QueueName = ""


_encode = msgspec.msgpack.Encoder().encode
_decode_address = msgspec.msgpack.Decoder(_OrderAddress).decode
_decode_order = msgspec.msgpack.Decoder(Order).decode
_decode_answer = msgspec.msgpack.Decoder(Answer).decode
_decode_later_answer = msgspec.msgpack.Decoder(_LaterAnswer).decode


def require_order_size(body: bytes) -> None:
    """Raise ``BadEventError`` if an encoded order is too large."""
    if len(body) > MAX_ORDER_BYTES:
        raise BadEventError("too-large", f"an order of {len(body):,} bytes; at most {MAX_ORDER_BYTES:,} are allowed")


def encode(message: Order | Answer) -> bytes:
    """Encode a message as a msgpack map of its fields. Raises ``BadEventError`` if an order is too large."""
    body = _encode(message) if isinstance(message, _Order) or message.at else _encode(_without_time(message))
    require_order_size(body)
    return body


def _without_time(answer: Answer) -> dict[str, Any]:
    """Return the fields of an answer that does not tell its time, as earlier versions write them."""
    fields = msgspec.structs.asdict(answer)
    return {name: value for name, value in fields.items() if name not in ("at", "clock_origin") and value is not UNSET}


def decode_order(body: bytes) -> Order:
    """Validate and decode an order.

    Raises ``BadEventError`` with reason ``wrong-type``, ``undecodable``, ``too-deep`` or ``too-large``.
    """
    require_order_size(body)
    try:
        order: Order = _decode_order(body)
    except msgspec.ValidationError as error:
        raise BadEventError("wrong-type", f"order: {error}") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadEventError("undecodable", f"order: {error}") from None
    if (
        isinstance(order, Build) and order.hints
    ):  # hints that no report could carry must not become part of an allocation
        parse_state(_encode({"allocations": {order.instance: {"resources": {}, "hints": order.hints}}}))
    return order


def bad_order(body: bytes, error: BadEventError) -> tuple[str, Answer] | None:
    """The queue and the answer for an order that could not be decoded, or whose signature is missing or wrong.

    Returns None if the order names no queue for answers.
    """
    try:
        address = _decode_address(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    if not address.reply_to:
        return None
    refused = _REFUSED_SIGNATURES.get(error.reason)
    detail = error.detail.removeprefix(f"{address.node}: ") if refused else str(error)  # both are in the answer already
    return address.reply_to, Answer(
        id=address.id,
        node=address.node,
        instance=address.instance,
        refused=refused or "bad-order",
        detail=detail[:MAX_DETAIL_CHARS],
    )


def no_agent(body: bytes) -> Answer:
    """The answer that the broker's adapter gives if no agent listens for the node of an order."""
    address = _decode_address(body)
    return Answer(
        id=address.id,
        node=address.node,
        instance=address.instance,
        refused="no-agent",
        detail="no agent listens for this node",
    )


def decode_answer(body: bytes) -> Answer:
    """Decode an answer. A refusal for a reason of a later version becomes ``failed``. Raises ``BadEventError``."""
    if len(body) > MAX_ORDER_BYTES:
        raise BadEventError("too-large", f"an answer of {len(body):,} bytes; at most {MAX_ORDER_BYTES:,} are allowed")
    try:
        try:
            return _decode_answer(body)
        except msgspec.ValidationError:
            later = msgspec.structs.asdict(_decode_later_answer(body))
            return Answer(**{**later, "refused": "failed", "detail": f"{later['refused']}: {later['detail']}"})
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadEventError("wrong-type", f"answer: {error}") from None
