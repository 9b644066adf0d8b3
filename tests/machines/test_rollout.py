"""Authentication is turned on and off in every order that the how-to page allows, and no honest message is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Final

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from harness.profile import by_profile
from nodestate.auth import EventAuth, OrderAuth
from nodestate.auth.keys import CellKeys, Keys
from nodestate.consumers.handover_messages import handover_messages, handover_refusal, signed_handover
from nodestate.errors import BadEventError
from nodestate.model import Heartbeat, NodeRecord, Report, fold, parse_event
from nodestate.model.orders import Answer, End, decode_answer, decode_order
from nodestate.ports import Item, Put, Write
from nodestate.store.signed_values import ValueAuth, ValueCounts
from tests.cell_keys import FixedKeyring, new_cell_keys, rotated, without_oldest
from tests.rollout_page import OFF, ON, PLACES, STORE, Step, steps_of

NOW_S: Final = 1_763_787_600
COUNTS: Final = {"agents": 3, "consumers": 2, "schedulers": 2}


class Process:
    """An agent of one node, a consumer or a scheduler: its settings, its file of keys, and the keys that it has read.

    restart --> the mode of the settings, and the keys of the file       read_file --> the keys of the file
    """

    def __init__(self, place: str, name: str) -> None:
        self.place = place
        self.name = name
        self.file: Keys | None = None
        """The content of its file of keys."""
        self.file_of: CellKeys | None = None
        """The file of the cell from which its file was made."""
        self.restart("off")

    def restart(self, mode: str) -> None:
        """Begin another life: what the process learned in the mode ``warn`` is forgotten."""
        self._ring = FixedKeyring(self.file) if self.file is not None else None
        assert self._ring is not None or mode == "off", f"{self.name} has no keys in mode {mode}"
        self.events, self.orders = EventAuth(mode, self._ring), OrderAuth(mode, self._ring)

    def read_file(self) -> None:
        if self._ring is not None and self.file is not None:
            self._ring.change(self.file)

    @property
    def keys(self) -> Keys | None:
        """The keys that of this process; None if it has none or does not use them."""
        return self._ring._keys if self._ring is not None and self.events.events.checks else None


def handover_of(node: str) -> bytes:
    report = Report(node=node, incarnation=NOW_S, generation=1, reported_at=NOW_S, state=msgspec.Raw(b"\x80"))
    record: NodeRecord | None = fold(None, report).record
    assert record is not None
    [message] = handover_messages([record], 10_000)
    return message


class RollOut:
    """The processes of a cell, the messages under way, and the operator's file of keys.

    ``deliver`` raises ``BadEventError`` if an honest message is refused.
    """

    def __init__(self) -> None:
        self.processes = {
            place: [Process(place, f"{place}-{number}") for number in range(count)] for place, count in COUNTS.items()
        }
        self.file: CellKeys = new_cell_keys()
        """The file of the cell, as the operator has it."""
        self.under_way: list[Callable[[], None]] = []
        """Takes each message that was sent and not yet received."""
        self._generation = itertools.count(1)
        for one in self.every_process():
            self.copy_file(one)

    def every_process(self, *places: str) -> list[Process]:
        return [one for place in places or sorted(PLACES) for one in self.processes[place]]

    def copy_file(self, process: Process) -> None:
        if process.file_of is not self.file:
            process.file = self.file.node_keys((process.name,)) if process.place == "agents" else self.file
            process.file_of = self.file

    # -- messages

    def publish(self, agent: Process, consumer: int) -> None:
        event = Heartbeat(
            node=agent.name, incarnation=NOW_S, generation=next(self._generation), reported_at=float(NOW_S)
        )
        plain = msgspec.msgpack.encode(event)
        body = agent.events.events.sign(agent.name, plain)

        def receive() -> None:
            parsed = parse_event(body)
            auth = self.processes["consumers"][consumer].events
            assert auth.events.check(parsed.node, body, parsed.signature) == plain

        self.under_way.append(receive)

    def hand_over(self, sender: int, receiver: int) -> None:
        consumers = self.processes["consumers"]
        message = signed_handover(handover_of("n1"), 0, consumers[sender].events.handovers)

        def receive() -> None:
            refusal = handover_refusal(message, 0, consumers[receiver].events.handovers)
            if refusal is not None:
                raise refusal

        self.under_way.append(receive)

    def order(self, scheduler: Process, agent: Process) -> None:
        order = End(id="order-1", node=agent.name, instance="vm-1", reply_to="box")
        body = scheduler.orders.encode_order(order)

        def receive() -> None:
            agent.orders.check_order(decode_order(body), body)
            answer = Answer(id=order.id, node=agent.name, instance="vm-1", incarnation=NOW_S, generation=1)
            reply = agent.orders.encode_answer(answer)
            self.under_way.append(lambda: scheduler.orders.check_answer(decode_answer(reply), reply))

        self.under_way.append(receive)

    def deliver(self, place: int) -> None:
        self.under_way.pop(place % len(self.under_way))()

    def deliver_all(self) -> None:
        while self.under_way:
            self.deliver(0)

    def exchange_all(self) -> None:
        """Send one message from each process to each other one that takes it, and deliver them."""
        for agent in self.processes["agents"]:
            for number in range(COUNTS["consumers"]):
                self.publish(agent, number)
            for scheduler in self.processes["schedulers"]:
                self.order(scheduler, agent)
        for pair in itertools.permutations(range(COUNTS["consumers"]), 2):
            self.hand_over(*pair)
        self.deliver_all()


class RollOutMachine(RuleBasedStateMachine):
    """Steps on and off, messages that are long under way, and a change of the secret beside all of them."""

    @initialize()
    def begin(self) -> None:
        self.cell = RollOut()
        self.tables = {ON: steps_of(ON), OFF: steps_of(OFF)}
        self.table, self.number = ON, 0
        self.waiting: list[Process] = []
        """The processes that are still to be restarted in the present step."""
        self.rotation = "none"
        self._begin_step()

    def _begin_step(self) -> None:
        self.step = self.tables[self.table][self.number]
        self.waiting = self.cell.every_process(*self.step.restart)

    # -- messages

    @rule(agent=st.integers(0, 2), consumer=st.integers(0, 1))
    def publish(self, agent: int, consumer: int) -> None:
        self.cell.publish(self.cell.processes["agents"][agent], consumer)

    @rule(scheduler=st.integers(0, 1), agent=st.integers(0, 2))
    def give_order(self, scheduler: int, agent: int) -> None:
        self.cell.order(self.cell.processes["schedulers"][scheduler], self.cell.processes["agents"][agent])

    @rule(sender=st.integers(0, 1))
    def hand_over(self, sender: int) -> None:
        self.cell.hand_over(sender, 1 - sender)

    @precondition(lambda self: self.cell.under_way)
    @rule(place=st.integers(0, 20))
    def deliver(self, place: int) -> None:
        self.cell.deliver(place)

    # -- steps

    @precondition(lambda self: self.waiting)
    @rule(place=st.integers(0, 20))
    def restart(self, place: int) -> None:
        self.waiting.pop(place % len(self.waiting)).restart(self.step.mode)

    @precondition(lambda self: not self.waiting)
    @rule()
    def go_on(self) -> None:
        """Every line of doctor is OK, so no message is older than the last restart."""
        self.cell.deliver_all()
        self.cell.exchange_all()
        self.number += 1
        if self.number == len(self.tables[self.table]):
            if self.table == ON:
                self.number -= 1
                return
            self.table, self.number = ON, 0
        self._begin_step()

    @precondition(lambda self: self.table == ON)
    @rule()
    def turn_back(self) -> None:
        self.table, self.number = OFF, 0
        self._begin_step()

    # -- a change of the secret

    @precondition(lambda self: self.rotation == "none")
    @rule()
    def rotate(self) -> None:
        self.cell.file = rotated(self.cell.file)
        self.rotation = "rotated"

    @precondition(lambda self: self.rotation in {"rotated", "revoked"})
    @rule(place=st.integers(0, 3), read=st.booleans())
    def copy_to_a_consumer_or_scheduler(self, place: int, read: bool) -> None:
        self._copy(self.cell.every_process("consumers", "schedulers")[place], read=read)

    @precondition(lambda self: self.rotation == "rotated" and self._have_read("consumers", "schedulers"))
    @rule()
    def turn_to_the_nodes(self) -> None:
        self.rotation = "nodes"

    @precondition(lambda self: self.rotation == "nodes")
    @rule(place=st.integers(0, 2), read=st.booleans())
    def copy_to_an_agent(self, place: int, read: bool) -> None:
        self._copy(self.cell.processes["agents"][place], read=read)

    @precondition(lambda self: self.rotation == "nodes" and self._have_read("agents"))
    @rule()
    def revoke_the_old_secret(self) -> None:
        """Doctor names no key of the old secret, and no event waits."""
        self.cell.deliver_all()
        self.cell.file = without_oldest(self.cell.file)
        self.rotation = "revoked"

    @precondition(lambda self: self.rotation == "revoked" and self._have_read("consumers", "schedulers"))
    @rule()
    def end_rotation(self) -> None:
        self.rotation = "none"

    @rule(place=st.integers(0, 6))
    def look_at_the_file(self, place: int) -> None:
        self.cell.every_process()[place].read_file()

    def _copy(self, process: Process, *, read: bool) -> None:
        self.cell.copy_file(process)
        if read:
            process.read_file()

    def _have_read(self, *places: str) -> bool:
        """Return whether these processes have the operator's present keys, in the file and in memory."""
        for one in self.cell.every_process(*places):
            if one.file_of is not self.cell.file or (one.keys is not None and one.keys is not one.file):
                return False
        return True

    def teardown(self) -> None:
        if hasattr(self, "cell"):
            self.cell.deliver_all()


