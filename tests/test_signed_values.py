"""Signatures of stored values: a program without the cell's keys can write nothing that a process of the cell takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from harness.servers import MemcachedServer
from nodestate.auth.followed_file import REREAD_S
from nodestate.auth.keys import CellKeys
from nodestate.config import Config
from nodestate.designs import control_store
from nodestate.designs.connections import open_memcached
from nodestate.designs.control import CONTROL, record_from_settings
from nodestate.errors import ConfigError, CorruptItemError
from nodestate.findings import value_checks
from nodestate.findings.finding import FAIL, OK, WARN
from nodestate.findings.value_checks import examine_values
from nodestate.model.partitioning import partition_of
from nodestate.ports import Item, Key, Put, SystemClock, Write, WriteResult, WriteStatus
from nodestate.scheduling.claims import CLAIMS, AffinitySeed, Claim, ClaimRecord
from nodestate.store import keys
from nodestate.store.damage import DAMAGE
from nodestate.store.head import EPOCH
from nodestate.store.memcached import MemcachedStore
from nodestate.store.round_trips import Stores
from nodestate.store.signed_values import HEADER_BYTES, SIGNED, SignedStore, ValueAuth, ValueCounts, value_auth
from nodestate.store.wire import refused_value
from nodestate.testing import ManualClock, MemoryServer, MemoryStore, process_server
from tests.cell_keys import FixedKeyring, new_cell_keys, rotated, without_oldest, written
from tests.planted_values import item_at, keys_with, replace
from tests.scheduling.claim_tables import Party
from tests.scheduling.fleets import ChangingPartition, host
from tests.test_repair import OnePartitionCell

CELL_KEYS: Final = new_cell_keys()
KEY: Final = "ns:cell1:1.0:s:epoch"
VALUE: Final = EPOCH.pack(7)
REFUSED: Final = {reason: refused_value(reason) for reason in ("unsigned", "bad-signature")}


def auth_of(mode: str, cell_keys: CellKeys | None = CELL_KEYS) -> ValueAuth:
    return ValueAuth(mode, FixedKeyring(cell_keys) if cell_keys is not None else None, ValueCounts())


def signed(key: str = KEY, value: bytes = VALUE, cell_keys: CellKeys = CELL_KEYS) -> bytes:
    [write] = auth_of("require", cell_keys).signed([Write(Put.ADD, key, value)])
    return write.value


def taken(mode: str, stored: bytes, cell_keys: CellKeys | None = CELL_KEYS) -> tuple[bytes, bool]:
    """The value that a process in this mode takes from stored bytes, and whether it is outdated."""
    item = auth_of(mode, cell_keys).checked({KEY: Item(stored, 5, 60)})[KEY]
    assert (item.cas, item.ttl_s) == (5, 60)
    return item.value, item.outdated


BOTH: Final = rotated(CELL_KEYS)
"""The same secret, and a newer one."""
NEWER: Final = without_oldest(BOTH)
MOVED: Final = signed("ns:cell1:1.1:s:epoch")
FORGED: Final = signed(cell_keys=new_cell_keys())
BY_NEWER: Final = signed(cell_keys=NEWER)
BY_BOTH: Final = signed(cell_keys=BOTH)
CHECKING: Final = ("accept", "warn", "require")


OUTDATED: Final = {"off": (VALUE, True), **dict.fromkeys(CHECKING, (VALUE, True))}
TABLE: Final[dict[str, tuple[bytes, CellKeys | None, dict[str, Any]]]] = {
    # stored bytes, keys, and for each mode: the value that is taken, and whether it is outdated
    "unsigned": (VALUE, CELL_KEYS, {**OUTDATED, "off": (VALUE, False), "require": "unsigned"}),
    "unsigned, no keys": (VALUE, None, {"off": (VALUE, False), "accept": (VALUE, False)}),
    "signed": (signed(), CELL_KEYS, {**dict.fromkeys(CHECKING, (VALUE, False)), "off": (VALUE, True)}),
    "signed, no keys": (signed(), None, {"off": (VALUE, True), "accept": (VALUE, True)}),
    "by the newer of two": (BY_NEWER, BOTH, OUTDATED),
    "by the older of two": (signed(), BOTH, OUTDATED),
    "by both of two": (BY_BOTH, BOTH, {**dict.fromkeys(CHECKING, (VALUE, False)), "off": (VALUE, True)}),
    "by both, a process without the newer": (BY_BOTH, CELL_KEYS, OUTDATED),
    "by both, the older is revoked": (BY_BOTH, NEWER, OUTDATED),
    "by both, neither is in force": (
        BY_BOTH,
        new_cell_keys(),
        {**dict.fromkeys(CHECKING, "bad-signature"), "off": (VALUE, True)},
    ),
    "of another item": (MOVED, CELL_KEYS, {**dict.fromkeys(CHECKING, "bad-signature"), "off": (VALUE, True)}),
    "by another secret": (FORGED, CELL_KEYS, {**dict.fromkeys(CHECKING, "bad-signature"), "off": (VALUE, True)}),
    "by a revoked key": (BY_NEWER, CELL_KEYS, {**dict.fromkeys(CHECKING, "bad-signature"), "off": (VALUE, True)}),
}


@pytest.mark.parametrize("row", TABLE)
def test_modes_treat_stored_values_as_their_table_says(row: str) -> None:
    stored, cell_keys, by_mode = TABLE[row]
    for mode, expected in by_mode.items():
        found = taken(mode, stored, cell_keys)
        assert found == ((REFUSED[expected], True) if isinstance(expected, str) else expected), mode


@pytest.mark.parametrize("keys_count", [1, 2])
@given(data=st.data(), change=st.integers(1, 255))
def test_a_value_of_which_any_byte_was_changed_is_refused(keys_count: int, data: st.DataObject, change: int) -> None:
    """If two secrets are in force, a change in the first header leaves the second one valid, with the same content."""
    cell_keys, stored = {1: (CELL_KEYS, signed()), 2: (BOTH, BY_BOTH)}[keys_count]
    place = data.draw(st.integers(0, len(stored) - 1))
    changed = bytearray(stored)
    changed[place] ^= change
    found = taken("require", bytes(changed), cell_keys)
    assert found[0] in REFUSED.values() or (keys_count == 2 and found == (VALUE, True) and place < HEADER_BYTES)
    for mode in ("accept", "warn"):  # without the mark of a signature it is an unsigned value, and a damaged one
        value, _ = taken(mode, bytes(changed), cell_keys)
        if value != VALUE or keys_count == 1:
            with pytest.raises(CorruptItemError):
                EPOCH.unpack(value)


@given(st.integers(0, len(signed())), st.binary(max_size=40))
def test_a_value_that_was_cut_off_or_made_longer_is_refused(place: int, more: bytes) -> None:
    for changed in (signed()[:place] + more, signed()[:place] + more + signed()[place:]):
        if changed != signed():
            assert taken("require", changed)[0] in REFUSED.values()
            with pytest.raises(CorruptItemError):
                EPOCH.unpack(taken("off", changed)[0])


@given(st.binary(max_size=80), st.sampled_from((b"", SIGNED, signed()[:HEADER_BYTES], BY_BOTH[:HEADER_BYTES])))
def test_no_stored_bytes_stop_a_process_and_unsigned_ones_are_refused(content: bytes, begin: bytes) -> None:
    for mode in ("off", *CHECKING):
        value, _ = taken(mode, begin + content, BOTH)
        if mode == "require" and begin + content not in (signed(), BY_BOTH, BY_NEWER):
            assert value in REFUSED.values()


def test_a_value_has_at_most_as_many_headers_as_secrets_may_be_in_force() -> None:
    """A program that writes thousands of them does not keep a reader busy."""
    many = signed()[:HEADER_BYTES] * 40_000 + signed()
    for mode in ("off", *CHECKING):
        with pytest.raises(CorruptItemError):
            EPOCH.unpack(taken(mode, many)[0])


def test_a_refused_value_says_why_in_the_log_of_damaged_values() -> None:
    DAMAGE._logged.clear()
    for stored, reason in ((VALUE, "unsigned"), (MOVED, "bad-signature")):
        item = auth_of("require").checked({KEY: Item(stored, 1, None)})[KEY]
        with capture_logs() as logs:
            assert EPOCH.find(KEY, item) is None
        [entry] = logs
        assert (entry["key"], entry["reason"].partition(":")[0]) == (KEY, reason)


def test_values_are_counted_by_their_signatures() -> None:
    auth = auth_of("accept", BOTH)
    names = [f"ns:cell1:claim:n{number}" for number in range(7)]
    values = [VALUE, VALUE, FORGED, signed(names[3]), *(signed(name, cell_keys=BOTH) for name in names[4:])]
    auth.checked({name: Item(value, 1, None) for name, value in zip(names, values, strict=True)})
    counts = auth.counts
    assert (counts.signed, counts.lacking, counts.unsigned, counts.refused) == (4, 1, 2, 1)
    assert counts.examples == {"unsigned": names[0], "bad-signature": names[2], "lacking": names[3]}
    assert auth.key_ids == [one.id for one in BOTH.secrets]


def test_an_unsigned_value_is_logged_once_in_mode_warn() -> None:
    auth = auth_of("warn")
    with capture_logs() as logs:
        for _ in range(2):
            auth.checked({KEY: Item(VALUE, 1, None)})
    assert [entry["key"] for entry in logs] == [KEY]


def test_a_process_with_keys_of_nodes_only_cannot_sign_values(tmp_path: Path) -> None:
    path = written(tmp_path, "n1.keys", CELL_KEYS.node_keys(("n1",)))
    for mode in ("warn", "require"):
        with pytest.raises(ConfigError, match="keys of nodes only"):
            value_auth(Config(auth_store=mode, keys_file=path), ManualClock())
        with pytest.raises(ConfigError, match="set keys_file"):
            open_memcached(Config(auth_store=mode), "memory://", ManualClock())
    accepting = value_auth(Config(auth_store="accept", keys_file=path), ManualClock(), ValueCounts())
    assert accepting.signed([Write(Put.ADD, KEY, VALUE)]) == [Write(Put.ADD, KEY, VALUE)]


def test_a_changed_file_of_keys_is_followed_within_seconds(tmp_path: Path) -> None:
    clock, path = ManualClock(), written(tmp_path, "cell.keys", BOTH)
    auth = value_auth(Config(auth_store="require", keys_file=path), clock, ValueCounts())
    stored = {"old": signed(), "new": BY_NEWER, "both": BY_BOTH}

    def found() -> dict[str, tuple[bool, bool]]:
        items = {name: auth.checked({KEY: Item(value, 1, None)})[KEY] for name, value in stored.items()}
        return {name: (item.value == VALUE, item.outdated) for name, item in items.items()}

    assert found() == {"old": (True, True), "new": (True, True), "both": (True, False)}
    written(tmp_path, "cell.keys", NEWER)
    clock.advance(REREAD_S)
    assert found() == {"old": (False, True), "new": (True, False), "both": (True, True)}


def test_all_stores_that_the_settings_name_are_signed(tmp_path: Path) -> None:
    config = Config(auth_store="require", keys_file=written(tmp_path, "cell.keys", CELL_KEYS))
    [store] = open_memcached(config, "memory://", ManualClock())
    try:
        store.write([Write(Put.ADD, KEY, VALUE)])
        assert item_at(process_server(), KEY).value == signed()
        assert store.fetch([KEY])[KEY].value == VALUE
    finally:
        process_server().flush()


# -- cells ----------------------------------------------------------------------------------------


class SignedCell(OnePartitionCell):
    """A cell whose processes sign in a mode that may change, as by a restart."""

    def __init__(self, mode: str, designs: tuple[str, ...] = ("journal", "snapshot")) -> None:
        self.ring, self.mode, self.counts = FixedKeyring(CELL_KEYS), mode, ValueCounts()
        super().__init__(designs)

    def connection(self) -> SignedStore:
        return SignedStore(MemoryStore(self.server), ValueAuth(self.mode, self.ring, self.counts))

    def stores(self) -> Stores:
        return Stores([self.connection()])

    def restart_in(self, mode: str) -> None:
        self.consumer.close()
        self.mode, self.counts = mode, ValueCounts()
        self.consumer = self.another_consumer()
        self.step(8)

    def form(self) -> str:
        """The form of the values that a new reader needs: signed with all keys in force, unsigned, or mixed."""
        self.counts = counts = ValueCounts()
        mode, self.mode = self.mode, "accept"
        for design in self.config.designs:
            view = self.reader(design).read(max_age=5, on_stale="flag")
            assert (view.incomplete, set(view.nodes)) == (frozenset(), {"n", "quiet"})
        self.mode = mode
        forms = {"unsigned": counts.unsigned, "lacking a code": counts.lacking, "refused": counts.refused}
        forms["signed"] = counts.signed - counts.lacking
        return ", ".join(form for form, count in forms.items() if count)


def running_cell(mode: str) -> SignedCell:
    cell = SignedCell(mode)
    cell.publish("report", "quiet", state={"usage": {"VCPU": 1}})
    cell.publish("report", state={"usage": {"VCPU": 1}})
    cell.step(8)
    return cell


def test_a_cell_changes_to_signed_values_and_back_without_losing_one() -> None:
    """Also the values of nodes that do not change are written again, within seconds of the owner's start."""
    cell = running_cell("off")
    assert cell.form() == "unsigned"
    for mode in ("accept", "warn", "require", "off", "warn"):
        cell.restart_in(mode)
        assert cell.counts.refused == 0
        assert cell.form() == ("unsigned" if mode == "off" else "signed"), mode
    assert cell.consumer.stats.epochs_begun == 0
    repairs = cell.consumer.stats.repairs
    cell.step(8)
    assert cell.consumer.stats.repairs == repairs, "values are written again once"


