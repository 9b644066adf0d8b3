"""Signed control records: the four modes, the keys, and cells in which a program forges records."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from nodestate.auth.followed_file import REREAD_S
from nodestate.auth.key_file import write_keys
from nodestate.auth.operator_keys import KeyPairs, with_new_pair, without_pair
from nodestate.config import Config
from nodestate.designs.control import (
    CONTROL,
    Control,
    cut_over,
    dated,
    prepared,
    record_from_settings,
    renewed,
    rolled_back,
)
from nodestate.designs.control_auth import ControlAuth, control_auth
from nodestate.designs.control_store import ControlStore, newest
from nodestate.designs.reader import Reader
from nodestate.errors import ConfigError, CorruptItemError
from nodestate.findings.design_checks import examine_copies, examine_record
from nodestate.findings.finding import FAIL, OK, WARN
from nodestate.ports import Put, Write
from nodestate.store import keys
from nodestate.store.round_trips import Stores
from nodestate.store.wire import ENVELOPE_BYTES, seal
from nodestate.testing import ManualClock, MemoryServer, MemoryStore
from tests.fuzz.mutation import mutated
from tests.operator_keys import CREATED_AT, control_settings, new_pairs
from tests.planted_values import content, replace, sealed
from tests.switched_cell import K, SwitchedCell

KEY = keys.control("cell1")
MODES = ("off", "accept", "warn", "require")


@pytest.fixture(scope="module")
def pairs() -> KeyPairs:
    return new_pairs()


@pytest.fixture
def required(tmp_path: Path, pairs: KeyPairs) -> dict[str, str]:
    return control_settings(tmp_path, "require", pairs)


def auth_of(settings: dict[str, str], **more: Any) -> ControlAuth:
    return control_auth(Config(**settings), ManualClock(), **more)


def signed_by(directory: Path, control: Control, pairs: KeyPairs | None = None, key: str = KEY) -> bytes:
    """The stored value of a record with the signature of a key pair."""
    other = directory / "signing"
    other.mkdir(exist_ok=True)
    settings = control_settings(other, "accept", pairs)
    cell = pairs[0].cell if pairs is not None else "cell1"
    return auth_of({**settings, "cell": cell}, signs=True).seal(key, control)


def changed(value: bytes) -> bytes:
    """The value with another author."""
    return seal(value[ENVELOPE_BYTES:].replace(b"operator", b"intruder"))


def stored(server: MemoryServer) -> bytes:
    return server.fetch([KEY])[KEY].value


# -- the modes ------------------------------------------------------------------------------------

START = Control(3, (K("journal"),), K("journal"), None, "operator")
FORGERIES: dict[str, Callable[[Path, KeyPairs], bytes]] = {
    "signed": lambda tmp_path, pairs: signed_by(tmp_path, START, pairs),
    "unsigned": lambda _tmp_path, _pairs: CONTROL.pack(START),
    "signature removed": lambda tmp_path, pairs: CONTROL.pack(
        CONTROL.unpack(signed_by(tmp_path, START, pairs)).with_signature("")
    ),
    "other key": lambda tmp_path, _pairs: signed_by(tmp_path, START),
    "changed byte": lambda tmp_path, pairs: changed(signed_by(tmp_path, START, pairs)),
    "other cell": lambda tmp_path, pairs: signed_by(tmp_path, START, pairs, keys.control("cell2")),
    "no signature at all": lambda _tmp_path, _pairs: CONTROL.pack(START.with_signature("x")),
    "no hexadecimal digits": lambda _tmp_path, pairs: CONTROL.pack(
        START.with_signature(pairs[1].keys[0].id + "z" * 128)
    ),
}
TAKEN = {"signed": MODES, "unsigned": MODES[:3], "signature removed": MODES[:3]}


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_takes_and_counts_records_by_their_signature(mode: str, tmp_path: Path, pairs: KeyPairs) -> None:
    settings = control_settings(tmp_path, mode, pairs)
    for name, forge in FORGERIES.items():
        auth, value = auth_of(settings), forge(tmp_path, pairs)
        for _ in range(2):  # a second reading of the same value counts nothing
            taken = not auth.refusal(KEY, CONTROL.unpack(value), value)
        assert taken == (mode in TAKEN.get(name, ("off",))), name
        is_unsigned = name in {"unsigned", "signature removed"}
        assert (auth.unsigned, auth.refused) == (int(taken and is_unsigned and mode != "off"), int(not taken)), name


def test_a_record_of_which_any_byte_was_changed_is_refused(required: dict[str, str]) -> None:
    value = auth_of(required, signs=True).seal(KEY, dated(START, CREATED_AT, "cutover journal"))
    auth = auth_of(required)
    assert not auth.refusal(KEY, CONTROL.unpack(value), value)
    payload = bytearray(value[ENVELOPE_BYTES:])
    for at in range(len(payload)):
        payload[at] ^= 1
        forged = seal(bytes(payload))
        payload[at] ^= 1
        try:
            control = CONTROL.unpack(forged)
        except CorruptItemError:
            continue
        assert auth.refusal(KEY, control, forged), at


def test_no_mutation_of_a_signed_record_is_taken(required: dict[str, str]) -> None:
    """Fields that are added, left out or exchanged, and values at the limits."""
    auth, data = auth_of(required, signs=True), Random(1)
    value = auth.seal(KEY, dated(prepared(START, K("snapshot"), "operator"), CREATED_AT, "prepare snapshot"))
    reached = 0
    for _ in range(300):
        forged = sealed(mutated(data, content(value)))
        try:
            control = CONTROL.unpack(forged)
        except CorruptItemError:
            continue
        reached += forged != value
        assert bool(auth.refusal(KEY, control, forged)) == (forged != value)
    assert reached > 20


def test_in_mode_warn_the_record_stays_signed_once_it_was(tmp_path: Path, pairs: KeyPairs) -> None:
    auth = auth_of(control_settings(tmp_path, "warn", pairs))
    unsigned, signed = CONTROL.pack(START), signed_by(tmp_path, START, pairs)
    with capture_logs() as logs:
        assert not auth.refusal(KEY, CONTROL.unpack(unsigned), unsigned)
    assert [log["remedy"] for log in logs] == ["nodestate design sign"]
    assert not auth.refusal(KEY, CONTROL.unpack(signed), signed)
    assert "although" in auth.refusal(KEY, CONTROL.unpack(unsigned), unsigned)
    assert (auth.unsigned, auth.refused) == (1, 1)


def test_a_process_in_mode_accept_without_keys_takes_and_counts_all(tmp_path: Path, pairs: KeyPairs) -> None:
    auth = auth_of({"auth_control": "accept"})
    for name in ("signed", "unsigned", "other key"):
        value = FORGERIES[name](tmp_path, pairs)
        assert not auth.refusal(KEY, CONTROL.unpack(value), value)
    assert (auth.unsigned, auth.refused) == (3, 0)


def test_keys_are_replaced_and_revoked_while_a_process_runs(tmp_path: Path, pairs: KeyPairs) -> None:
    settings, clock = control_settings(tmp_path, "require", pairs), ManualClock()
    auth = control_auth(Config(**settings), clock)
    both = with_new_pair(pairs, CREATED_AT)
    old, new = signed_by(tmp_path, START, pairs), signed_by(tmp_path, START, both)

    def faults(public: Any) -> list[str]:
        write_keys(settings["control_keys_file"], public, replace=True, is_secret=False)
        clock.advance(REREAD_S)
        return [auth.refusal(KEY, CONTROL.unpack(value), value) for value in (old, new)]

    before = faults(pairs[1])
    assert (before[0], "does not have" in before[1]) == ("", True)
    assert faults(both[1]) == ["", ""]
    after = faults(without_pair(both, pairs[1].keys[0].id, CREATED_AT)[1])
    assert ("revoked" in after[0], after[1]) == (True, "")
    path = Path(settings["control_keys_file"])
    path.write_text("{")
    clock.advance(REREAD_S)
    assert not auth.refusal(KEY, CONTROL.unpack(new), new)
    write_keys(str(path), pairs[1], replace=True, is_secret=False)
    path.chmod(0o666)
    clock.advance(REREAD_S)
    assert not auth.refusal(KEY, CONTROL.unpack(new), new), "other users can write the file, so it is not read"
    path.chmod(0o644)
    clock.advance(REREAD_S)
    assert "does not have" in auth.refusal(KEY, CONTROL.unpack(new), new)


# -- settings and keys ----------------------------------------------------------------------------


def test_a_process_that_requires_signatures_needs_keys_and_the_package(
    required: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="control_keys_file"):
        Reader(Config(auth_control="require"))
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.ed25519", None)
    for process in (lambda: Reader(Config(**required)), lambda: SwitchedCell(control_settings=required)):
        with pytest.raises(ConfigError, match=r"pip install 'nodestate\[ed25519\]'"):
            process()
    Reader(Config(**required), design="journal")  # it does not read the record


def test_files_of_keys_that_others_could_read_or_write_are_refused(required: dict[str, str], tmp_path: Path) -> None:
    assert Path(required["operator_key_file"]).stat().st_mode & 0o777 == 0o600
    assert Path(required["control_keys_file"]).stat().st_mode & 0o777 == 0o644
    Path(required["operator_key_file"]).chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        auth_of(required, signs=True)
    Path(required["control_keys_file"]).chmod(0o666)
    with pytest.raises(ConfigError, match="chmod go-w"):
        auth_of(required)
    with pytest.raises(ConfigError, match="cell 'cell2'"):
        auth_of(control_settings(tmp_path, "require", new_pairs("cell2")))


def test_a_change_that_other_processes_would_refuse_is_not_made(tmp_path: Path, pairs: KeyPairs) -> None:
    settings = control_settings(tmp_path, "warn", pairs)
    server = MemoryServer()
    places = ControlStore("cell1", Stores([MemoryStore(server)]), auth=auth_of(settings))
    places.put_back(START, places.read(), signed_by(tmp_path, START, pairs))
    before = stored(server)
    with pytest.raises(ConfigError, match="operator_key_file"):
        places.change(places.read(), renewed(START, "me"))
    write_keys(settings["operator_key_file"], new_pairs()[0], replace=True)
    places.auth = auth_of(settings, signs=True)
    with pytest.raises(ConfigError, match="control_keys_file"):
        places.change(places.read(), renewed(START, "me"))
    assert stored(server) == before


# -- a cell ---------------------------------------------------------------------------------------


def began(required: dict[str, str], **more: Any) -> SwitchedCell:
    """A cell that requires signatures, whose operator has made the first record."""
    world = SwitchedCell(control_settings=required, **more)
    first = record_from_settings(world.config, world.clock.time())
    assert world.operator.begin(dated(first, world.clock.time(), "sign"), world.operator.read())
    world.run_well(30)
    assert world.reader.read(max_age=5.0).design == "journal"
    return world


def test_consumers_that_require_signatures_wait_for_the_operators_first_record(required: dict[str, str]) -> None:
    """A record from a consumer's settings would be unsigned."""
    with capture_logs() as logs:
        world = SwitchedCell(control_settings=required, servers=1)
    assert [member.runs.control for member in world.members] == [None, None]
    assert newest(world.operator.read()) is None
    assert any("nodestate design sign" in str(log.get("reason")) for log in logs)
    assert [one.level for one in examine_record(world.config, world.operator.read())] == [FAIL]


