"""Figures of docs/adr/0005: the codec of stored records beside three others."""

from __future__ import annotations

import json
import random
import struct
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgpack
import msgspec

from bench.adr_figures.measurement import (
    NODES,
    SEED,
    Result,
    collector,
    median_ms,
    median_us,
    pack_message,
    table,
)
from bench.workload import SeededFleet, require
from nodestate.errors import BadEventError
from nodestate.model import NodeRecord, State, fold, parse_event
from nodestate.store.wire import ENVELOPE_BYTES, Codec, pack_records, unpack_block, unpack_record

_STRUCT_HEADER: Final = struct.Struct("<4Qd?BHH4I")  # versions, reported_at, gone, and the lengths of the texts
_STATUSES: Final = ("up", "draining", "maintenance", "down")


def _struct_pack(records: Sequence[NodeRecord]) -> bytes:
    parts = []
    for r in records:
        name, classes = r.name.encode(), r.classes.encode()
        head = (r.incarnation, r.generation, r.wanted_incarnation, r.wanted_generation, r.reported_at, r.gone)
        code = _STATUSES.index(r.status) << 6  # a name has at most 200 characters, so 2 bits of a uint16 are free
        texts = (r.columns, r.usage, r.metrics, r.rest)
        parts.append(_STRUCT_HEADER.pack(*head, code >> 6, len(name), len(classes), *map(len, texts)))
        parts += [name, classes, *texts]
    return b"".join(parts)


def _struct_unpack(raw: bytes) -> list[NodeRecord]:
    records, at, end = [], 0, len(raw)
    while at < end:
        *head, code, name_len, classes_len, n1, n2, n3, n4 = _STRUCT_HEADER.unpack_from(raw, at)
        at += _STRUCT_HEADER.size
        texts = []
        for length in (name_len, classes_len, n1, n2, n3, n4):
            texts.append(raw[at : at + length])
            at += length
        name, classes = texts[0].decode(), texts[1].decode()
        records.append(_record([name, *head, _STATUSES[code], classes, *texts[2:]]))
    return records


def _stdlib_json_pack(records: Sequence[NodeRecord]) -> bytes:
    rows = []
    for record in records:
        *head, columns, usage, metrics, rest = msgspec.structs.astuple(record)
        rows.append([*head, *(b64encode(text).decode() for text in (columns, usage, metrics, rest))])
    return json.dumps(rows).encode()


def _stdlib_json_unpack(raw: bytes) -> list[NodeRecord]:
    return [_record([*row[:-4], *map(b64decode, row[-4:])]) for row in json.loads(raw)]


def _unpacked(raw: bytes) -> list[NodeRecord]:
    return [unpack_record(row) for _, _, row in unpack_block(raw)]


def _record(fields: Sequence[Any]) -> NodeRecord:
    return NodeRecord(*fields)


def codec() -> Result:
    """Measure docs/adr/0005: typed msgpack of msgspec beside msgpack-python, struct and JSON."""
    fleet = SeededFleet(SEED, NODES)
    records = []
    for number in range(NODES):
        record = fold(None, parse_event(fleet.report(number))).record
        assert record is not None
        records.append(record)
    return {
        "one state": _one_state(records),
        "blocks": _blocks(records),
        "one record": _one_record(records[0]),
        "hostile": _hostile_cases(),
        "fuzz": _fuzz(fleet),
    }


def _one_state(records: Sequence[NodeRecord]) -> list[Result]:
    """Measure one whole state, decoded to Python's own types or to ``State``."""
    bodies = [record.body for record in records]
    state = msgspec.msgpack.decode(bodies[0])
    as_json = [msgspec.json.encode(msgspec.msgpack.decode(body)) for body in bodies]
    typed = msgspec.msgpack.Decoder(State).decode
    untyped = msgspec.msgpack.Decoder().decode
    forms: list[tuple[str, Callable[[Any], bytes], Callable[[bytes], Any], list[bytes]]] = [
        ("msgspec msgpack, to State", pack_message, typed, bodies),
        ("msgspec msgpack, to dict", pack_message, untyped, bodies),
        ("msgpack-python, to dict", msgpack.packb, msgpack.unpackb, bodies),
        ("msgspec JSON, to dict", msgspec.json.encode, msgspec.json.decode, as_json),
        ("json, to dict", lambda one: json.dumps(one).encode(), json.loads, as_json),
    ]
    rows = []
    for name, encode, decode, raws in forms:
        require(msgspec.to_builtins(decode(raws[0]))["usage"] == state["usage"], f"{name} reads another state")
        value = decode(raws[0])

        def keep_all(decode: Callable[[bytes], Any] = decode, raws: list[bytes] = raws) -> object:
            return [decode(raw) for raw in raws]

        with collector(on=True):
            kept_on = median_ms(keep_all, 5) * 1e3 / len(raws)
        with collector(on=False):
            kept_off = median_ms(keep_all, 5) * 1e3 / len(raws)
        rows.append(
            {
                "one state": name,
                "bytes": len(raws[0]),
                "encode, µs": median_us(lambda encode=encode, value=value: encode(value)),  # type: ignore[misc]  # a lambda's default has no type
                "decode, dropped, µs": median_us(lambda decode=decode, raw=raws[0]: decode(raw)),  # type: ignore[misc]  # a lambda's default has no type
                "decode, 10,000 kept, GC on, µs each": kept_on,
                "GC off, µs each": kept_off,
            }
        )
    return table("A state of 1 KB, decoded whole (what opaque bodies spare a reader)", rows)


