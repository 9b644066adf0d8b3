"""Formats stay: values and messages that commit 8c7aaef wrote are read today, and written again byte for byte.

``written_by_8c7aaef.json`` holds all values that a cell of six simulated nodes left in its store and sent over its
broker, each value beside its decoded form in that commit. ``written_by_8c7aaef.sql`` holds the tables of the database
design as SQLite text. The files are never written again. If a format changes on
purpose, its version rises, and a new pair of files is added.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from msgspec import UNSET

from nodestate import Reader
from nodestate.broker.resyncs import decode_resync, encode_resync
from nodestate.config import Config
from nodestate.consumers.watermarks import Watermarks, is_marker
from nodestate.designs.control import CONTROL, FIRST_FIELDS_COUNT, Control
from nodestate.journal import format as journal
from nodestate.model import fold, parse_event
from nodestate.model.orders import Answer, decode_answer, decode_order, encode
from nodestate.model.partitioning import bucket_of, partition_of
from nodestate.ports import ACTIVATION, Put, Write
from nodestate.scheduling.claims import CLAIMS, ClaimRecord
from nodestate.snapshot import format as snapshot
from nodestate.sql.store import SqlStore
from nodestate.store import keys
from nodestate.store.head import EPOCH, HEAD, Head
from nodestate.store.liveness import LIVENESS, LivenessRecord
from nodestate.store.round_trips import Stores
from nodestate.store.wire import pack_records, unpack_block, unpack_record
from nodestate.testing import ManualClock, MemoryServer, MemoryStore

HERE: Final = Path(__file__).parent
WRITTEN: Final[dict[str, Any]] = json.loads((HERE / "written_by_8c7aaef.json").read_text(encoding="utf-8"))
LARGE_PART_BYTES: Final = 1_000_000


def plain(value: Any) -> Any:
    """A decoded value in the form of the file: bytes as hexadecimal, records as their stored arrays or maps."""
    if isinstance(value, msgspec.Raw | bytes | bytearray | memoryview):
        return {"hex": bytes(value).hex()}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, msgspec.Struct):
        fields = {name: plain(item) for name in value.__struct_fields__ if (item := getattr(value, name)) is not UNSET}
        if isinstance(value, Answer) and not value.at:  # added later; an answer without it is written as before
            del fields["at"]
        if isinstance(value, Control):  # fields that were added later, likewise
            fields = dict(list(fields.items())[:FIRST_FIELDS_COUNT])
        if isinstance(value, Head | LivenessRecord | ClaimRecord):  # likewise
            later = {"refused", "written_ms", "copies", "fault", "fault_at", "removed", "ahead_s"}
            defaults = {field.name: field.default for field in msgspec.structs.fields(value)} | {"removed": {}}
            fields = {name: item for name, item in fields.items() if name not in later or item != defaults[name]}
        return list(fields.values()) if value.__struct_config__.array_like else fields
    return value


def checkpoint_records(value: bytes) -> list[Any]:
    return [unpack_record(raw) for _, _, raw in unpack_block(value)]


def pack_checkpoint(records: list[Any]) -> bytes:
    [block] = pack_records(records, LARGE_PART_BYTES)
    return block


CODECS: Final[dict[str, tuple[Callable[[bytes], Any], Callable[[Any], bytes]]]] = {
    "epoch": (EPOCH.unpack, EPOCH.pack),
    "head.j": (HEAD.unpack, HEAD.pack),
    "head.s": (HEAD.unpack, HEAD.pack),
    "life": (LIVENESS.unpack, LIVENESS.pack),
    "segment": (journal.SEGMENT.unpack, journal.SEGMENT.pack),
    "checkpoint": (checkpoint_records, pack_checkpoint),
    "node": (snapshot.NODE.unpack, snapshot.NODE.pack),
    "index": (snapshot.INDEX_PART.unpack, snapshot.INDEX_PART.pack),
    "claims": (CLAIMS.unpack, CLAIMS.pack),
    "control": (CONTROL.unpack, CONTROL.pack),
    "build": (decode_order, encode),
    "end": (decode_order, encode),
    "answer": (decode_answer, encode),
    "refusal": (decode_answer, encode),
    "resync": (decode_resync, encode_resync),
    "resync-all": (decode_resync, encode_resync),
}
"""By kind of value: how it is decoded, and how it is written again."""

VALUES: Final = [
    *((item["kind"], item["value"], item["decoded"], item.get("section")) for item in WRITTEN["items"]),
    *((item["kind"], item["value"], item["decoded"], None) for item in WRITTEN["packed"]),
    *((item["kind"], item["body"], item["decoded"], None) for item in WRITTEN["messages"] if item["kind"] in CODECS),
]


@pytest.mark.parametrize(
    ("kind", "value", "decoded", "section"), VALUES, ids=[f"{n}-{kind}" for n, (kind, *_) in enumerate(VALUES)]
)
def test_stored_values_and_messages_are_read_and_written_again_byte_for_byte(
    kind: str, value: str, decoded: Any, section: Any
) -> None:
    """Versions of one cell understand each other: an older process reads today's values, and the reverse."""
    raw = bytes.fromhex(value)
    unpack, pack = CODECS[kind]
    record = unpack(raw)
    seen = plain(record) if isinstance(record, msgspec.Struct | list | int) else plain(msgspec.to_builtins(record))
    assert seen == decoded
    assert pack(record).hex() == value
    if section is not None:
        decoder = {"head.j": journal.JOURNAL_SECTION, "head.s": snapshot.SNAPSHOT_SECTION}[kind]
        own = decoder.of(record)
        assert plain(own) == section
        assert msgspec.msgpack.encode(own) == bytes(record.section)