TestRollOut = RollOutMachine.TestCase
TestRollOut.settings = settings(max_examples=by_profile(fast=15, thorough=2_000))


def carry_out(steps: Sequence[Step]) -> None:
    """Carry out steps in their order; all processes exchange messages after each restart."""
    cell = RollOut()
    for step in steps:
        for one in cell.every_process(*step.restart):
            one.restart(step.mode)
            cell.exchange_all()


def test_the_steps_of_the_page_lead_to_require_and_back_to_off() -> None:
    on, off = steps_of(ON), steps_of(OFF)
    carry_out([*on, *off])
    modes = dict.fromkeys(PLACES, "off")
    for steps, mode in ((on, "require"), (off, "off")):
        for step in steps:
            modes |= dict.fromkeys(step.restart, step.mode)
        assert modes == dict.fromkeys(PLACES, mode)


EVERYWHERE: Final = ("agents", "consumers", "schedulers")
MESSAGES: Final = ("auth_events", "auth_orders")


@pytest.mark.parametrize(
    "steps",
    [
        [Step(("consumers",), MESSAGES, "require")],
        [Step(EVERYWHERE, MESSAGES, "require")],
        [Step(EVERYWHERE, MESSAGES, "warn"), Step(("agents",), MESSAGES, "off")],
        [
            Step(EVERYWHERE, MESSAGES, "accept"),
            Step(EVERYWHERE, MESSAGES, "require"),
            Step(("schedulers",), MESSAGES, "off"),
        ],
    ],
)
def test_shorter_ways_would_refuse_honest_messages(steps: Sequence[Step]) -> None:
    """So the machine above would notice a step of the page that is missing or in the wrong place."""
    with pytest.raises(BadEventError):
        carry_out(steps)


# -- stored values --------------------------------------------------------------------------------


def test_all_processes_read_the_values_of_all_others_in_every_step() -> None:
    """While a step is carried out, in any order, each process reads values of both modes. Between two steps all values
    are written again.
    """
    ring, names = FixedKeyring(new_cell_keys()), ("consumer 1", "consumer 2", "scheduler 1")
    modes = dict.fromkeys(names, "off")
    for step in [*steps_of(STORE, "auth_store"), *steps_of(OFF, "auth_store")]:
        before = dict(modes)
        for order in permutations(names):
            modes = dict(before)
            stored = {_written(mode, ring) for mode in modes.values()}
            for name in order:
                modes[name] = step.mode
                stored.add(_written(step.mode, ring))
                for mode in modes.values():
                    auth = ValueAuth(mode, ring, ValueCounts())
                    assert {auth.checked({"key": Item(one, 1, 60)})["key"].value for one in stored} == {b"value"}
    assert set(modes.values()) == {"off"}


def _written(mode: str, ring: FixedKeyring) -> bytes:
    [write] = ValueAuth(mode, ring, ValueCounts()).signed([Write(Put.ADD, "key", b"value")])
    return write.value