def _blocks(records: list[NodeRecord]) -> list[Result]:
    """Measure header and opaque body of all nodes, as a first read of the journal decodes them."""
    typed_json = msgspec.json.Decoder(list[NodeRecord]).decode
    part_bytes = 2**30
    forms: list[tuple[str, Callable[[], bytes], Callable[[bytes], Any]]] = [
        ("msgspec, typed, with checksum", lambda: pack_records(records, part_bytes)[0], _unpacked),
        ("the same, rows left as they are (ours)", lambda: pack_records(records, part_bytes)[0], unpack_block),
        (
            "msgspec, typed, without checksum",
            lambda: pack_message(records),
            msgspec.msgpack.Decoder(list[NodeRecord]).decode,
        ),
        (
            "msgpack-python, then NodeRecord",
            lambda: msgpack.packb([msgspec.structs.astuple(record) for record in records]),
            lambda raw: [_record(row) for row in msgpack.unpackb(raw)],
        ),
        (
            "msgpack-python, lists only",
            lambda: msgpack.packb(list(map(msgspec.structs.astuple, records))),
            msgpack.unpackb,
        ),
        ("struct, in Python", lambda: _struct_pack(records), _struct_unpack),
        ("msgspec JSON, typed, bodies in base64", lambda: msgspec.json.encode(records), typed_json),
        ("json, bodies in base64", lambda: _stdlib_json_pack(records), _stdlib_json_unpack),
    ]
    rows = []
    for name, pack, unpack in forms:
        raw = pack()
        if unpack is unpack_block:
            require(_unpacked(raw) == records, f"{name} does not give the records back")
        elif "lists" not in name:
            require(unpack(raw) == records, f"{name} does not give the records back")
        with collector(on=True):
            rows.append(
                {
                    "10,000 records": name,
                    "MB": len(raw) / 1e6,
                    "encode, ms": median_ms(pack, 5),
                    "decode, ms": median_ms(lambda unpack=unpack, raw=raw: unpack(raw), 9),  # type: ignore[misc]  # a lambda's default has no type
                }
            )
    return table("10,000 records, header and opaque body of 1 KB, kept, GC on", rows)


def _one_record(record: NodeRecord) -> list[Result]:
    """Measure one item, as the snapshot design reads it."""
    ours = Codec(NodeRecord)
    raw = ours.pack(record)
    bare, packed = raw[ENVELOPE_BYTES:], _struct_pack([record])
    decode = msgspec.msgpack.Decoder(NodeRecord).decode
    require(ours.unpack(raw) == decode(bare) == record, "a record does not come back")
    rows = [
        {"one record": "msgspec, typed, with checksum (ours)", "µs": median_us(lambda: ours.unpack(raw))},
        {"one record": "msgspec, typed, without checksum", "µs": median_us(lambda: decode(bare))},
        {"one record": "msgpack-python, to a list", "µs": median_us(lambda: msgpack.unpackb(bare))},
        {"one record": "struct, in Python", "µs": median_us(lambda: _struct_unpack(packed))},
    ]
    return table("One record, header and opaque body of 1 KB", rows)


TRIES: Final = 20_000
"""Damaged events of the fuzz test."""
_PLAIN_EVENT: Final = {"v": 1, "kind": "report", "node": "n", "incarnation": 1, "generation": 1, "reported_at": 1.0}


