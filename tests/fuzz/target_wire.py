"""Stored values as bytes: each codec decodes them to its type, or says that they are corrupt."""

from __future__ import annotations

from contextlib import suppress
from random import Random
from typing import Any, Final

import msgpack

from nodestate.errors import CorruptItemError
from nodestate.model import NodeRecord
from nodestate.snapshot.format import INDEX_PART, NODE
from nodestate.store.head import EPOCH, HEAD
from nodestate.store.liveness import LIVENESS
from nodestate.store.wire import ENVELOPE_BYTES, seal, unpack_block
from tests.fuzz.mutation import mutated, mutated_bytes

RECORD: Final = ["n", 1, 2, 1, 2, 0.5, False, "up", "VCPU", bytes(16), b"", b"", b"\x80"]
VALUES: Final[tuple[tuple[Any, Any], ...]] = (
    (HEAD.unpack, [7, 1, "a", 0, 1, 0, True, 30, [1, b"", b"", [], [[1, 1]], [1, 1, 1]], -1]),
    (EPOCH.unpack, 7),
    (NODE.unpack, [7, 1, 0, RECORD]),
    (INDEX_PART.unpack, [["n"], bytes(8)]),
    (LIVENESS.unpack, [1, bytes(4)]),
    (unpack_block, [RECORD, RECORD]),
)
assert NodeRecord(*RECORD).name == "n"


def run(data: Random) -> bool:
    """Decode one mutated value."""
    unpack, valid = data.choice(VALUES)
    payload = msgpack.packb(mutated(data, valid) if data.random() < 0.8 else valid)
    reached = data.random() < 0.8
    raw = seal(payload if data.random() < 0.8 else mutated_bytes(data, payload))
    if not reached:
        raw = mutated_bytes(data, raw)
    with suppress(CorruptItemError):
        unpack(raw)
    return reached and len(raw) > ENVELOPE_BYTES
