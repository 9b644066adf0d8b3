"""The figures behind the decisions in docs/adr: ``python -m bench.adr_figures NAME``, or ``all``.

Each choice measures the way taken beside the ways not taken, in one run, after showing that all of them carry the
same content. It prints tables and returns the same numbers. Figures of different runs are not comparable.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
import struct
import subprocess
import sys
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack
import msgspec
import numpy as np
import structlog

from bench.workload import Fleet, buckets_of, require, require_whole
from harness.servers import MemcachedServer
from nodestate.config import Config
from nodestate.consumers.loop import Consumer
from nodestate.designs import DESIGNS
from nodestate.designs.reader import Reader
from nodestate.errors import BadEventError
from nodestate.journal.format import MIN_TAIL_BYTES, SEGMENT, TAIL_SHARE, Checkpoint, checkpoint_keys
from nodestate.journal.format import Section as JournalSection
from nodestate.journal.reader import JournalReader
from nodestate.model import NodeRecord, State, fold, parse_event, partitioning
from nodestate.ports import Item, Put, Store, SystemClock, Write, Written
from nodestate.snapshot.format import (
    RING_COMMITS,
    RING_SLOTS,
    Index,
    Stamp,
    pack_index,
    ring_after,
    stamp_of,
    unpack_index_part,
)
from nodestate.snapshot.format import SECTION as SNAPSHOT_SECTION
from nodestate.snapshot.format import Section as SnapshotSection
from nodestate.store import keys
from nodestate.store.breaker import guarded
from nodestate.store.head import HEAD, Head, Since
from nodestate.store.memcached import open_stores
from nodestate.store.round_trips import Stores, run, run_one
from nodestate.store.wire import ENVELOPE_BYTES, PART_BYTES, Codec, pack_records, unpack_block, unpack_record
from nodestate.testing import ManualClock, MemoryBroker, MemoryServer, MemoryStore
from nodestate.view.follower import Follower

SEED: Final = 1
NODES: Final = 10_000
EPOCH: Final = 0x5EED
PACKAGES: Final = ("msgspec", "msgpack", "numpy", "xxhash")

Result = dict[str, Any]
_encode = msgspec.msgpack.Encoder().encode


# -- measuring and saying -------------------------------------------------------------------------


def median_us(call: Callable[[], object], *, rounds: int = 15, least_s: float = 0.01) -> float:
    """Median microseconds of processor time of one call, over rounds of as many calls as take ``least_s`` together."""
    call()
    begin = time.process_time()
    call()
    count = max(1, int(least_s / max(1e-6, time.process_time() - begin)))
    times = []
    for _ in range(rounds):
        begin = time.process_time()
        for _ in range(count):
            call()
        times.append((time.process_time() - begin) / count)
    return statistics.median(times) * 1e6


def median_ms(call: Callable[[], object], rounds: int) -> float:
    """Median milliseconds of one call, after one that does not count; of processor time, so that what else a machine
    does matters little.
    """
    call()
    times = []
    for _ in range(rounds):
        begin = time.process_time()
        call()
        times.append(time.process_time() - begin)
    return statistics.median(times) * 1e3


@contextmanager
def collector(*, on: bool) -> Iterator[None]:
    """With Python's cyclic garbage collector on or off; clean before."""
    gc.collect()
    if not on:
        gc.disable()
    try:
        yield
    finally:
        gc.enable()


_printed: list[str] = []


def table(title: str, rows: Sequence[Result]) -> list[Result]:
    """Print rows as a Markdown table, as it stands in an ADR."""
    heads = list(rows[0])
    lines = [title, "", "| " + " | ".join(heads) + " |"]
    lines.append("|" + "|".join("---" if type(rows[0][head]) is str else "---:" for head in heads) + "|")
    lines += ["| " + " | ".join(_cell(row[head]) for head in heads) + " |" for row in rows]
    _printed.append("\n".join(lines))
    print("\n" + _printed[-1])
    return list(rows)


def _cell(value: object) -> str:
    if type(value) is float:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if type(value) is int else str(value)