def test_consumers_put_a_lost_record_back_with_its_signature(required: dict[str, str]) -> None:
    world = began(required)
    before = stored(world.servers[0])
    world.restart_server(0)
    world.run_well(4)
    assert [stored(server) for server in world.servers] == [before] * len(world.servers)


def test_a_record_whose_key_is_revoked_stays_as_it_is_until_it_is_signed_again(
    required: dict[str, str], pairs: KeyPairs
) -> None:
    """Consumers go on with it. They do not write it again and again, although they refuse the stored one."""
    world = began(required, servers=1)
    both = with_new_pair(pairs, CREATED_AT)
    write_keys(required["control_keys_file"], without_pair(both, pairs[1].keys[0].id, CREATED_AT)[1], replace=True)
    world.run_well(REREAD_S + 2)
    before = world.servers[0].fetch([KEY])[KEY]
    world.run_well(3)
    assert world.servers[0].fetch([KEY])[KEY].cas == before.cas
    assert [copy.is_refused for copy in world.operator.read()] == [True]
    assert all(member.runs.control is not None for member in world.members)
    assert world.reader.read(max_age=5.0).design == "journal"
    write_keys(required["operator_key_file"], both[0], replace=True)
    signing = ControlStore("cell1", world.fresh_stores(), world.clock, auth_of(required, signs=True).without_checks())
    known = newest(signing.read())
    assert known is not None
    world.operator = signing
    world.take(dated(renewed(known, "operator"), world.clock.time(), "sign"))
    assert [member.runs.control.key_id for member in world.members] == [both[1].keys[1].id] * 2