def test_a_consumer_that_starts_without_signatures_marks_the_partition_as_unsigned() -> None:
    """Otherwise the signature of the epoch key would vouch for values that were written after it."""
    cell = running_cell("require")
    cell.restart_in("off")
    cell.publish(patch={"usage": {"VCPU": 2}})
    cell.step(2)
    cell.restart_in("accept")
    assert cell.form() == "signed"


def test_a_cell_changes_its_secret_without_a_refused_value() -> None:
    """The values have the codes of both secrets before the old one is revoked."""
    cell = running_cell("require")
    begun = cell.consumer.stats.epochs_begun
    for cell_keys, form in ((BOTH, "lacking a code"), (NEWER, "signed")):
        cell.ring.change(cell_keys)
        assert cell.form() == form
        cell.step(8)
        assert cell.counts.refused == 0
        assert cell.form() == "signed"
    assert cell.consumer.stats.epochs_begun == begun


@pytest.mark.parametrize("cause", ["a mode that signs", "the loss of all values"])
def test_a_secret_that_comes_while_values_are_written_is_in_all_of_them_in_the_end(cause: str) -> None:
    """Otherwise the epoch key would vouch for values that are refused once the old secret is revoked."""
    for moment in range(24):
        if cause == "a mode that signs":
            cell = running_cell("off")
            cell.consumer.close()
            cell.mode = "accept"
            cell.consumer = cell.another_consumer()
        else:
            cell = running_cell("accept")
            cell.server.flush()
        with key_change_at(cell, moment):
            cell.step(10)
        cell.ring.change(BOTH)
        cell.step(8)
        assert cell.form() == "signed", moment