def test_every_kind_of_value_of_memcached_is_among_them() -> None:
    """Without this a kind that is missing from the file would pass as unchanged."""
    assert set(CODECS) == {kind for kind, *_ in VALUES}


def test_markers_of_an_earlier_version_are_recognized() -> None:
    """A consumer sends both through its own queue. A watermark message of a former owner is ignored."""
    bodies = {item["kind"]: bytes.fromhex(item["body"]) for item in WRITTEN["messages"]}
    assert bodies["activation"] == ACTIVATION
    assert is_marker(bodies["watermark"])
    assert Watermarks(b"key").sent_at(0, bodies["watermark"]) == -math.inf
    ours = Watermarks(b"key").message(0, 12.5).removeprefix(ACTIVATION).decode()
    sender, _, _ = ours.partition(" ")
    assert sender == "12.5", "an earlier version takes the time for the name of another owner"


@pytest.mark.parametrize(
    "event", WRITTEN["events"], ids=[f"{n}-{e['decoded']['kind']}" for n, e in enumerate(WRITTEN["events"])]
)
def test_events_are_read_and_written_again_byte_for_byte(event: dict[str, Any]) -> None:
    """Events are maps on the wire, so their keys and tags are part of the format."""
    body = bytes.fromhex(event["body"])
    read = parse_event(body)
    assert {"kind": type(read).__name__.lower(), **plain(read)} == event["decoded"]
    assert msgspec.msgpack.encode(read) == body
    assert bucket_of(read.node) == event["bucket"]
    if event["decoded"]["kind"] == "report":
        assert fold(None, read).record is not None


def test_keys_and_buckets_are_the_same() -> None:
    """A node's bucket is computed by publishers in any language; a key that moves is a lost item."""
    assert {
        "control": keys.control("c"),
        "claim": keys.claim("c", "n"),
        "anchor": keys.anchor("c", "g"),
        "prefix": keys.prefix("c", 8, 3, "sb"),
        "epoch": keys.epoch("p"),
        "head": keys.head("p", 255),
        "life": keys.life("p", 255),
        "repair": keys.repair("p"),
        "segment": keys.segment("p", 255, 2, 9),
        "checkpoint": keys.checkpoint("p", 255, 2, 9, 1),
        "node": keys.node("p", "n"),
        "index": keys.index("p", 255, 2, 9, 0),
    } == WRITTEN["keys"]
    assert {name: [bucket_of(name), partition_of(name, 8)] for name in WRITTEN["buckets"]} == WRITTEN["buckets"]


def shown(reader: Reader) -> dict[str, Any]:
    """The contents of a reader's view, in the form of the file."""
    view = reader.read(max_age=1e9, on_stale="flag")
    assert view.incomplete == frozenset()
    return {
        name: {
            "incarnation": node.version.incarnation,
            "generation": node.version.generation,
            "state": json.loads(json.dumps(node.state, default=dict)),
        }
        for name, node in ((name, view.nodes[name]) for name in view.nodes)
    }


@pytest.mark.parametrize("design", ["journal", "snapshot"])
def test_a_reader_gives_the_view_of_what_is_in_memcached(design: str) -> None:
    """The whole way of a read: epoch, head, contents, fold."""
    clock = ManualClock()
    store = MemoryStore(MemoryServer(clock=clock))
    for item in WRITTEN["items"]:
        store.write([Write(Put.ADD, item["key"], bytes.fromhex(item["value"]), ttl_s=item["ttl_s"] or 0)])
    config = Config(partitions=2, designs=("journal", "snapshot"), read_design=design)
    reader = Reader(config, design=design, stores=Stores([store]), clock=clock)
    assert shown(reader) == WRITTEN["views"][design]


def test_a_reader_gives_the_view_of_what_is_in_the_database(tmp_path: Path) -> None:
    """The tables as the migrations of 8c7aaef made them, without any migration since."""
    path = tmp_path / "nodes.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((HERE / "written_by_8c7aaef.sql").read_text(encoding="utf-8"))
        connection.execute("UPDATE nodestate_heads SET expires_at = NULL")
        connection.commit()
    with closing(SqlStore(f"sqlite:///{path}", timeout_s=30.0)) as store:
        config = Config(partitions=2, designs=("sql",), read_design="sql", sql=f"sqlite:///{path}")
        reader = Reader(config, design="sql", stores=Stores([], store), clock=ManualClock())
        assert shown(reader) == WRITTEN["views"]["sql"]