def test_no_process_follows_a_forged_record_and_consumers_replace_it(
    required: dict[str, str], tmp_path: Path, pairs: KeyPairs
) -> None:
    world = began(required, servers=1)
    world.take(dated(prepared(world.record, K("snapshot"), "operator"), world.clock.time()))
    world.run_well(20)
    before, layouts, value = world.record, dict(world.broker.layouts), stored(world.servers[0])
    intrusion = Control(before.version + 5, (K("journal@3"),), K("journal@3"), None, "operator")
    forgeries = {
        "unsigned": CONTROL.pack(intrusion),
        "other key": signed_by(tmp_path, intrusion),
        "other cell": signed_by(tmp_path, intrusion, pairs, keys.control("cell2")),
        "changed": changed(signed_by(tmp_path, intrusion, pairs)),
        "by a consumer of an earlier version": CONTROL.pack(before.with_signature("")),
        "unknown design": CONTROL.pack(msgspec.structs.replace(intrusion, writes=(K("journal@3"), ("tape", 3)))),
    }
    for number, (name, forged) in enumerate(forgeries.items(), 1):
        replace(world.servers[0], KEY, forged)
        assert world.reader.read(max_age=5.0).design == "journal", name
        [refused] = examine_copies("cell1", world.operator.read())
        assert (refused.level, "design sign" in refused.advice) == (FAIL, True), name
        world.run_well(4)
        assert (world.record, stored(world.servers[0]), world.broker.layouts) == (before, value, layouts), name
        assert world.members[0].runs.stats.refused_controls == number, name
    assert not world.reader.read(max_age=5.0).incomplete
    world.take(dated(cut_over(world.record, K("snapshot"), "operator"), world.clock.time(), "cutover snapshot"))
    assert world.reader.read(max_age=5.0).design == "snapshot"
    [found] = examine_record(world.config, world.operator.read())
    assert (found.level, "'nodestate design cutover snapshot'" in found.says) == (OK, True)