@contextmanager
def key_change_at(cell: SignedCell, moment: int) -> Iterator[None]:
    """Let the other secret come while the server carries out this call of all reads and writes."""
    calls, write, fetch = iter(range(10**6)), cell.server.write, cell.server.fetch

    def at_write(writes: Sequence[Write]) -> list[WriteResult]:
        if next(calls) == moment:
            cell.ring.change(BOTH)
        return write(writes)

    def at_fetch(names: Sequence[Key], *, values_only: bool = False) -> dict[Key, Item]:
        if next(calls) == moment:
            cell.ring.change(BOTH)
        return fetch(names, values_only=values_only)

    cell.server.write, cell.server.fetch = at_write, at_fetch  # type: ignore[method-assign]  # of this server alone
    yield
    cell.server.write, cell.server.fetch = write, fetch  # type: ignore[method-assign]  # of this server alone


def test_values_are_written_again_if_the_only_key_that_signed_them_is_revoked() -> None:
    cell = running_cell("require")
    begun = cell.consumer.stats.epochs_begun
    cell.ring.change(NEWER)
    cell.step(8)
    assert cell.form() == "signed"
    assert cell.consumer.stats.epochs_begun == begun


PARTS: Final = {
    "journal": ("epoch", "head:", "life:", "log:", "ckpt:"),
    "snapshot": ("epoch", "head:", "node:", "index:"),
}