def environment() -> Result:
    """Where and of what the figures are."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607 - whichever git there is
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "commit": commit,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        **{package: version(package) for package in PACKAGES},
    }


# -- codec ----------------------------------------------------------------------------------------

_STRUCT_HEADER: Final = struct.Struct("<4Qd?BHH4I")  # versions, reported_at, gone, and the lengths of what follows
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
    return [unpack_record(row) for _, row in unpack_block(raw)]


def _record(fields: Sequence[Any]) -> NodeRecord:
    return NodeRecord(*fields)


def codec() -> Result:
    """docs/adr/0005: typed msgpack of msgspec beside msgpack-python, struct and JSON."""
    fleet = Fleet(SEED, NODES)
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
    """A state as a whole, decoded to Python's own types or to ``State``."""
    bodies = [record.body for record in records]
    state = msgspec.msgpack.decode(bodies[0])
    as_json = [msgspec.json.encode(msgspec.msgpack.decode(body)) for body in bodies]
    typed = msgspec.msgpack.Decoder(State).decode
    untyped = msgspec.msgpack.Decoder().decode
    forms: list[tuple[str, Callable[[Any], bytes], Callable[[bytes], Any], list[bytes]]] = [
        ("msgspec msgpack, to State", _encode, typed, bodies),
        ("msgspec msgpack, to dict", _encode, untyped, bodies),
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
                "encode, µs": median_us(lambda encode=encode, value=value: encode(value)),  # type: ignore[misc]
                "decode, dropped, µs": median_us(lambda decode=decode, raw=raws[0]: decode(raw)),  # type: ignore[misc]
                "decode, 10,000 kept, GC on, µs each": kept_on,
                "GC off, µs each": kept_off,
            }
        )
    return table("A state of 1 KB, decoded whole (what opaque bodies spare a reader)", rows)