def test_an_earlier_signed_record_is_no_way_back_for_processes_that_know_a_later_one(required: dict[str, str]) -> None:
    """A process that starts cannot know; the consumers of the cell replace the record within a second."""
    world = began(required)
    earlier = stored(world.servers[0])
    world.take(dated(prepared(world.record, K("snapshot"), "operator"), world.clock.time()))
    world.run_well(20)
    world.take(dated(cut_over(world.record, K("snapshot"), "operator"), world.clock.time()))
    before = world.record
    assert world.reader.read(max_age=5.0).design == "snapshot"
    replace(world.servers[1], KEY, earlier)
    replayed = [one for one in examine_record(world.config, world.operator.read()) if one.level == WARN]
    assert [one.about for one in replayed] == [f"store {world.servers[1].name}"]
    replace(world.servers[0], KEY, earlier)
    assert world.reader.read(max_age=5.0).design == "snapshot"
    world.run_well(4)
    assert world.record == before
    assert [member.runs.control for member in world.members] == [before, before]


def test_a_new_consumer_does_not_overrule_a_record_that_it_refuses(tmp_path: Path, required: dict[str, str]) -> None:
    """Its file of public keys may be older than the operator's key. A record from its settings would be the newest."""
    world = SwitchedCell(control_settings={**required, "auth_control": "accept"}, servers=1)
    for member in list(world.members):
        member.die()
    value = signed_by(tmp_path, START)
    replace(world.servers[0], KEY, value)
    newcomer = world.start_member([0, 1], [])
    for _ in range(3):
        newcomer.step()
    assert (newcomer.runs.control, stored(world.servers[0])) == (None, value)