@pytest.mark.parametrize("design", PARTS)
def test_values_that_another_program_wrote_are_refused_and_written_again(design: str) -> None:
    """Each stored value in turn: unsigned, forged, and one that stood under another key."""
    cell, right = running_cell("require"), {"n": {"usage": {"VCPU": 1}}, "quiet": {"usage": {"VCPU": 1}}}
    cell.consumer.owned[0].request_repair(design)
    cell.step(4)
    for part in PARTS[design]:
        names = keys_with(cell.server, f":{design[0]}:{part}")
        assert names, part
        for key in names:
            there = item_at(cell.server, key)
            plain = there.value[HEADER_BYTES:]
            for wrong in (plain, signed(key, plain, new_cell_keys()), signed(f"{key}0", plain)):
                replace(cell.server, key, wrong, there.ttl_s)
                view = cell.reader(design).read(max_age=math.inf, on_stale="flag")
                assert all(view.nodes[name].state in ({}, right[name]) for name in view.nodes)
                cell.step(8)
                view = cell.reader(design).read(max_age=5, on_stale="flag")
                assert {name: node.state for name, node in view.nodes.items()} == right
                assert view.incomplete == frozenset()
    assert cell.counts.refused > 0


@pytest.mark.parametrize("part", ["j:log", "j:ckpt", "s:index"])
def test_a_value_that_stands_where_an_owner_will_write_is_replaced_and_fences_no_one(part: str) -> None:
    """The keys of the next commits can be foretold. The owner ended its session, or named a forged index."""
    cell, design = running_cell("require"), {"j": "journal", "s": "snapshot"}[part[0]]
    begun = cell.consumer.stats.epochs_begun
    [head_key] = keys_with(cell.server, f":{part[0]}:head:")
    epoch = head_key.split(":")[-1]
    for offset in range(20):
        name = f"{part}:{epoch}:1:{offset}"
        key = keys.prefix("cell1", 1, 0, part[0]).removesuffix(part[0]) + (name if "log" in part else f"{name}:0")
        cell.server.write([Write(Put.ADD, key, signed(f"{key}0", VALUE))])
    for number in range(2, 6):
        cell.publish(patch={"usage": {"VCPU": number}})
        cell.consumer.owned[0].request_repair(design)
        cell.step(4)
        view = cell.reader(design).read(max_age=5, on_stale="flag")
        assert (view.incomplete, view.nodes["n"].state["usage"]) == (frozenset(), {"VCPU": number})
    assert (cell.consumer.stats.fenced, cell.consumer.stats.epochs_begun) == (0, begun)


