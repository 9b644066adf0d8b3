"""Signatures of events, orders and answers: a node speaks for itself alone, and no changed byte passes."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from nodestate.agent.publisher import Publisher
from nodestate.auth import EventAuth, MessageAuth, OrderAuth, event_auth, order_auth
from nodestate.auth.followed_file import REREAD_S
from nodestate.auth.key_file import Keyring, read_keys
from nodestate.auth.keys import CellKeys, NodeKeys
from nodestate.auth.signatures import BLOCK_BYTES, FIELD_BYTES, Mac
from nodestate.config import Config
from nodestate.consumers.handover_messages import handover_messages, signed_handover
from nodestate.consumers.partition import OwnedPartition
from nodestate.consumers.pending_work import Pending
from nodestate.consumers.statistics import EventCounts
from nodestate.consumers.watermarks import Watermarks
from nodestate.errors import BadEventError, ConfigError
from nodestate.model import Report, event_from_json, parse_event
from nodestate.model.orders import MAX_ORDER_BYTES, Answer, Build, End, Order, decode_answer, decode_order
from nodestate.model.presence import Presence, decode_presence
from nodestate.ports import Delivery
from nodestate.ports.ids import SystemIds
from nodestate.scheduling.orders.order_sender import OrderSender
from nodestate.testing import ManualClock
from tests.cell_keys import FixedKeyring, new_cell_keys, rotated, with_revoked, without_oldest, written
from tests.machines.simulated_cell import JudgedReader, SimulatedCell
from tests.recording_sink import RecordingSink

NOW_S: Final = 1_763_787_600
CELL_KEYS: Final = new_cell_keys()
OTHER_CELL_KEYS: Final = new_cell_keys()
MODES: Final = ("off", "accept", "warn", "require")
CHECKING: Final = ("accept", "warn", "require")
WATERMARKS = Watermarks(b"the owner's key")


def node_ring(*nodes: str, keys: CellKeys = CELL_KEYS) -> FixedKeyring:
    return FixedKeyring(keys.node_keys(nodes))


def events_of(ring: Keyring | None, mode: str = "require") -> MessageAuth:
    return EventAuth(mode, ring).events


def event(node: str = "n1", generation: int = 1, **more: Any) -> bytes:
    fields = {"kind": "report", "node": node, "incarnation": NOW_S, "generation": generation, "reported_at": NOW_S}
    return msgspec.msgpack.encode({**fields, "state": {"zone": "z"}, **more})


def checked(auth: MessageAuth, body: bytes) -> bytes:
    """Check an event as a consumer does."""
    parsed = parse_event(body)
    return auth.check(parsed.node, body, parsed.signature)


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(BadEventError) as caught:
        act()
    return caught.value.reason


# -- events ---------------------------------------------------------------------------------------


@given(st.binary(max_size=BLOCK_BYTES), st.lists(st.binary(max_size=200), min_size=2, max_size=2))
def test_codes_are_those_of_hmac_sha256(key: bytes, messages: list[bytes]) -> None:
    mac = Mac(key)
    assert [mac.digest(message) for message in messages] == [hmac.digest(key, one, "sha256") for one in messages]


@pytest.mark.parametrize("more", [{}, {f"later-{n}": n for n in range(8)}, {f"later-{n}": n for n in range(30)}])
def test_a_signed_event_is_taken_and_stored_as_it_was_before(more: dict[str, Any]) -> None:
    """Fields of later versions may give the header of the map another form."""
    body = event(**more)
    signed = events_of(node_ring("n1")).sign("n1", body)
    assert len(signed) - len(body) in (FIELD_BYTES, FIELD_BYTES + 2)
    stored = checked(events_of(FixedKeyring(CELL_KEYS)), signed)
    assert msgspec.msgpack.decode(stored) == msgspec.msgpack.decode(body)


SIGNED: Final = events_of(node_ring("n1")).sign("n1", event())


@given(st.integers(0, len(SIGNED) - 1), st.integers(1, 255))
def test_an_event_of_which_any_byte_was_changed_is_refused(place: int, change: int) -> None:
    changed = bytearray(SIGNED)
    changed[place] ^= change
    for mode in CHECKING:
        auth = events_of(FixedKeyring(CELL_KEYS), mode)
        auth._signers.add("n1")
        try:
            taken = checked(auth, bytes(changed))
        except BadEventError:
            continue
        # Only a changed name of the field makes it a field of a later version. Then the event is unsigned.
        assert mode == "accept"
        assert msgspec.msgpack.decode(taken).keys() != msgspec.msgpack.decode(SIGNED).keys()


@given(st.binary(max_size=60), st.integers(0, len(SIGNED)))
def test_an_event_with_bytes_inserted_or_cut_off_is_refused(more: bytes, place: int) -> None:
    auth = events_of(FixedKeyring(CELL_KEYS))
    for changed in (SIGNED[:place] + more + SIGNED[place:], SIGNED[:place] + more):
        if changed != SIGNED:
            with pytest.raises(BadEventError):
                checked(auth, changed)


@pytest.mark.parametrize("mode", CHECKING)
def test_a_node_cannot_speak_for_another_node(mode: str) -> None:
    body = event("n2")
    stolen = events_of(node_ring("n1"), mode)
    stolen._keyring = FixedKeyring(NodeKeys(cell="cell1", nodes={"n2": CELL_KEYS.node_keys(("n1",)).nodes["n1"]}))
    assert (
        refusal(lambda: checked(events_of(FixedKeyring(CELL_KEYS), mode), stolen.sign("n2", body))) == "bad-signature"
    )


@pytest.mark.parametrize("mode", CHECKING)
def test_keys_of_another_secret_or_another_cell_are_refused(mode: str) -> None:
    auth = events_of(FixedKeyring(CELL_KEYS), mode)
    same_secret = msgspec.structs.replace(CELL_KEYS, cell="cell2")
    for keys in (OTHER_CELL_KEYS, same_secret):
        signed = events_of(node_ring("n1", keys=keys)).sign("n1", event())
        assert refusal(lambda signed=signed: checked(auth, signed)) == "bad-signature"


def test_modes_treat_unsigned_events_as_their_table_says() -> None:
    for mode in ("off", "accept", "warn"):
        auth = events_of(FixedKeyring(CELL_KEYS), mode)
        with capture_logs() as logs:
            assert checked(auth, event()) == event()
        assert auth.unsigned == (mode != "off")
        assert len(logs) == (mode == "warn")
    assert refusal(lambda: checked(events_of(FixedKeyring(CELL_KEYS)), event())) == "unsigned"


def test_without_checking_signed_events_are_taken_and_stored_without_their_signature() -> None:
    """A consumer may be switched on after the agents, and off before them."""
    for auth in (events_of(None, "off"), events_of(FixedKeyring(CELL_KEYS), "off"), events_of(None, "accept")):
        assert checked(auth, SIGNED) == event()
        assert auth.sign("n1", event()) == event()


def test_in_mode_warn_a_node_that_has_signed_must_sign_from_then_on() -> None:
    auth = events_of(FixedKeyring(CELL_KEYS), "warn")
    assert checked(auth, event()) == event()
    checked(auth, SIGNED)
    assert refusal(lambda: checked(auth, event())) == "unsigned"
    assert checked(auth, event("n2")) == event("n2")


def test_a_revoked_key_is_refused_and_a_key_of_the_next_secret_is_taken() -> None:
    ring = FixedKeyring(CELL_KEYS)
    auth = events_of(ring)
    checked(auth, SIGNED)
    ring.change(with_revoked(CELL_KEYS, "n1"))
    assert refusal(lambda: checked(auth, SIGNED)) == "bad-signature"
    assert refusal(lambda: checked(events_of(ring, "warn"), event())) == "unsigned"
    other = events_of(node_ring("n2")).sign("n2", event("n2"))
    assert checked(auth, other) == event("n2")
    after = rotated(with_revoked(CELL_KEYS, "n1"))
    ring.change(after)
    assert [len(own) for own in after.node_keys(("n1", "n2")).nodes.values()] == [1, 2]
    renewed = events_of(node_ring("n1", keys=after)).sign("n1", event())
    assert checked(auth, renewed) == event()
    assert refusal(lambda: checked(auth, SIGNED)) == "bad-signature"


def test_a_cell_changes_its_secret_without_a_refused_message() -> None:
    """The file of the cell comes first, then the files of the nodes, one by one; then the old secret goes."""
    consumer, scheduler = FixedKeyring(CELL_KEYS), FixedKeyring(CELL_KEYS)
    agents = {name: node_ring(name) for name in ("n1", "n2")}

    def all_agree() -> None:
        for name, ring in agents.items():
            assert checked(events_of(consumer), events_of(ring).sign(name, event(name))) == event(name)
            exchange(OrderAuth("require", scheduler), OrderAuth("require", ring), name)

    all_agree()
    both = rotated(CELL_KEYS)
    consumer.change(both)
    all_agree()
    scheduler.change(both)
    all_agree()
    for name, ring in agents.items():
        ring.change(both.node_keys((name,)))
        all_agree()
    newest = without_oldest(both)
    consumer.change(newest)
    all_agree()
    scheduler.change(newest)
    all_agree()
    for name, ring in agents.items():
        ring.change(newest.node_keys((name,)))
        all_agree()
    assert refusal(lambda: checked(events_of(consumer), SIGNED)) == "bad-signature"


def test_events_of_a_publisher_are_signed_with_the_key_of_its_node(tmp_path: Path) -> None:
    path = written(tmp_path, "n1.keys", CELL_KEYS.node_keys(("n1",)))
    sink, clock = RecordingSink(), ManualClock()
    config = Config(auth_events="require", keys_file=path)
    publisher = Publisher(config, "n1", sink=sink, inbox=sink, clock=clock, incarnation=NOW_S)
    publisher.report({"zone": "a"})
    publisher.change({"zone": "b"})
    publisher.heartbeat()
    publisher.answer_census("queue")
    publisher.leave()
    auth = events_of(FixedKeyring(CELL_KEYS))
    for body in [body for _, body in (*sink.sent, *sink.census)]:
        checked(auth, body)
    assert len(sink.sent) == 4


def test_an_event_in_json_may_carry_its_signature() -> None:
    fields = msgspec.msgpack.decode(SIGNED)
    assert checked(events_of(FixedKeyring(CELL_KEYS)), event_from_json(msgspec.json.encode(fields))) == event()


# -- consumers ------------------------------------------------------------------------------------


def taken(auth: EventAuth, *bodies: bytes) -> tuple[Pending, EventCounts, OwnedPartition]:
    """Fold messages as the owner of the only partition."""
    partition, counts = OwnedPartition(0, {}, 0.0), EventCounts()
    partition.backlog.extend(Delivery(0, body, number, 1) for number, body in enumerate(bodies))
    return partition.take_batch(NOW_S, 1, 100_000, WATERMARKS, counts, auth), counts, partition


def test_a_forged_event_is_a_dead_letter_and_changes_nothing() -> None:
    """Not even the newest version that is known to exist: a forger could make any node incomplete."""
    forged = event("n1", 2)
    wrong = bytearray(events_of(node_ring("n1")).sign("n1", event("n1", 3)))
    wrong[-1] ^= 1
    pending, counts, partition = taken(EventAuth("require", FixedKeyring(CELL_KEYS)), SIGNED, forged, bytes(wrong))
    assert [(delivery.body, error.reason) for delivery, error in pending.bad] == [
        (forged, "unsigned"),
        (bytes(wrong), "bad-signature"),
    ]
    assert [(record.name, record.generation, record.wanted_generation) for record in partition.records] == [
        ("n1", 1, 1)
    ]
    assert pending.batch.events == (event(),)
    assert counts.dead_letters == {"unsigned": 1, "bad-signature": 1}


def test_consumers_count_the_unsigned_events_that_they_take() -> None:
    _, counts, _ = taken(EventAuth("accept", FixedKeyring(CELL_KEYS)), SIGNED, event("n2"), event("n3"))
    assert counts.unsigned == 2


def test_only_consumers_can_hand_nodes_over() -> None:
    report = parse_event(event())
    assert isinstance(report, Report)
    _, _, before = taken(EventAuth(), event())
    [message] = handover_messages(before.records, 10_000)
    consumers = EventAuth("require", FixedKeyring(CELL_KEYS))
    signed = signed_handover(message, 0, consumers.handovers)
    assert taken(consumers, signed)[2].records == before.records
    assert taken(EventAuth(), signed)[2].records == before.records
    agent = EventAuth("require", node_ring("n1"))
    for forged, reason in [
        (message, "unsigned"),
        (signed_handover(message, 0, agent.handovers), "unsigned"),
        (signed_handover(message, 1, consumers.handovers), "bad-signature"),
        (signed_handover(message, 0, EventAuth("require", FixedKeyring(OTHER_CELL_KEYS)).handovers), "bad-signature"),
    ]:
        pending, _, partition = taken(consumers, forged)
        assert ([error.reason for _, error in pending.bad], partition.records) == ([reason], [])


def test_a_cell_that_requires_signatures_takes_signed_events_and_no_others(tmp_path: Path) -> None:
    path = written(tmp_path, "cell.keys", CELL_KEYS)
    world = SimulatedCell(config=Config(partitions=1, auth_events="require", keys_file=path))
    world.start_member([0], [])
    world.readers = [JudgedReader(world, design) for design in world.config.designs]
    world.start_agent("n1", {"zone": "true"})
    world.run_well(60)
    version = world.agents["n1"].publisher.version
    fields = {"incarnation": version.incarnation, "reported_at": world.clock.time(), "state": {"zone": "false"}}
    world.poisoned(0, event("n1", version.generation + 1, **fields))
    world.poisoned(0, event("n9", **fields))
    world.run_well(5)
    assert [letter.reason for letter in world.broker.dead_letters] == ["unsigned", "unsigned"]
    for reader in world.readers:
        view = reader.read(5.0)
        assert (list(view.nodes), view.nodes["n1"].state, view.incomplete) == (["n1"], {"zone": "true"}, set())
    assert world.converge() < 5


# -- orders and answers ---------------------------------------------------------------------------


def build(node: str = "n1", **more: Any) -> Build:
    given_fields = {"resources": {"VCPU": 1}, "deadline": NOW_S + 5.0, "reply_to": "box", **more}
    return Build(id="order-1", node=node, instance="vm-1", **given_fields)


def exchange(scheduler: OrderAuth, agent: OrderAuth, node: str = "n1") -> None:
    """Send an order and an answer between the two; raises ``BadEventError`` if one refuses."""
    body = scheduler.encode_order(build(node))
    agent.check_order(decode_order(body), body)
    back = agent.encode_answer(Answer(id="order-1", node=node, instance="vm-1", incarnation=NOW_S, generation=2))
    scheduler.check_answer(decode_answer(back), back)


SCHEDULER: Final = OrderAuth("require", FixedKeyring(CELL_KEYS))
AGENT: Final = OrderAuth("require", node_ring("n1"))
SIGNED_ORDER: Final = SCHEDULER.encode_order(build())
SIGNED_ANSWER: Final = AGENT.encode_answer(
    Answer(id="order-1", node="n1", instance="vm-1", incarnation=1, generation=2)
)


def test_orders_answers_and_presences_pass_between_a_scheduler_and_agents_of_the_node() -> None:
    exchange(SCHEDULER, AGENT)
    body = AGENT.encode_presence(Presence(node="n1", incarnation=NOW_S, life="a"))
    presence = decode_presence(body)
    assert presence is not None
    AGENT.check_presence(presence, body)


@given(st.integers(0, len(SIGNED_ORDER) - 1), st.integers(1, 255))
def test_an_order_of_which_any_byte_was_changed_is_refused(place: int, change: int) -> None:
    changed = bytearray(SIGNED_ORDER)
    changed[place] ^= change
    with pytest.raises(BadEventError):
        AGENT.check_order(decode_order(bytes(changed)), bytes(changed))


@given(st.integers(0, len(SIGNED_ANSWER) - 1), st.integers(1, 255))
def test_an_answer_of_which_any_byte_was_changed_is_refused(place: int, change: int) -> None:
    changed = bytearray(SIGNED_ANSWER)
    changed[place] ^= change
    with pytest.raises(BadEventError):
        SCHEDULER.check_answer(decode_answer(bytes(changed)), bytes(changed))


def test_an_order_that_is_too_large_with_its_signature_is_not_sent() -> None:
    """The agent would refuse it, and the scheduler would wait in vain."""
    size = len(OrderAuth().encode_order(build(hints={"data": "x" * 1_000})))
    order = build(hints={"data": "x" * (1_000 + MAX_ORDER_BYTES - size - 2)})
    assert len(OrderAuth().encode_order(order)) <= MAX_ORDER_BYTES
    assert refusal(lambda: SCHEDULER.encode_order(order)) == "too-large"


def test_an_order_cannot_be_sent_back_as_the_answer_to_itself() -> None:
    """An answer needs fewer fields than an order, and both have the key of the node."""
    assert refusal(lambda: SCHEDULER.check_answer(decode_answer(SIGNED_ORDER), SIGNED_ORDER)) == "bad-signature"


def test_a_node_can_neither_answer_for_another_node_nor_give_it_orders() -> None:
    keys = NodeKeys(cell="cell1", nodes={"n2": CELL_KEYS.node_keys(("n1",)).nodes["n1"]})
    thief = OrderAuth("require", FixedKeyring(keys))
    victim = OrderAuth("require", node_ring("n2"))
    order = thief.encode_order(build("n2"))
    assert refusal(lambda: victim.check_order(decode_order(order), order)) == "bad-signature"
    answer = thief.encode_answer(Answer(id="order-1", node="n2", instance="vm-1"))
    assert refusal(lambda: SCHEDULER.check_answer(decode_answer(answer), answer)) == "bad-signature"


def test_unsigned_orders_and_answers_are_refused_where_signatures_are_required() -> None:
    nobody = OrderAuth()
    order, answer = nobody.encode_order(build()), nobody.encode_answer(decode_answer(SIGNED_ANSWER))
    assert refusal(lambda: AGENT.check_order(decode_order(order), order)) == "unsigned"
    assert refusal(lambda: SCHEDULER.check_answer(decode_answer(order), order)) == "unsigned"
    assert decode_answer(answer).signature is not msgspec.UNSET


@pytest.mark.parametrize("scheduler_mode", MODES[:3])
@pytest.mark.parametrize(
    ("agent_mode", "agent_has_keys"), [("off", False), ("accept", False), ("accept", True), ("warn", True)]
)
def test_modes_below_require_work_together(scheduler_mode: str, agent_mode: str, agent_has_keys: bool) -> None:
    """So a cell changes from one mode to the next process by process."""
    agent = OrderAuth(agent_mode, node_ring("n1") if agent_has_keys else None)
    exchange(OrderAuth(scheduler_mode, FixedKeyring(CELL_KEYS)), agent)
    signed = events_of(node_ring("n1") if agent_has_keys else None, agent_mode).sign("n1", event())
    checked(events_of(FixedKeyring(CELL_KEYS), scheduler_mode), signed)


def test_require_works_with_every_mode_that_signs() -> None:
    for mode in CHECKING:
        exchange(OrderAuth(mode, FixedKeyring(CELL_KEYS)), AGENT)
        exchange(SCHEDULER, OrderAuth(mode, node_ring("n1")))


def test_an_agent_without_a_key_of_a_node_takes_its_signed_orders_in_mode_accept_only() -> None:
    order = SCHEDULER.encode_order(End(id="order-2", node="n3", instance="vm-1"))
    accepting, warning = (OrderAuth(mode, node_ring("n1")) for mode in ("accept", "warn"))
    accepting.check_order(decode_order(order), order)
    assert accepting.orders.unsigned == 1
    assert refusal(lambda: warning.check_order(decode_order(order), order)) == "bad-signature"


class FixedCourier:
    """A courier that returns the given answers, once."""

    reply_to = "box"

    def __init__(self, answers: Sequence[Answer]) -> None:
        self._answers = list(answers)

    def send(self, orders: Sequence[Order], expires_s: float) -> None:
        """Do nothing."""

    def answers(self, timeout_s: float) -> list[Answer]:
        del timeout_s
        answers, self._answers = self._answers, []
        return answers

    def refused_answers(self) -> tuple[int, str]:
        return 0, ""

    def close(self) -> None:
        """Do nothing."""


def test_an_answer_counts_only_if_it_comes_from_the_node_of_its_order() -> None:
    """In every mode, also without keys."""
    forged, honest = (Answer(id="order-1", node=node, instance="vm-1") for node in ("n2", "n1"))
    sender = OrderSender(FixedCourier([forged, honest]), ManualClock(), SystemIds(), 5.0)
    sender.send([build("n1")])
    assert sender.answers(0.0) == [honest]
    assert sender.foreign_answers == 1


# -- files of keys --------------------------------------------------------------------------------


def test_a_process_reads_a_changed_file_again_and_keeps_its_keys_if_it_is_damaged(tmp_path: Path) -> None:
    path, clock = written(tmp_path, "cell.keys", CELL_KEYS), ManualClock()
    auth = event_auth(Config(auth_events="require", keys_file=path), clock).events
    checked(auth, SIGNED)
    Path(path).write_bytes(b"{")
    clock.advance(REREAD_S)
    with capture_logs() as logs:
        checked(auth, SIGNED)
    assert [entry["log_level"] for entry in logs] == ["error"]
    written(tmp_path, "cell.keys", with_revoked(CELL_KEYS, "n1"))
    clock.advance(REREAD_S)
    assert refusal(lambda: checked(auth, SIGNED)) == "bad-signature"


def test_a_file_of_keys_that_could_not_be_read_is_read_once_its_mode_is_right(tmp_path: Path) -> None:
    """The time and the size of the file stay the same then; the revoked key was taken until a restart."""
    path, clock = written(tmp_path, "cell.keys", CELL_KEYS), ManualClock()
    auth = event_auth(Config(auth_events="require", keys_file=path), clock).events
    written(tmp_path, "cell.keys", with_revoked(CELL_KEYS, "n1"))
    Path(path).chmod(0o644)
    with capture_logs() as logs:
        for _ in range(3):
            clock.advance(REREAD_S)
            checked(auth, SIGNED)
    assert ["chmod 600" in entry["reason"] for entry in logs] == [True], "it is logged once"
    Path(path).chmod(0o600)
    clock.advance(REREAD_S)
    assert refusal(lambda: checked(auth, SIGNED)) == "bad-signature"


@pytest.mark.parametrize("mode", ["warn", "require"])
def test_a_process_that_must_check_needs_keys(mode: str) -> None:
    for needed in (event_auth, order_auth):
        with pytest.raises(ConfigError, match="keys_file"):
            needed(Config(auth_events=mode, auth_orders=mode))


def damaged_files() -> Sequence[bytes]:
    good = msgspec.json.encode(CELL_KEYS)
    secret = CELL_KEYS.secrets[0].secret.encode()
    twice = msgspec.json.encode(msgspec.structs.replace(CELL_KEYS, secrets=CELL_KEYS.secrets * 2))
    return [b"", b"{}", b"\xff", good[:-1], good.replace(secret, secret[2:]), good.replace(secret, b"x" * 64), twice]


@pytest.mark.parametrize("content", damaged_files())
def test_a_damaged_file_is_an_error_that_names_the_file_and_no_secret(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cell.keys"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"cell\.keys") as caught:
        read_keys(str(path), "cell1")
    assert CELL_KEYS.secrets[0].secret[2:] not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_of_another_cell_or_that_others_can_read_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, "cell.keys", CELL_KEYS)
    assert Path(path).stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="cell2"):
        read_keys(path, "cell2")
    Path(path).chmod(0o644)
    with pytest.raises(ConfigError, match="chmod"):
        read_keys(path, "cell1")
    with pytest.raises(ConfigError, match="key init"):
        read_keys(str(tmp_path / "missing"), "cell1")