def _hostile_cases() -> list[Result]:
    """Report how each codec reacts to malformed events."""
    good = pack_message({**_PLAIN_EVENT, "state": {"usage": {"VCPU": 1}}})
    deep = {"namespaces": {"deep": b""}}
    nested = b"\x91" * 100_000 + b"\xc0"
    with_state = pack_message({**_PLAIN_EVENT, "state": {}})[:-1]  # ends right before the state
    cases: list[tuple[str, bytes]] = [
        ("an amount that is text", pack_message({**_PLAIN_EVENT, "state": {"usage": {"VCPU": "1"}}})),
        ("a negative amount", pack_message({**_PLAIN_EVENT, "state": {"usage": {"VCPU": -1}}})),
        ("an unknown field", pack_message({**_PLAIN_EVENT, "state": {}, "extra": 1})),
        ("bytes behind the end", good + b"\x00"),
        ("cut in the middle", good[: len(good) // 2]),
        ("a list said to have 2^32 - 1 elements", with_state + b"\xdd\xff\xff\xff\xff"),
        ("100,000 lists in each other", with_state + pack_message(deep)[:-2] + nested),
        ("text that is not UTF-8", good.replace(b"VCPU", b"\xff\xfe\xfd\xfc")),
        ("a number that is no number (NaN)", pack_message({**_PLAIN_EVENT, "state": {"metrics": {"m": float("nan")}}})),
        ("an extension type", with_state + msgpack.packb({"namespaces": {"x": msgpack.ExtType(5, b"x")}})),
        ("a timestamp", with_state + msgpack.packb({"namespaces": {"x": msgpack.Timestamp(1, 0)}})),
        ("the same key twice", with_state + b"\x82\xa4zone\xa1a\xa4zone\xa1b"),
    ]
    rows = []
    for name, raw in cases:
        rows.append(
            {
                "hostile bytes": name,
                "nodestate": _outcome(lambda raw=raw: fold(None, parse_event(raw))),  # type: ignore[misc]  # a lambda's default has no type
                "msgspec, untyped": _outcome(lambda raw=raw: msgspec.msgpack.decode(raw)),  # type: ignore[misc]  # a lambda's default has no type
                "msgpack-python": _outcome(lambda raw=raw: msgpack.unpackb(raw)),  # type: ignore[misc]  # a lambda's default has no type
            }
        )
    return table("Hostile events: the reason given, or the exception's type", rows)


def _outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except BadEventError as error:
        return error.reason
    except Exception as error:  # noqa: BLE001 - which one it is, is the result
        return type(error).__name__
    return "taken"


def _fuzz(fleet: SeededFleet) -> list[Result]:
    """Damage real events in seeded random ways and count how often each codec accepts the damaged event."""
    rng = random.Random(SEED)
    good = [fleet.report(number) for number in range(200)] + [fleet.change(number) for number in range(200)]
    typed, wrong = 0, {"nodestate": 0, "msgspec, untyped": 0, "msgpack-python": 0}
    raised: dict[str, set[str]] = {name: set() for name in wrong}
    for _ in range(TRIES):
        raw = bytearray(rng.choice(good))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(raw))
            match rng.randrange(4):
                case 0:
                    raw[at] ^= 1 << rng.randrange(8)
                case 1:
                    raw[at] = rng.randrange(256)
                case 2:
                    del raw[at : at + rng.randint(1, 8)]
                case _:
                    raw[at:at] = rng.randbytes(rng.randint(1, 8))
            raw = raw or bytearray(b"\x80")
        damaged = bytes(raw)
        fits = _outcome(lambda: fold(None, parse_event(damaged))) == "taken"  # noqa: B023 - called at once
        typed += fits
        for name, decode in (("msgspec, untyped", msgspec.msgpack.decode), ("msgpack-python", msgpack.unpackb)):
            outcome = _outcome(lambda: decode(damaged))  # noqa: B023 - called at once
            if outcome == "taken":
                wrong[name] += not fits
            else:
                raised[name].add(outcome)
        try:
            fold(None, parse_event(damaged))
        except BadEventError as error:
            raised["nodestate"].add(error.reason)
    rows = [
        {
            "codec": name,
            "damaged events": TRIES,
            "taken though they break the format": count,
            "what it raises": ", ".join(sorted(raised[name])),
        }
        for name, count in wrong.items()
    ]
    print(f"\n{typed:,} of {TRIES:,} damaged events are still events: damage in a name, a text or an amount.")
    return table("Seeded damage: 1 to 4 flips, cuts and insertions in each event", rows)