def test_an_outdated_control_record_is_written_again() -> None:
    server, config = MemoryServer(), Config()
    stores = [SignedStore(MemoryStore(server), auth_of(mode)) for mode in ("off", "accept")]
    control = record_from_settings(config, 1e9)
    for store in stores:
        records = control_store.ControlStore(config.cell, Stores([store]), ManualClock())
        copies = records.read()
        assert records.put_back(control, copies) == {}
    stored = item_at(server, keys.control("cell1")).value
    assert stored.startswith(SIGNED)
    assert CONTROL.unpack(stored[HEADER_BYTES:]) == control


# -- claims ---------------------------------------------------------------------------------------


def scheduler(server: MemoryServer, mode: str, name: str = "one") -> Party:
    """A scheduler of one node, which has read the node's claim record."""
    party = Party(name, [server], server.clock, wrap=lambda store: SignedStore(store, auth_of(mode)))
    party.look(ChangingPartition(host("a", vcpu=8)).view)
    return party


def test_a_scheduler_signs_the_claim_records_that_it_finds_unsigned() -> None:
    server = MemoryServer(clock=ManualClock())
    held = scheduler(server, "off").take("a", 2)
    assert isinstance(held, Claim)
    [key] = keys_with(server, ":claim:")
    assert not item_at(server, key).value.startswith(SIGNED)
    other = scheduler(server, "accept", "other")
    assert other.free("a") == 6
    assert other.claim_table.flush() == {"a": WriteStatus.STORED}
    stored = item_at(server, key).value
    assert stored.startswith(SIGNED)
    assert CLAIMS.unpack(stored[HEADER_BYTES:]).claims == (held,)
    again = scheduler(server, "require", "third")
    assert (again.free("a"), again.claim_table.edited) == (6, False)


def test_a_forged_claim_takes_no_room_and_an_honest_one_is_written_again() -> None:
    clock = ManualClock()
    server = MemoryServer(clock=clock)
    one = scheduler(server, "require")
    held = one.take("a", 2)
    assert isinstance(held, Claim)
    [key] = keys_with(server, ":claim:")
    forged = CLAIMS.pack(ClaimRecord(0.0, claims=(one.claim("a", 8),)))
    for wrong in (forged, signed(key, forged, new_cell_keys()), signed("ns:cell1:claim:b", forged)):
        clock.advance(1.0)
        replace(server, key, wrong)
        assert scheduler(server, "require", "other").free("a") == 8
        one.claim_table.reassert_own_claims()
        one.claim_table.flush()
        assert scheduler(server, "require", "other").free("a") == 6


