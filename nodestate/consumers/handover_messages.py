"""Handover messages: what a consumer knows of nodes other than by events of their agents.

The former owner of a partition sends its nodes to the present owner. An owner whose queue was lost gives itself
messages about the nodes that stay silent.

A handover message is a marker in the queue of the partition, so consumers of earlier versions ignore it. It contains
events, because the journal stores events: a report of each node's state, a leave for a node that left, and a heartbeat
for each version that is known to exist and whose state is not known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from nodestate.auth import MessageAuth
from nodestate.errors import BadEventError
from nodestate.model import (
    MAX_EVENT_BYTES,
    NEVER,
    Event,
    Heartbeat,
    Leave,
    NodeRecord,
    Report,
    Version,
    check_clock,
    parse_event,
)
from nodestate.ports import ACTIVATION, QUEUE_BEGAN

HANDOVER: Final = ACTIVATION + b"handover "
"""The first bytes of a handover message. The rest is a msgpack array of events."""
MAX_MESSAGE_BYTES: Final = 64 * 1024
"""Intended size of a handover message."""
DOUBTED_COUNT: Final = 100
"""Most nodes in one of the ``doubt_messages``, so that it fits into a commit whatever the length of their names."""
EMPTY_STATE: Final = b"\x80"
NAME_ALONE: Final = Version(1, 1)
"""The version that is handed over of a node of which only the name is known. Each version of its agent is newer."""


class _Seal(msgspec.Struct, frozen=True, kw_only=True):
    """The last element of a signed handover message. Consumers of earlier versions take it for an invalid event."""

    partition: int
    """The partition for which the message is."""
    digest: bytes
    """SHA-256 of the array of all other elements, as msgpack."""
    signature: str | UnsetType = UNSET
    """The signature of this element."""


_encode = msgspec.msgpack.Encoder().encode
_decode_seal = msgspec.msgpack.Decoder(_Seal).decode
_decode_list = msgspec.msgpack.Decoder(list[bytes]).decode


def handover_messages(records: Iterable[NodeRecord], max_bytes: int) -> Iterator[bytes]:
    """Encode some nodes as handover messages of about ``max_bytes`` at most, unless one node needs more."""
    part: list[bytes] = []
    size = 0
    for record in records:
        events = _events_of(record)
        size_of_events = sum(map(len, events))
        if part and size + size_of_events > max_bytes:
            yield HANDOVER + _encode(part)
            part, size = [], 0
        part += events
        size += size_of_events
    if part:
        yield HANDOVER + _encode(part)


def doubt_messages(records: Sequence[NodeRecord]) -> Iterator[bytes]:
    """Encode messages that say of each node that the version after its present one exists, whose state is not known."""
    for first in range(0, len(records), DOUBTED_COUNT):
        yield HANDOVER + _encode(
            [
                _encode(
                    Heartbeat(
                        node=record.name,
                        incarnation=record.incarnation,
                        generation=record.generation + 1,
                        reported_at=record.reported_at,
                    )
                )
                for record in records[first : first + DOUBTED_COUNT]
            ]
        )


def may_be_watermark(marker: bytes) -> bool:
    """True for a marker of no other kind: a watermark message of any owner, or a forged one."""
    return marker not in (ACTIVATION, QUEUE_BEGAN) and not marker.startswith(HANDOVER)


def signed_handover(message: bytes, partition: int, auth: MessageAuth) -> bytes:
    """Return a handover message with a seal as its last element, if the mode signs."""
    events = _decode_list(message[len(HANDOVER) :])
    seal = _encode(_Seal(partition=partition, digest=_digest(events)))
    signed = auth.sign("", seal)
    return message if signed == seal else HANDOVER + _encode([*events, signed])


def handover_refusal(message: bytes, partition: int, auth: MessageAuth) -> BadEventError | None:
    """Return why the mode refuses a handover message; None if it does not."""
    try:
        _check_handover(message, partition, auth)
    except BadEventError as error:
        return error
    return None


def _check_handover(message: bytes, partition: int, auth: MessageAuth) -> None:
    seal: _Seal | None = None
    elements: list[bytes] = []
    with suppress(msgspec.DecodeError, RecursionError, UnicodeDecodeError, IndexError):
        elements = _decode_list(message[len(HANDOVER) :])
        seal = _decode_seal(elements[-1])
    if seal is None or seal.signature is UNSET:
        auth.check("", b"", UNSET)
        return
    auth.check("", elements[-1], seal.signature)
    if auth.checks and (seal.partition != partition or seal.digest != _digest(elements[:-1])):
        raise BadEventError("bad-signature", "the seal of a handover message belongs to another message")


def _digest(events: list[bytes]) -> bytes:
    return hashlib.sha256(_encode(events)).digest()


def handed_over_events(body: bytes) -> Iterator[tuple[Event, bytes]]:
    """Decode the events of a marker, each with its bytes. Other markers and events that are not valid give none."""
    if not body.startswith(HANDOVER):
        return
    try:
        encoded = _decode_list(memoryview(body)[len(HANDOVER) :])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return
    for one in encoded:
        with suppress(BadEventError):
            yield parse_event(one), one


def check_handed_over_clock(event: Event, wall: float) -> None:
    """As ``check_clock``. The former owner may have known the name and perhaps a version of a node, and no time."""
    if type(event) is Heartbeat and not event.reported_at:
        if event.version == NAME_ALONE:
            return
        event = msgspec.structs.replace(event, reported_at=wall)
    check_clock(event, wall)


def _events_of(record: NodeRecord) -> list[bytes]:
    """The events from which a consumer that does not know the node folds its record."""
    events: list[Event] = []
    name, reported_at = record.name, record.reported_at
    incarnation, generation = record.version
    if record.gone and generation > 1:
        # The new owner may have an older state with allocations, which a leave alone would not end. They are gone.
        events.append(
            Report(
                node=name,
                incarnation=incarnation,
                generation=generation - 1,
                reported_at=reported_at,
                state=msgspec.Raw(EMPTY_STATE),
            )
        )
    if record.gone:
        events.append(Leave(node=name, incarnation=incarnation, generation=generation, reported_at=reported_at))
    elif record.live:
        state = msgspec.Raw(record.body)
        events.append(
            Report(node=name, incarnation=incarnation, generation=generation, reported_at=reported_at, state=state)
        )
    newest = max(record.version, record.wanted)
    encoded = [_encode(event) for event in events]
    if encoded and len(encoded[0]) > MAX_EVENT_BYTES:  # a state that changes made larger than any event
        encoded = []
    if newest > NEVER and (not encoded or record.incomplete):
        incarnation, generation = max(newest, NAME_ALONE)
        encoded.append(
            _encode(Heartbeat(node=name, incarnation=incarnation, generation=generation, reported_at=reported_at))
        )
    return encoded
