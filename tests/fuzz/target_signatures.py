"""Signed messages, stored values and tags are changed: in every mode only the unchanged ones have a valid signature."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Final

import msgpack

from nodestate.auth import TAG, AllocationTags, MessageAuth
from nodestate.auth.keys import CellKeys, Secret
from nodestate.errors import BadEventError
from nodestate.model import parse_event
from nodestate.model.orders import Answer, decode_answer, decode_order, encode
from nodestate.model.presence import decode_presence
from nodestate.ports import Item, Put, Write
from nodestate.store.signed_values import ValueAuth, ValueCounts
from nodestate.store.wire import seal
from tests.cell_keys import FixedKeyring
from tests.fuzz.mutation import TEXTS, mutated, mutated_bytes, odd_value
from tests.fuzz.target_messages import EVENTS
from tests.fuzz.target_orders import BUILD, PRESENCE

MODES: Final = ("accept", "warn", "require")
SECRETS: Final = tuple(Secret(id=f"{n:08x}", secret=f"{n:02x}" * 32, created_at=float(n)) for n in (1, 2))
RINGS: Final = tuple(FixedKeyring(CellKeys(cell="cell1", secrets=SECRETS[:count])) for count in (1, 2))
ANSWER: Final = encode(Answer(id="o", node="n1", instance="i", incarnation=7, generation=2, detail="d"))
MESSAGES: Final[tuple[tuple[Any, bytes, Callable[[bytes], Any]], ...]] = (
    ("event", msgpack.packb(EVENTS[0]), parse_event),
    ("event", msgpack.packb(EVENTS[1]), parse_event),
    ("order", msgpack.packb(BUILD), decode_order),
    ("answer", ANSWER, decode_answer),
    ("presence", msgpack.packb(PRESENCE), decode_presence),
)
VALUE: Final = seal(b"\x93\x01\x02\x03")
ALLOCATION: Final[dict[str, Any]] = {"resources": {"VCPU": 4}, "group": "web", "hints": {"order": "o", "zone": "a"}}


def run(data: Random) -> bool:
    """Change one signed value."""
    mode, ring = data.choice(MODES), data.choice(RINGS)
    return data.choice((_message, _message, _value, _tag))(data, mode, ring)


def _message(data: Random, mode: str, ring: FixedKeyring) -> bool:
    """A changed message is refused; one without a signature is taken, if the mode takes unsigned messages."""
    kind, body, decode = data.choice(MESSAGES)
    auth = MessageAuth(mode, ring, kind, remembers=kind in {"event", "answer"})
    signed = auth.sign("n1", body)
    changed = _changed_map(data, signed) if data.random() < 0.8 else mutated_bytes(data, signed)
    try:
        message = decode(changed)
    except BadEventError:
        return False
    if message is None:
        return False
    unsigned = not isinstance(message.signature, str)
    try:
        content = auth.check(message.node, changed, message.signature)
    except BadEventError:
        return True
    assert content == (changed if unsigned else body)
    assert changed == signed or (unsigned and mode != "require"), "a changed message is taken"
    return True


def _changed_map(data: Random, signed: bytes) -> bytes:
    """Change fields before the signature, the signature itself, or its place."""
    fields = msgpack.unpackb(signed, strict_map_key=False)
    signature, kind = fields.pop("signature"), data.randrange(8)
    if kind == 0:
        return signed
    if kind == 1:
        signature = odd_value(data)
    elif kind == 2:
        at = data.randrange(len(signature))
        signature = signature[:at] + data.choice("0aZ+/é ") + signature[at + data.randrange(2) :]
    elif kind == 3:
        fields = {"signature": signature, **fields}
        return bytes(msgpack.packb(fields))
    elif kind == 4:
        return bytes(msgpack.packb(fields))
    elif kind == 5:
        fields[data.choice(TEXTS)] = odd_value(data)
    else:
        fields = mutated(data, fields)
    return bytes(msgpack.packb({**fields, "signature": signature} if isinstance(fields, dict) else fields))


def _value(data: Random, mode: str, ring: FixedKeyring) -> bool:
    """A changed stored value, or one under another key, is replaced by a value that no codec accepts."""
    auth = ValueAuth(mode, ring, ValueCounts())
    [write] = auth.signed([Write(Put.ADD, "key", VALUE)])
    changed = data.choice((write.value, mutated_bytes(data, write.value), write.value + data.randbytes(2), VALUE))
    key = data.choice(("key", "key", "other"))
    [item] = auth.checked({key: Item(changed, 7, None)}).values()
    assert item.cas == 7
    is_unsigned = not changed.startswith(write.value[:2])
    if item.value == VALUE and not (is_unsigned and mode != "require"):
        marks = len(write.value) - len(VALUE)
        assert key == "key", "a value of another key is taken"
        assert changed[-len(VALUE) - marks // 2 :] == write.value[-len(VALUE) - marks // 2 :] or changed == write.value
    if mode == "require" and item.value != VALUE:
        assert item.value != changed, "a changed value is taken"
    return True


def _tag(data: Random, mode: str, ring: FixedKeyring) -> bool:
    """A changed allocation is not believed in mode ``require``."""
    tags = AllocationTags(mode, ring)
    tagged = {**ALLOCATION, "hints": tags.tagged("n1", "i-1", **ALLOCATION)}
    changed = mutated(data, tagged) if data.random() < 0.9 else tagged
    node, instance = data.choice(("n1", "n1", "n2")), data.choice(("i-1", "i-1", "i-2"))
    if not isinstance(changed, dict):
        return False
    valid = tags.valid_ids(node, instance, changed)
    assert set(valid) <= {secret.id for secret in SECRETS}
    hints = changed.get("hints")
    same = isinstance(hints, dict) and {name: hints.get(name) for name in hints if name != TAG} == ALLOCATION["hints"]
    same = same and all(changed.get(name) == ALLOCATION[name] for name in ("resources", "group"))
    assert not valid or (same and (node, instance) == ("n1", "i-1")), "a changed allocation has a valid tag"
    assert tags.is_believed(node, instance, changed) == (bool(valid) or mode != "require")
    return True