def test_a_cell_goes_from_unsigned_to_signed_records_and_back(required: dict[str, str]) -> None:
    """In the modes accept and warn, both kinds are followed, so processes change their mode one by one."""
    world = SwitchedCell(control_settings={**required, "auth_control": "accept"}, servers=1)
    assert not world.record.signature
    [found] = examine_record(world.config, world.operator.read())
    assert (found.level, found.advice) == (WARN, "nodestate design sign")
    world.take(dated(renewed(world.record, "operator"), world.clock.time(), "sign"))
    assert world.record.signature
    strict = Config(partitions=2, designs=("journal",), read_design="journal", **required)
    reader = Reader(strict, stores=world.fresh_stores(), clock=world.clock)
    assert reader.read(max_age=5.0).design == "journal"
    assert reader._control == world.record
    world.operator.auth = ControlAuth()
    world.take(dated(prepared(world.record, K("snapshot"), "operator"), world.clock.time()))
    assert not world.record.signature
    assert [member.runs.control for member in world.members] == [world.record] * 2
    reader.read(max_age=5.0)
    assert reader._control != world.record


MOVES = ["forge", "replay", "strip", "flush", "switch", "wait"]


@pytest.mark.thorough
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    moves=st.lists(
        st.tuples(st.sampled_from(["forge", "replay", "strip", "flush", "switch", "wait"]), st.integers(0, 99))
    )
)
def test_processes_follow_only_signed_records_and_never_go_back(
    moves: list[tuple[str, int]], required: dict[str, str], tmp_path: Path
) -> None:
    """Whatever a program writes into the stores, and whenever."""
    world = began(required)
    written = {stored(world.servers[0])}
    honest = {world.record}
    seen: dict[int, int] = {}
    for kind, number in moves:
        server = world.servers[number % len(world.servers)]
        if kind == "forge":
            control = Control(number, (K("journal@3"),), K("journal@3"))
            forged = [
                CONTROL.pack(control),
                signed_by(tmp_path, control),
                b"x",
                CONTROL.pack(control.with_signature("y")),
            ]
            plant(server, forged[number % 4])
        elif kind == "strip":
            plant(server, CONTROL.pack(next(iter(honest)).with_signature("")))
        elif kind == "replay":
            plant(server, sorted(written)[number % len(written)])
        elif kind == "flush":
            server.flush()
        elif kind == "switch":
            found = world.operator.read()
            known = newest(found)
            if known is not None and found[0].control == known:
                steps = [prepared(known, K("snapshot"), "me"), rolled_back(known, "me"), renewed(known, "me")]
                if world.operator.change(found, dated(steps[number % 3], world.clock.time())):
                    written.add(stored(world.servers[0]))
                    honest.add(CONTROL.unpack(stored(world.servers[0])))
        else:
            world.run_well(1 + number % 3)
        world.reader.read(max_age=60.0, on_stale="flag")
        for follower, control in enumerate([*(member.runs.control for member in world.members), world.reader._control]):
            assert control in honest
            assert control is not None
            assert control.version >= seen.get(follower, 0)
            seen[follower] = control.version


def plant(server: MemoryServer, value: bytes) -> None:
    """Store a value as any program can."""
    server.flush()
    server.write([Write(Put.ADD, KEY, value)])