def test_a_seed_of_an_affinity_group_is_signed() -> None:
    server, seed = MemoryServer(clock=ManualClock()), "node-1"
    stores = {mode: SignedStore(MemoryStore(server), auth_of(mode)) for mode in ("off", "require")}
    assert AffinitySeed("cell1", [stores["off"]]).claim_or_get("group", seed, 30).node == seed
    assert AffinitySeed("cell1", [stores["require"]]).claim_or_get("group", "node-2", 30).node == "node-2"
    assert AffinitySeed("cell1", [stores["off"]]).claim_or_get("group", "node-3", 30).node == "node-2"


# -- memcached and the doctor ---------------------------------------------------------------------


OLD: Final = CELL_KEYS.secrets[0].id


def test_doctor_counts_both_copies_of_claim_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(
        store="memcached://a:1,b:1,c:1", auth_store="warn", keys_file=written(tmp_path, "cell.keys", CELL_KEYS)
    )
    values, servers = value_auth(config, ManualClock(), ValueCounts()), [MemoryServer(f"m{n}") for n in range(3)]
    monkeypatch.setattr(value_checks, "open_claims", lambda *_: [SignedStore(MemoryStore(s), values) for s in servers])
    nodes = [f"n{number}" for number in range(9)]
    for key_of, copy in ((keys.claim, 0), (keys.claim_copy, 1)):
        for node in nodes:
            replace(
                servers[(partition_of(node, 3) + copy) % 3], key_of(config.cell, node), CLAIMS.pack(ClaimRecord(1.0))
            )
    [found] = examine_values(config, values, nodes)
    assert found.says.startswith("18 of 18 stored values are unsigned")


def test_doctor_counts_stored_values_by_their_signatures(tmp_path: Path) -> None:
    """The inspection has read a few values; the doctor itself reads the control record and the claims."""
    path = written(tmp_path, "cell.keys", CELL_KEYS)
    server, control = process_server(), CONTROL.pack(record_from_settings(Config(), 1e9))
    names = [keys.control("cell1"), *(keys.claim("cell1", f"n{number}") for number in range(3))]

    def examined(mode: str, file: str = path) -> list[tuple[str, str]]:
        config = Config(auth_store=mode, keys_file=file)
        found = examine_values(config, value_auth(config, ManualClock(), ValueCounts()), ["n0", "n1", "n2"])
        return [(one.level, one.says) for one in found]

    try:
        for name in names:
            replace(server, name, control)
        says = f"4 of 4 stored values are {{}}, for example {names[0]}"
        assert examined("off") == []
        assert examined("warn") == [(WARN, says.format("unsigned"))]
        assert examined("require") == [(FAIL, says.format("refused") + ": unsigned")]
        for name in names:
            replace(server, name, signed(name, control))
        assert examined("require") == [(OK, f"all 4 stored values are signed, with keys of {OLD}")]
        lacking = f"4 of 4 stored values lack the code of a secret, for example {names[0]}"
        assert examined("warn", written(tmp_path, "both.keys", BOTH)) == [(WARN, lacking)]
        replace(server, names[1], signed(names[0], control))
        says = f"1 of 4 stored values are refused, for example {names[1]}: bad-signature"
        assert examined("accept") == [(FAIL, says)]
    finally:
        server.flush()


@pytest.mark.service
def test_values_in_memcached_are_signed_and_a_moved_one_is_refused(memcached: MemcachedServer, tmp_path: Path) -> None:
    path = written(tmp_path, "cell.keys", CELL_KEYS)
    config = Config(store=f"memcached://{memcached.address}", auth_store="require", keys_file=path)
    names = ["ns:cell1:1.0:s:epoch", "ns:cell1:1.1:s:epoch"]
    with closing(open_memcached(config, config.store, SystemClock())[0]) as store:
        store.write([Write(Put.ADD, name, EPOCH.pack(number)) for number, name in enumerate(names)])
        assert [EPOCH.unpack(store.fetch(names)[name].value) for name in names] == [0, 1]
        with closing(MemcachedStore(memcached.address, timeout_s=5.0)) as other:
            found = other.fetch(names)
            other.write([Write(Put.CAS, names[1], found[names[0]].value, found[names[1]].cas)])
        found = store.fetch(names)
        assert (EPOCH.unpack(found[names[0]].value), found[names[1]].value) == (0, REFUSED["bad-signature"])
        [written_again] = store.write([Write(Put.CAS, names[1], EPOCH.pack(1), found[names[1]].cas)])
        assert written_again.status is WriteStatus.STORED
        assert EPOCH.unpack(store.fetch(names)[names[1]].value) == 1