def _blocks(records: list[NodeRecord]) -> list[Result]:
    """Header and opaque body of all nodes: what a cold load of the journal decodes."""
    typed_json = msgspec.json.Decoder(list[NodeRecord]).decode
    part_bytes = 2**30
    forms: list[tuple[str, Callable[[], bytes], Callable[[bytes], Any]]] = [
        ("msgspec, typed, with checksum", lambda: pack_records(records, part_bytes)[0], _unpacked),
        ("the same, rows left as they are (ours)", lambda: pack_records(records, part_bytes)[0], unpack_block),
        (
            "msgspec, typed, without checksum",
            lambda: _encode(records),
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
        if "lists" not in name:
            require(unpack(raw) == records, f"{name} does not give the records back")
        with collector(on=True):
            rows.append(
                {
                    "10,000 records": name,
                    "MB": len(raw) / 1e6,
                    "encode, ms": median_ms(pack, 5),
                    "decode, ms": median_ms(lambda unpack=unpack, raw=raw: unpack(raw), 9),  # type: ignore[misc]
                }
            )
    return table("10,000 records, header and opaque body of 1 KB, kept, GC on", rows)


def _one_record(record: NodeRecord) -> list[Result]:
    """One item, as the snapshot design reads it."""
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


_PLAIN_EVENT: Final = {"v": 1, "kind": "report", "node": "n", "incarnation": 1, "generation": 1, "reported_at": 1.0}


def _hostile_cases() -> list[Result]:
    """What each codec makes of bytes that nobody should send."""
    good = _encode({**_PLAIN_EVENT, "state": {"usage": {"VCPU": 1}}})
    deep = {"namespaces": {"deep": b""}}
    nested = b"\x91" * 100_000 + b"\xc0"
    with_state = _encode({**_PLAIN_EVENT, "state": {}})[:-1]  # ends right before the state
    cases: list[tuple[str, bytes]] = [
        ("an amount that is text", _encode({**_PLAIN_EVENT, "state": {"usage": {"VCPU": "1"}}})),
        ("a negative amount", _encode({**_PLAIN_EVENT, "state": {"usage": {"VCPU": -1}}})),
        ("an unknown field", _encode({**_PLAIN_EVENT, "state": {}, "extra": 1})),
        ("bytes behind the end", good + b"\x00"),
        ("cut in the middle", good[: len(good) // 2]),
        ("a list said to have 2^32 - 1 elements", with_state + b"\xdd\xff\xff\xff\xff"),
        ("100,000 lists in each other", with_state + _encode(deep)[:-2] + nested),
        ("text that is not UTF-8", good.replace(b"VCPU", b"\xff\xfe\xfd\xfc")),
        ("a number that is no number (NaN)", _encode({**_PLAIN_EVENT, "state": {"metrics": {"m": float("nan")}}})),
        ("an extension type", with_state + msgpack.packb({"namespaces": {"x": msgpack.ExtType(5, b"x")}})),
        ("a timestamp", with_state + msgpack.packb({"namespaces": {"x": msgpack.Timestamp(1, 0)}})),
        ("the same key twice", with_state + b"\x82\xa4zone\xa1a\xa4zone\xa1b"),
    ]
    rows = []
    for name, raw in cases:
        rows.append(
            {
                "hostile bytes": name,
                "nodestate": _outcome(lambda raw=raw: fold(None, parse_event(raw))),  # type: ignore[misc]
                "msgspec, untyped": _outcome(lambda raw=raw: msgspec.msgpack.decode(raw)),  # type: ignore[misc]
                "msgpack-python": _outcome(lambda raw=raw: msgpack.unpackb(raw)),  # type: ignore[misc]
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


def _fuzz(fleet: Fleet) -> list[Result]:
    """Real events with seeded damage, until each form said what it makes of them."""
    rng = random.Random(SEED)
    good = [fleet.report(number) for number in range(200)] + [fleet.change(number) for number in range(200)]
    typed, wrong = 0, {"nodestate": 0, "msgspec, untyped": 0, "msgpack-python": 0}
    raised: dict[str, set[str]] = {name: set() for name in wrong}
    tries = 20_000
    for _ in range(tries):
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
            "damaged events": tries,
            "taken though they break the format": count,
            "what it raises": ", ".join(sorted(raised[name])),
        }
        for name, count in wrong.items()
    ]
    print(f"\n{typed:,} of {tries:,} damaged events are still events: damage in a name, a text or an amount.")
    return table("Seeded damage: 1 to 4 flips, cuts and insertions in each event", rows)


# -- partitions -----------------------------------------------------------------------------------

PARTITION_COUNTS: Final = (1, 4, 8, 16, 64, 256)
CHANGED: Final = 100


class _Cell:
    """A consumer that owns every partition of a cell on a real memcached, and its readers. Its queue is in memory and
    its clock stands still, so that only what a test asks for happens.
    """

    def __init__(self, partitions: int, nodes: int, store_url: str) -> None:
        self.config = Config(store=store_url, partitions=partitions, cell=f"bench{partitions}", lease_s=10_000.0)
        self.clock = ManualClock()
        self.fleet = Fleet(SEED, nodes)
        self.buckets = buckets_of(self.fleet)
        self.broker = MemoryBroker(partitions, prefetch=65_535)
        self.sink = self.broker.sink()
        self._stores = guarded(open_stores(self.config), self.clock)
        source = self.broker.source(range(partitions))
        self.consumer = Consumer(
            self.config, source, self._stores, self.broker, self.clock, random.Random(SEED), "bench"
        )
        self.consumer.step()
        for number in range(nodes):
            self.send(number, self.fleet.report(number))
        self.drain()
        self.clock.advance(self.config.settle_s)
        for _ in range(3):  # a probe out, a probe back, and the word for it
            self.clock.advance(self.config.renew_s)
            self.consumer.step()

    def send(self, number: int, event: bytes) -> None:
        self.sink.publish(self.buckets[number], event, lambda _: None)

    def drain(self) -> None:
        """Step until everything is written and acked."""
        stats = self.consumer.stats
        while (
            any(queue.messages for queue in self.broker.layouts[self.config.partitions]) or stats.acked < stats.received
        ):
            self.consumer.step()
        require(not stats.store_errors, "the store failed")

    def change(self, numbers: Sequence[int]) -> float:
        """Seconds of processor time that the consumer took for a change of each of these nodes."""
        for number in numbers:
            self.send(number, self.fleet.change(number))
        begin = time.process_time()
        self.drain()
        return time.process_time() - begin

    def checkpoint(self) -> None:
        """Have every journal write a checkpoint: as a reader does that misses something."""
        for partition in range(self.config.partitions):
            key = keys.repair(keys.prefix(self.config.cell, self.config.partitions, partition, keys.JOURNAL))
            self._stores.of(partition).write([Write(Put.ADD, key)])
        repairs = self.consumer.stats.repairs
        self.renew()
        self.consumer.step()  # the probe comes back …
        self.consumer.step()  # … and with nothing else to do, the repair is written
        require(self.consumer.stats.repairs == repairs + self.config.partitions, "no checkpoint was asked for")
        require(not any(held.wants_repair for held in self.consumer.owned.values()), "no checkpoint was written")

    def renew(self) -> None:
        self.clock.advance(self.config.renew_s)
        self.consumer.step()

    def close(self) -> None:
        self.consumer.close()


def partitions() -> Result:
    """docs/adr/0012: what the number of partitions costs, with 10,000 nodes on a real memcached."""
    rng = random.Random(SEED)
    numbered = [f"compute-{number:07d}" for number in range(100_000)]
    drawn = [f"host-{rng.getrandbits(48):012x}" for _ in range(100_000)]
    balance = [
        {
            "partitions": count,
            **{
                f"{nodes:,} {what}": _imbalance(names[:nodes], count)
                for what, names in (("numbered", numbered), ("random", drawn))
                for nodes in (1_000, 10_000, 100_000)
            },
        }
        for count in PARTITION_COUNTS
    ]
    with MemcachedServer(memory_mb=1_024) as server:
        rows = [_with_partitions(count, server.url) for count in PARTITION_COUNTS]
    return {
        "balance": table("Nodes in the largest partition, as a multiple of the mean, by names", balance),
        "cost": table(
            "10,000 nodes of 1 KB, one owner of all, both designs written: processor time without memcached's", rows
        ),
    }


def _imbalance(names: Sequence[str], count: int) -> float:
    sizes = [0] * count
    for name in names:
        sizes[partitioning.partition_of(name, count)] += 1
    return max(sizes) * count / len(names)


def _with_partitions(count: int, store_url: str) -> Result:
    cell = _Cell(count, NODES, store_url)
    rng = random.Random(SEED)
    row: Result = {"partitions": count}
    batches = [cell.change([rng.randrange(NODES) for _ in range(2_000)]) for _ in range(5)]
    row["apply, µs an event"] = statistics.median(batches) / 2_000 * 1e6
    row["renew all, ms"] = median_ms(cell.renew, 15)
    for design in ("snapshot", "journal"):
        with Reader(cell.config, design=design) as reader:
            require_whole(reader.read(max_age=60, on_stale="flag"), cell.fleet)
            row[f"{design}: idle, ms"] = median_ms(lambda reader=reader: reader.read(max_age=60), 30)  # type: ignore[misc]
            times = []
            for _ in range(20):
                cell.change(rng.sample(range(NODES), CHANGED))
                begin = time.process_time()
                reader.read(max_age=60)
                times.append(time.process_time() - begin)
            row[f"{design}: {CHANGED} changed, ms"] = statistics.median(times) * 1e3
    cell.checkpoint()
    for design in ("snapshot", "journal"):
        row[f"{design}: cold, ms"] = median_ms(lambda design=design: _cold(cell.config, design), 5)  # type: ignore[misc]
    cell.close()
    return row


def _cold(config: Config, design: str) -> None:
    with Reader(config, design=design) as reader:
        reader.read(max_age=60)


# -- checkpoint -----------------------------------------------------------------------------------

PARTITION_NODES: Final = NODES // 16
COMMIT_EVENTS: Final = 32
COMMITS_COUNT: Final = 1_000


def checkpoint() -> Result:
    """docs/adr/0004: bytes written and the time of a cold load, by when a checkpoint is written."""
    fleet = Fleet(SEED, PARTITION_NODES)
    rng = random.Random(SEED)
    records: list[NodeRecord] = []
    for number in range(PARTITION_NODES):
        record = fold(None, parse_event(fleet.report(number))).record
        assert record is not None
        records.append(record)
    folded, segments, size = list(records), [], []
    for _ in range(COMMITS_COUNT):
        events = []
        for number in rng.choices(range(PARTITION_NODES), k=COMMIT_EVENTS):
            raw = fleet.change(number)
            changed = fold(folded[number], parse_event(raw)).record
            assert changed is not None
            folded[number] = changed
            events.append(raw)
        segments.append(SEGMENT.pack(events))
        size.append(len(segments[-1]))
    rules: list[tuple[str, Callable[[int], int]]] = [
        ("64 KiB", lambda _: 64 * 1024),
        (f"1/{TAIL_SHARE} of the checkpoint (ours)", lambda last: max(MIN_TAIL_BYTES, last // TAIL_SHARE)),
        ("1/4 of the checkpoint", lambda last: max(MIN_TAIL_BYTES, last // 4)),
        ("the checkpoint", lambda last: max(MIN_TAIL_BYTES, last)),
        ("4 checkpoints", lambda last: max(MIN_TAIL_BYTES, 4 * last)),
        ("never", lambda _: 2**62),
    ]
    last = sum(map(len, pack_records(records, PART_BYTES)))
    checkpoint_bytes = last
    rows = []
    for name, limit in rules:
        tail, written, longest = 0, 0, 0
        for one in size:
            tail += one
            longest = max(longest, tail)
            if tail > limit(last):
                written, tail = written + 1, 0
        bytes_written = sum(size) + written * checkpoint_bytes
        commits = _commits_of(longest, size)
        rows.append(
            {
                "checkpoint when the tail exceeds": name,
                "checkpoints": written,
                "bytes written per byte of events": bytes_written / sum(size),
                "longest tail, KB": longest / 1e3,
                "cold load, tail empty, ms": _load_ms(records, segments[:0]),
                "cold load, tail longest, ms": _load_ms(records, segments[:commits]),
                "stored at most, checkpoints": (2 * checkpoint_bytes + 2 * longest) / checkpoint_bytes,
            }
        )
    title = (
        f"One of 16 partitions of 10,000 nodes: {PARTITION_NODES} nodes, checkpoint {checkpoint_bytes / 1e3:,.0f} KB; "
        f"{COMMITS_COUNT:,} commits of {COMMIT_EVENTS} changes, {sum(size) / 1e6:.1f} MB"
    )
    require(_load(records, segments) == folded, "the fold of checkpoint and tail is not what was sent")
    return {"rules": table(title, rows), "checkpoint_bytes": checkpoint_bytes, "event_bytes": sum(size)}


def _commits_of(tail_bytes: int, size: Sequence[int]) -> int:
    """As many commits as make up a tail."""
    total = 0
    for count, one in enumerate(size):
        if total >= tail_bytes:
            return count
        total += one
    return len(size)


def _journal(records: Sequence[NodeRecord], segments: Sequence[bytes]) -> tuple[MemoryStore, str, Head]:
    """A journal of one checkpoint and a tail, in a store that costs nothing: what is timed is the reader's work."""
    store = MemoryStore(MemoryServer(max_value_bytes=2**30))
    prefix = keys.prefix("bench", 1, 0, keys.JOURNAL)
    blocks = pack_records(records, PART_BYTES)
    newest = Checkpoint(1, 1, len(blocks), sum(map(len, blocks)))
    writes = [
        Write(Put.ADD, key, block) for key, block in zip(checkpoint_keys(prefix, EPOCH, newest), blocks, strict=True)
    ]
    writes += [Write(Put.ADD, keys.segment(prefix, EPOCH, 1, n), raw) for n, raw in enumerate(segments, start=1)]
    store.write(writes)
    section = JournalSection(1, sum(map(len, segments)), (Since(1, 1),), newest)
    head = Head(EPOCH, 1, "bench", 0, len(segments) + 1, 0, True, 100, msgspec.Raw(_encode(section)))
    return store, prefix, head


def _load(records: Sequence[NodeRecord], segments: Sequence[bytes]) -> list[NodeRecord]:
    store, prefix, head = _journal(records, segments)
    loaded = run_one(store, JournalReader(prefix).load(head, None, {}))
    assert loaded.table is not None
    return list(loaded.table.records())


def _load_ms(records: Sequence[NodeRecord], segments: Sequence[bytes]) -> float:
    store, prefix, head = _journal(records, segments)
    return median_ms(lambda: run_one(store, JournalReader(prefix).load(head, None, {})), 3)


# -- ring -----------------------------------------------------------------------------------------


class Turn(msgspec.Struct, frozen=True, array_like=True):
    """The form tried first: one commit in the ring, as a struct of its own."""

    term: int
    offset: int
    slots: bytes
    appeared: tuple[str, ...] = ()


class ListSection(msgspec.Struct, frozen=True, array_like=True):
    """The form tried first: the section with a list of commits."""

    ring_from: int
    ring: tuple[Turn, ...]
    index: Index
    previous: Index | None = None


_LIST_SECTION: Final = msgspec.msgpack.Decoder(ListSection)
_COMMITS: Final = (0, 10, 50, 170, 512, 1_024)


def _list_after(section: ListSection, offset: int) -> dict[int, Stamp]:
    newest: dict[int, Stamp] = {}
    for turn in section.ring:
        if turn.offset >= offset:
            stamp = stamp_of(turn.term, turn.offset)
            for slot in np.frombuffer(turn.slots, "<u4").tolist():
                newest[slot] = stamp
    return newest


def ring() -> Result:
    """docs/adr/0003: what a refresh decodes of a head, by the form of its ring; and the index without a ring."""
    rng = random.Random(SEED)
    rows = [_ring_row(commits, rng) for commits in _COMMITS]
    indexes = []
    for nodes in (625, 6_250):
        names = [f"compute-{number:07d}" for number in range(nodes)]
        parts = pack_index(names, [stamp_of(1, rng.randrange(10_000)) for _ in names])
        indexes.append(
            {
                "nodes in the partition": nodes,
                "index, KB": sum(map(len, parts)) / 1e3,
                "decode, µs": median_us(lambda parts=parts: [unpack_index_part(part) for part in parts]),  # type: ignore[misc]
            }
        )
    return {
        "ring": table("A head's ring: decode it, and name what the newest commit changed (µs)", rows),
        "index": table("The whole index, as each refresh would read it without a ring", indexes),
    }


def _ring_row(commits: int, rng: random.Random) -> Result:
    each = max(1, min(6, RING_SLOTS // max(1, commits)))
    slots = [[rng.randrange(625) for _ in range(each)] for _ in range(commits)]
    packed = [np.array(some, "<u4").tobytes() for some in slots]
    index, first = Index(1, 1, 1), 100_000
    flat = SnapshotSection(
        first, np.full(commits, each, "<u2").tobytes(), b"".join(packed), (), (Since(3, first),), index, index
    )
    turns = tuple(Turn(3, first + n, raw) for n, raw in enumerate(packed))
    listed = ListSection(first, turns, index, index)
    flat_raw, listed_raw = _head_bytes(_encode(flat)), _head_bytes(_encode(listed))
    at = first + max(0, commits - 1)

    def read_flat(offset: int = at) -> dict[int, Stamp]:
        return ring_after(SNAPSHOT_SECTION.decode(HEAD.unpack(flat_raw).section), offset)

    def read_listed(offset: int = at) -> dict[int, Stamp]:
        return _list_after(_LIST_SECTION.decode(HEAD.unpack(listed_raw).section), offset)

    require(read_flat() == read_listed() and read_flat(first) == read_listed(first), "the two forms differ")
    require(commits <= RING_COMMITS, "more commits than a ring holds")
    return {
        "commits in the ring": commits,
        "slots each": each if commits else 0,
        "flat (ours), bytes": len(flat_raw),
        "flat: decode": median_us(lambda: SNAPSHOT_SECTION.decode(HEAD.unpack(flat_raw).section)),
        "flat: newest commit": median_us(read_flat),
        "flat: all": median_us(lambda: read_flat(first)),
        "list, bytes": len(listed_raw),
        "list: decode": median_us(lambda: _LIST_SECTION.decode(HEAD.unpack(listed_raw).section)),
        "list: newest commit": median_us(read_listed),
        "list: all": median_us(lambda: read_listed(first)),
    }


def _head_bytes(section: bytes) -> bytes:
    return HEAD.pack(Head(EPOCH, 3, "member/0123456789ab", 7, 200_000, 12, True, 86_400, msgspec.Raw(section)))


# -- lockstep -------------------------------------------------------------------------------------


class _Counting:
    """A store that counts its round trips."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self.calls = 0
        self.name = inner.name

    @property
    def max_value_bytes(self) -> int:
        return self._inner.max_value_bytes

    def fetch(self, wanted: Sequence[str]) -> dict[str, Item]:
        self.calls += 1
        return self._inner.fetch(wanted)

    def write(self, writes: Sequence[Write]) -> list[Written]:
        self.calls += 1
        return self._inner.write(writes)

    def close(self) -> None:
        self._inner.close()


def lockstep() -> Result:
    """docs/adr/0009: the same steps of 16 partitions, side by side and one partition after the other."""
    with MemcachedServer(memory_mb=1_024) as server:
        cell = _Cell(16, NODES, server.url)
        rng = random.Random(SEED)
        cell.change(rng.choices(range(NODES), k=2 * NODES))  # so that there is an index, and more than it
        rows = []
        for design in DESIGNS:
            counting = [_Counting(store) for store in open_stores(cell.config)]
            stores = Stores(counting)
            for what, changed in (("cold", None), ("idle", 0), (f"{CHANGED} changed", CHANGED)):
                row: Result = {"refresh": f"{design}, {what}"}
                for form, refresh in (("side by side", _side_by_side), ("in turn", _in_turn)):
                    followers = _followers(cell, design)
                    if changed is not None:
                        _side_by_side(stores, followers)
                    times, calls = [], 0
                    for _ in range(10):
                        if changed is None:
                            followers = _followers(cell, design)
                        elif changed:
                            cell.change(rng.sample(range(NODES), changed))
                        counting[0].calls = 0
                        begin = time.perf_counter()
                        refresh(stores, followers)
                        times.append(time.perf_counter() - begin)
                        calls = counting[0].calls
                    row[f"{form}: round trips"] = calls
                    row[f"{form}, ms"] = statistics.median(times) * 1e3
                rows.append(row)
            stores.close()
        cell.close()
    return {"refresh": table("A refresh of 16 partitions, 10,000 nodes, on one memcached of the same machine", rows)}


def _followers(cell: _Cell, design: str) -> list[Follower]:
    name, count = cell.config.cell, cell.config.partitions
    prefixes = [keys.prefix(name, count, p, DESIGNS[design].letter) for p in range(count)]
    return [Follower(p, prefix, DESIGNS[design].reader(prefix), SystemClock()) for p, prefix in enumerate(prefixes)]


def _side_by_side(stores: Stores, followers: Sequence[Follower]) -> None:
    states = run({f.state.partition: (stores.of(f.state.partition), f.refresh(with_life=False)) for f in followers})
    require(not any(isinstance(state, Exception) for state in states.values()), "a refresh failed")


def _in_turn(stores: Stores, followers: Sequence[Follower]) -> None:
    for follower in followers:
        run_one(stores.of(follower.state.partition), follower.refresh(with_life=False))


# -- command --------------------------------------------------------------------------------------


class _Choice(NamedTuple):
    measure: Callable[[], Result]
    page: str


CHOICES: Final[dict[str, _Choice]] = {
    "partitions": _Choice(partitions, "0012-eight-partitions.md"),
    "ring": _Choice(ring, "0003-index-layout.md"),
    "checkpoint": _Choice(checkpoint, "0004-checkpoint-interval.md"),
    "codec": _Choice(codec, "0005-codec.md"),
    "lockstep": _Choice(lockstep, "0009-round-trips-side-by-side.md"),
}
ADR: Final = Path(__file__).parents[2] / "docs" / "adr"
FIGURES: Final = "## Figures\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run some choices, print their tables, and write their figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.adr_figures", description=__doc__.partition("\n")[0])
    parser.add_argument("name", nargs="+", choices=[*CHOICES, "all"])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--adr", action="store_true", help="put the tables into docs/adr, in place of those there")
    chosen = parser.parse_args(arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("warning"))
    about = environment()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    results: Result = {}
    for name in CHOICES if "all" in chosen.name else chosen.name:
        _printed.clear()
        results[name] = CHOICES[name].measure()
        if chosen.adr:
            _write_figures(name, about)
    if chosen.json:
        record = {"environment": about, "choices": results}
        chosen.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def _write_figures(name: str, about: Result) -> None:
    path = ADR / CHOICES[name].page
    text, _, _ = path.read_text(encoding="utf-8").partition(FIGURES)
    where = "; ".join(
        (
            f"Python {about['python']}, " + ", ".join(f"{one} {about[one]}" for one in PACKAGES),
            f"{about['cpus']} cores, load {about['load']:g} at the start",
            "compare within a table only",
        )
    )
    tables = "\n\n".join(_printed)
    path.write_text(f"{text}{FIGURES}\n`python -m bench.adr_figures {name}`. {where}.\n\n{tables}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
