"""Reads and writes the claim records in the memcached servers, each in one copy or in two.

A record with two copies is written to its first copy, and then to the second one. The first copy decides: a scheduler
whose compare-and-swap of the first copy fails writes nothing. A server that does not answer is left out, and the other
copy decides then, and so is a server that is full. Claims that the other one lacks are merged at the next read of both
(``record_copies``). So a copy never has to be complete, and no order of writes, deaths and outages loses a claim that
both copies had.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from statistics import median_low
from typing import Final, NamedTuple

import msgspec

from nodestate.errors import NodestateError, StoreUnavailableError
from nodestate.ports import Item, Key, Put, Write, WriteResult, WriteStatus
from nodestate.scheduling.claims.claim_servers import CLOCK_CHANGE_S, ClaimServers
from nodestate.scheduling.claims.record import CLAIMS, IN_FLIGHT_S, ClaimRecord, LastWrite, damage_of
from nodestate.scheduling.claims.record_cache import CachedRecord, RecordCache
from nodestate.scheduling.claims.record_copies import content_of
from nodestate.store import keys
from nodestate.store.damage import DAMAGE
from nodestate.store.round_trips import Step, Steps, run

SAMPLE_COUNT: Final = 9
"""Number of records from which the difference of two clocks is taken, so that a wrong one among them does not count."""

Replies = Mapping[int, Mapping[Key, Item] | NodestateError]
"""By the number of a server, the items that it has, or the error if it did not answer."""


class ReadRecords(NamedTuple):
    """The result of a read."""

    found: dict[str, CachedRecord]
    """The records by node."""
    created: set[str]
    """The nodes whose record was created, or one copy of it."""
    outdated: set[str]
    """The nodes whose record is to be written again.

    Its copies differ, have times of an earlier clock, or lack the code of a new secret.
    """
    unknown: dict[str, NodestateError | None]
    """The nodes whose record is unknown, with the error of their server; None if other schedulers kept changing it."""


class Written(NamedTuple):
    """The result of the write of one record."""

    outcome: WriteStatus | NodestateError
    """``STORED``: all copies whose server answered have the record. Otherwise why a copy does not have it."""
    cas: tuple[int | None, ...] = ()
    """After ``STORED``, the ``cas`` ids of the copies; None for a copy whose server did not answer, or is full."""
    maybe_stored: bool = False
    """Whether a copy has, or may have, the record, although the outcome is not ``STORED``."""
    retriable: bool = False
    """Whether another try may succeed after the record was read again."""
    full_server: str = ""
    """After ``STORED``, the name of the server that had no room for a copy; empty if none."""


class _Look(NamedTuple):
    """The copies of one record, as they were read."""

    node: str
    home: int
    cas: list[int | None]
    """The ``cas`` ids; 0 for an item that does not exist, None for a server that did not answer."""
    records: list[ClaimRecord | None]
    """The records; None for a copy that is missing or damaged, or whose server did not answer."""
    outdated: bool
    """Whether an item lacks the code of a secret that came into force, or has times of an earlier clock."""
    error: NodestateError | None
    """The error of a server that did not answer; None if all answered."""

    def content(self) -> ClaimRecord | None:
        """Return the content of all copies; None if there is no sound copy."""
        found = [record for record in self.records if record is not None]
        if len(found) == 2 and found[0] is not found[1]:
            return content_of(*found)
        return found[0] if found else None


class RecordStore:
    """The claim records of a cell in their servers.

    Args:
        cell: The cell's name.
        servers: The servers.
        cache: The last known write of each copy, so that a record that another program stored again is refused.
    """

    def __init__(self, cell: str, servers: ClaimServers, cache: RecordCache) -> None:
        self._cell = cell
        """The name of the cell, which is part of each record's key."""
        self._servers = servers
        """The servers of the copies."""
        self._cache = cache
        """The last known write of each copy, and the versions that are distrusted."""

    # -- reading

    def read(self, nodes: Sequence[str]) -> ReadRecords:
        """Read the records of these nodes, and create the missing records and copies.

        Costs one round trip to each server, and two more for records that are missing.
        """
        result = ReadRecords({}, set(), set(), {})
        missing = self._sort_out(self._look(nodes), result)
        if missing:
            raced = self._create(missing, result)
            if raced:
                for look in self._sort_out(self._look(raced), result):
                    result.unknown[look.node] = None
        return result

    def _look(self, nodes: Sequence[str]) -> list[_Look]:
        """Read all copies of these nodes' records."""
        servers, wanted = self._servers, dict[int, list[Key]]()
        homes = [servers.home(node) for node in nodes]
        for node, home in zip(nodes, homes, strict=True):
            for copy in range(servers.copies):
                wanted.setdefault(servers.number(home, copy), []).append(self._key(node, copy))
        replies = run({number: (servers.at(number), _fetch(some)) for number, some in wanted.items()})
        now = {home: self._time(home, replies) for home in set(homes)}
        if servers.changed:
            self._cache.last_writes.clear()  # their times say nothing about later writes
        return [self._look_at(node, home, replies, now[home]) for node, home in zip(nodes, homes, strict=True)]

    def _time(self, home: int, replies: Replies) -> float:
        """Return the time of a home's clock. Compares the clocks of the two servers, if there are copies.

        A server that was restarted fails the read, and tells its new time right after it. So the clocks are asked after
        the read, whether it failed or not.
        """
        if self._servers.copies > 1:
            self._servers.compare_clocks(home)
            second = replies[self._servers.number(home, 1)]
            if not self._servers.knows_ahead(home) and not isinstance(second, NodestateError):
                self._sample_clocks(home, second)
        return self._servers.observed_time(home)

    def _sample_clocks(self, home: int, second: Mapping[Key, Item]) -> None:
        """Take the difference of two clocks from second copies, because the home does not answer."""
        prefix, sample = self._key("", 1), list[int]()
        for key, item in second.items():
            assert isinstance(key, str), "only items of memcached were asked for"
            if key.startswith(prefix) and self._servers.home(key.removeprefix(prefix)) == home:
                record = CLAIMS.find(key, item)
                if record is not None:
                    sample.append(record.ahead_s)
                    if len(sample) == SAMPLE_COUNT:
                        break
        self._servers.learn_ahead(home, median_low(sample) if sample else 0)

    def _look_at(self, node: str, home: int, replies: Replies, now: float) -> _Look:
        """Decode the copies of one record.

        ``now``: seconds of the home's clock; 0 if it is unknown.
        """
        cas, records, first_value = list[int | None](), list[ClaimRecord | None](), None
        distrusted, outdated, error = self._cache.distrusted.get(node), False, None
        for copy in range(self._servers.copies):
            reply = replies[self._servers.number(home, copy)]
            if isinstance(reply, NodestateError):
                cas.append(None)
                records.append(None)
                error = error or reply
                continue
            key = self._key(node, copy)
            item = reply.get(key)
            cas.append(item.cas if item is not None else 0)
            known, ahead_s = self._cache.last_writes.get(key), self._servers.ahead_s(home) if copy else 0
            if item is not None and item.value == first_value and abs(ahead_s) <= CLOCK_CHANGE_S:
                record = records[0]  # the copies are equal and sound: one decoding is enough
            else:
                record = CLAIMS.find(key, item)
                if record is not None and abs(ahead_s - record.ahead_s) > CLOCK_CHANGE_S:
                    # Its times are known to some seconds only, so it cannot be compared with earlier writes.
                    record, known, outdated = record.shifted(ahead_s - record.ahead_s), None, True
                if record is not None and (reason := damage_of(record, now, distrusted, known)):
                    DAMAGE.report(key, reason)
                    record = None
            if record is not None:
                self._cache.last_writes[key] = LastWrite(record.born, record.written_ms)
            records.append(record)
            if item is not None:
                first_value, outdated = item.value if record is not None else None, outdated or item.outdated
        return _Look(node, home, cas, records, outdated, error)

    def _sort_out(self, looks: Iterable[_Look], result: ReadRecords) -> list[_Look]:
        """Put records into the result of a read. Returns those with a copy that has to be created first."""
        missing = list[_Look]()
        for look in looks:
            content = look.content()
            if all(cas is None for cas in look.cas):
                result.unknown[look.node] = look.error
            elif content is None or any(
                record is None and cas is not None for record, cas in zip(look.records, look.cas, strict=True)
            ):
                missing.append(look)
            else:
                first, last = look.records[0], look.records[-1]
                settled = first is last or (
                    first is not None
                    and last is not None
                    and (first.claims, first.removed) == (last.claims, last.removed)
                )
                self._add(result, look, content, look.cas, settled=settled)
        return missing

    def _add(
        self,
        result: ReadRecords,
        look: _Look,
        record: ClaimRecord,
        cas: Sequence[int | None],
        *,
        settled: bool,
        full_server: str = "",
    ) -> None:
        """Put a record into the result of a read. ``full_server``: the server that had no room for a missing copy."""
        if record.ahead_s:
            record = msgspec.structs.replace(record, ahead_s=0)
        result.found[look.node] = CachedRecord(record, tuple(cas), settled, full_server)
        differs = not settled or record.copies < len(cas)
        if look.outdated or (differs and None not in cas and self._is_past(look.home, record)):
            result.outdated.add(look.node)

    def _is_past(self, home: int, record: ClaimRecord) -> bool:
        """Return whether a record was written too long ago for its writer to be between the two copies."""
        return self._servers.time_at_or_zero(home) - record.written_ms / 1000 > IN_FLIGHT_S

    def _create(self, looks: Sequence[_Look], result: ReadRecords) -> list[str]:
        """Create the copies that are missing, with the content of the other copy if that is there.

        Returns the nodes whose record another scheduler created first.
        """
        records = dict[str, ClaimRecord]()
        writes: dict[int, list[tuple[_Look, int, Write]]] = {}
        for look in looks:
            now = self._servers.time_at_or_zero(look.home)
            content = look.content()
            if content is not None:
                record = msgspec.structs.replace(content, born=now, ahead_s=0).written_at(now)
            else:
                record = ClaimRecord.created_at(now, copies=len(look.cas))
            records[look.node] = record
            for copy, (cas, there) in enumerate(zip(look.cas, look.records, strict=True)):
                if cas is None or there is not None:
                    continue
                key, value = self._key(look.node, copy), self._value(record, look.home, copy)
                write = Write(Put.CAS, key, value, cas) if cas else Write(Put.ADD, key, value)
                writes.setdefault(self._servers.number(look.home, copy), []).append((look, copy, write))
        replies = self._write_all({number: [one[2] for one in some] for number, some in writes.items()})
        raced, errors, full = dict[str, None](), dict[str, NodestateError](), dict[str, str]()
        for number, some in writes.items():
            reply = replies[number]
            for place, (look, copy, write) in enumerate(some):
                if isinstance(reply, NodestateError):
                    look.cas[copy] = None
                    errors[look.node] = reply
                elif reply[place].status is WriteStatus.STORED:
                    look.cas[copy] = reply[place].cas
                    record = records[look.node]
                    self._cache.last_writes[write.key] = LastWrite(record.born, record.written_ms)
                elif reply[place].status is WriteStatus.FULL:
                    look.cas[copy], full[look.node] = None, self._servers.at(number).name
                else:
                    raced[look.node] = None
        for look in looks:
            node = look.node
            if node in raced:
                continue
            if all(cas is None for cas in look.cas):
                result.unknown[node] = errors.get(node) or StoreUnavailableError(full[node], "it has no memory left")
                continue
            result.created.add(node)
            whole = None not in look.cas
            self._add(result, look, records[node], look.cas, settled=whole, full_server=full.get(node, ""))
        return list(raced)

    # -- writing

    def write(self, changes: Mapping[str, tuple[CachedRecord, ClaimRecord]]) -> dict[str, Written]:
        """Write records by compare-and-swap, first their first copies and then their second ones.

        Args:
            changes: By node, the record as it was read last, and the record to write.

        Returns by node the result. Costs one round trip to each server for each copy.
        """
        results, full = dict[str, Written](), dict[str, str]()
        values = {node: CLAIMS.pack(record) for node, (_, record) in changes.items()}
        stored: dict[str, list[int | None]] = {node: [None] * self._servers.copies for node in changes}
        for copy in range(self._servers.copies):
            work = {
                node: change
                for node, change in changes.items()
                if node not in results and change[0].cas[copy] is not None
            }
            for node, answer in self._write_copy(copy, work, values).items():
                is_second = any(cas is not None for cas in stored[node])
                if isinstance(answer, NodestateError):
                    if not is_second:
                        results[node] = Written(answer, maybe_stored=True, retriable=True)
                elif answer.status is WriteStatus.STORED:
                    stored[node][copy] = answer.cas
                elif answer.status is WriteStatus.FULL:
                    full[node] = self._servers.at(self._servers.number(self._servers.home(node), copy)).name
                else:
                    results[node] = Written(WriteStatus.CONFLICT, maybe_stored=is_second, retriable=True)
        for node, cas in stored.items():
            if node in full and all(one is None for one in cas):
                results.setdefault(node, Written(WriteStatus.FULL))
            else:
                results.setdefault(node, Written(WriteStatus.STORED, tuple(cas), full_server=full.get(node, "")))
        return results

    def _write_copy(
        self, copy: int, changes: Mapping[str, tuple[CachedRecord, ClaimRecord]], values: Mapping[str, bytes]
    ) -> dict[str, WriteResult | NodestateError]:
        """Write one copy of each record. ``values``: by node, the bytes of the first copy."""
        writes: dict[int, list[tuple[str, Write]]] = {}
        answers, limits = dict[str, WriteResult | NodestateError](), dict[int, int]()
        for node, (known, record) in changes.items():
            home = self._servers.home(node)
            value = self._value(record, home, copy) if copy and self._servers.ahead_s(home) else values[node]
            number = self._servers.number(home, copy)
            if number not in limits:
                limits[number] = self._limit(number)
            if len(value) > limits[number]:
                answers[node] = WriteResult(WriteStatus.FULL)
                continue
            write = Write(Put.CAS, self._key(node, copy), value, known.cas[copy] or 0)
            writes.setdefault(number, []).append((node, write))
        replies = self._write_all({number: [write for _, write in some] for number, some in writes.items()})
        for number, some in writes.items():
            reply = replies[number]
            for place, (node, write) in enumerate(some):
                if isinstance(reply, NodestateError):
                    answers[node] = reply
                    continue
                answers[node] = reply[place]
                if reply[place].status is WriteStatus.STORED:
                    record = changes[node][1]
                    self._cache.last_writes[write.key] = LastWrite(record.born, record.written_ms)
        return answers

    def _write_all(self, writes: Mapping[int, Sequence[Write]]) -> dict[int, Sequence[WriteResult] | NodestateError]:
        """Write to some servers, by their number."""
        return run({number: (self._servers.at(number), _write(some)) for number, some in writes.items()})

    def _limit(self, number: int) -> int:
        """Return the size in bytes of the largest record that a server takes; no limit if it does not answer."""
        with suppress(NodestateError):
            return self._servers.at(number).max_value_bytes
        return sys.maxsize

    # -- keys and values

    def _key(self, node: str, copy: int) -> str:
        return keys.claim_copy(self._cell, node) if copy else keys.claim(self._cell, node)

    def _value(self, record: ClaimRecord, home: int, copy: int) -> bytes:
        """Return the bytes of one copy of a record."""
        ahead_s = self._servers.ahead_s(home) if copy else 0
        return CLAIMS.pack(msgspec.structs.replace(record, ahead_s=ahead_s) if ahead_s else record)


def _fetch(wanted: Sequence[Key]) -> Steps[Mapping[Key, Item]]:
    """Fetch some items of one server."""
    reply = yield Step(fetch=wanted)
    return reply.items


def _write(writes: Sequence[Write]) -> Steps[Sequence[WriteResult]]:
    """Carry out some writes in one server."""
    reply = yield Step(writes)
    return reply.written
