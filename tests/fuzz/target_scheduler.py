"""Hostile nodes, answers, presences, claim records and seeds, while a scheduler selects, boots, moves and cleans up.

The cell has two honest nodes, with an agent that admits, and two hostile ones, whose agent is played by the input. The
scheduler must raise its documented errors alone, the instance on the honest node must stay, views must show the honest
nodes as they are, and a boot that names an untouched honest node must succeed.
"""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any, Final

import msgpack

from nodestate.errors import BadRequestError, BehindError, CorruptItemError, StaleViewError, StoreUnavailableError
from nodestate.model.orders import Build, decode_order
from nodestate.model.partitioning import bucket_of
from nodestate.scheduling.claims import CLAIMS, Claim, ClaimRecord
from nodestate.scheduling.orders import Booted
from nodestate.scheduling.request import parse, parse_group
from nodestate.scheduling.reservation_claims import Reservation
from nodestate.scheduling.scheduler import Scheduler
from nodestate.store import keys
from nodestate.store.memory import StoredItem
from nodestate.testing import TransitMessage
from tests.fuzz.mutation import mutated, mutated_bytes, mutated_item
from tests.machines.scheduling_cell import CELL, CooperativeClock, SchedulerProcess, SchedulingCell
from tests.planted_values import replace

HONEST: Final = ("h0", "h1")
"""Nodes of the honest agent. No input touches the stored values of the first one."""
HOSTILE: Final = ("x0", "x1")
KEPT: Final = "kept"
"""The instance on the first honest node."""
ROOM: Final[dict[str, Any]] = {"inventory": {"VCPU": {"total": 8}, "MEMORY_MB": {"total": 8_000}}, "zone": "a"}
ORDER: Final = "0199c1f2a3b4-0123456789ab"
STATE: Final[dict[str, Any]] = {
    "zone": "a",
    "inventory": {"VCPU": {"total": 8, "min_unit": 1, "step_size": 1}, "MEMORY_MB": {"total": 8_000, "reserved": 1}},
    "status": "up",
    "usage": {"VCPU": 3},
    "traits": ["T"],
    "aggregates": ["r"],
    "taints": ["gpu"],
    "metrics": {"cpu.percent": 1.5},
    "allocations": {
        "vm": {"resources": {"VCPU": 1}, "group": "web", "hints": {"order": ORDER, "group_policy": "anti-affinity"}},
        "part": {
            "resources": {"VCPU": 1, "MEMORY_MB": 10},
            "hints": {"order": ORDER, "boot": ORDER, "reservation": ORDER, "members": 2, "placed": False, "zone": "a"},
        },
        KEPT: {"resources": {"VCPU": 1}, "hints": {"order": "~", "boot": "~"}},
    },
    "namespaces": {"nodestate": {"refused": {"o": {"reason": "expired", "at": 1.0}}}},
}
EVENT: Final[dict[str, Any]] = {"v": 1, "kind": "report", "incarnation": 7, "reported_at": 1_763_787_600.0}
CLAIM: Final = Claim("0000", "vm", "other", 1_130.0, {"VCPU": 1}, "web", {"zone": "a"}, ORDER, 2, kept=True, owner="me")
RECORDS: Final = (ClaimRecord(900.0, 7, 1, (CLAIM,)), ClaimRecord(900.0, 7, 1, (CLAIM, CLAIM), "failed", 990.0))
PRESENCE: Final[dict[str, Any]] = {"kind": "presence", "incarnation": 2**40, "life": "l", "host": "h"}
GROUPS: Final = ("affinity", "anti-affinity", "soft-affinity", "soft-anti-affinity")
ANSWERS: Final = ("", "", "no-room", "status", "here", "not-here", "group", "expired", "failed", "no-agent", "later")
ALLOWED: Final = (BadRequestError, BehindError, CorruptItemError, StaleViewError, StoreUnavailableError, TimeoutError)
"""The errors that the operations of a scheduler document. ``NotFoundError`` is one of the first kind."""
ANSWER_TIMEOUT_S: Final = 2.0
TIMEOUT_S: Final = 4.0
BOOTING_SHARE: Final = 0.3
"""The share of inputs after which the scheduler must boot an instance on the honest node."""


@functools.cache
def _template() -> tuple[float, list[OrderedDict[str, StoredItem]], dict[str, dict[str, Any]]]:
    """The seconds that a cell ran, the items of its servers, and the states of its honest nodes."""
    cell = SchedulingCell(dict.fromkeys(HONEST, ROOM), servers=1, answer_timeout_s=ANSWER_TIMEOUT_S)
    cell.wait_until_complete()
    scheduler = cell.start_scheduler("s").scheduler
    cell.run_for(4.0)
    [booted] = scheduler.boot(parse({"instances": [KEPT], "resources": {"VCPU": 2}, "force_nodes": ["h0"]}))
    assert isinstance(booted, Booted), booted
    hostile = _HostileAgent(cell, Random(1))
    for node in HOSTILE:
        hostile.report(node, STATE)
    cell.run_for(12.0)
    states = {node: cell.fleet.state(node) for node in HONEST}
    return cell.clock.monotonic(), [server._entries for server in cell.servers], states


class _HostileAgent:
    """Reports any state of the hostile nodes, and answers their orders as it likes."""

    def __init__(self, cell: SchedulingCell, data: Random) -> None:
        self._cell = cell
        self._data = data
        self._sink = cell.broker.sink()
        self._sink.listen_for(HOSTILE)
        self._generation = 0

    def report(self, node: str, state: Any) -> None:
        self._generation += 1
        now = self._cell.clock.time()
        event = {**EVENT, "incarnation": int(now), "node": node, "generation": self._generation, "reported_at": now}
        self._sink.publish(bucket_of(node), msgpack.packb({**event, "state": state}), lambda _ok: None)

    def step(self) -> None:
        """Answer the orders that arrived, with valid and mutated answers, or not at all."""
        self._sink.resync_requests.clear()
        messages, self._sink.order_messages = self._sink.order_messages, []
        for message in messages:
            order, data = decode_order(message.body), self._data
            if not order.reply_to or data.random() < 0.2:
                continue
            answer = _answer(data, order.id, order.node, order.instance)
            if data.random() < 0.4:
                answer = mutated(data, answer)
            self.send(order.reply_to, msgpack.packb(answer))
            if isinstance(order, Build) and data.random() < 0.5:
                built = {"resources": order.resources, "group": order.group, "hints": order.hints}
                self.report(order.node, {**STATE, "allocations": {order.instance: built}})

    def send(self, queue: str, body: bytes) -> None:
        """Put bytes into a scheduler's queue for answers."""
        self._sink._send_answer(queue, body)


def _answer(data: Random, order: str, node: str, instance: str) -> dict[str, Any]:
    answer = {"id": order, "node": node, "instance": instance, "incarnation": 7, "generation": 2}
    refused = data.choice(ANSWERS)
    more = {"refused": refused, "detail": "d"} if refused else {}
    return {**answer, **more, "at": data.choice((0.0, 1_763_787_700.0, 1e9)), "clock_origin": 1_763_786_600.0}


class _HostileCell(SchedulingCell):
    """The cell of the template, with a new agent, a new consumer, and a scheduler."""

    def __init__(self, data: Random) -> None:
        passed_s, items, states = _template()
        clock = CooperativeClock()
        clock.advance(passed_s - clock.monotonic())
        super().__init__(states, servers=1, clock=clock, answer_timeout_s=ANSWER_TIMEOUT_S)
        for server, entries in zip(self.servers, items, strict=True):
            server._entries = entries.copy()
            server._last_cas = 1_000_000
        self.data = data
        self.hostile = _HostileAgent(self, data)
        self.process: SchedulerProcess = self.start_scheduler("s")
        self.reached = True

    def step_agents(self) -> None:
        if hasattr(self, "hostile"):
            self.hostile.step()
        super().step_agents()

    def mutated(self, raw: bytes) -> bytes:
        """A stored value with changes, mostly under a right checksum."""
        raw, reached = mutated_item(self.data, raw)
        self.reached &= reached
        return raw

    # -- attacks

    def plant_state(self) -> None:
        self.hostile.report(self.data.choice(HOSTILE), mutated(self.data, STATE))

    def plant_record(self) -> None:
        node = self.data.choice((*HOSTILE, "h1"))
        raw = self.mutated(CLAIMS.pack(self.data.choice(RECORDS)))
        replace(self.server(node), keys.claim(CELL, node), raw)

    def plant_item(self) -> None:
        node = self.data.choice(HOSTILE)
        [server], [items] = self.servers, _template()[1]
        for key in items:
            if key.endswith(f":node:{node}"):
                replace(server, key, self.mutated(items[key].value))

    def plant_seed(self) -> None:
        key = keys.anchor(CELL, "web")
        for server in self.servers:
            replace(server, key, mutated_bytes(self.data, self.data.choice((b"x0", b"h1", b"n" * 300))))

    def send_answer(self) -> None:
        data, queue = self.data, self.process.courier.reply_to
        kinds: tuple[dict[str, Any], ...] = (
            _answer(data, ORDER, "x0", "vm"),
            {**PRESENCE, "node": "x0"},
            {"kind": "end", "id": ORDER, "node": "x0", "instance": "vm", "reply_to": queue, "of": ""},
        )
        body = msgpack.packb(mutated(data, data.choice(kinds)))
        self.reached &= data.random() < 0.9
        self.hostile.send(queue, body if self.reached else mutated_bytes(data, body))

    def send_presence(self) -> None:
        presence = {**PRESENCE, "node": "h1"}
        if self.data.random() < 0.8:
            presence = mutated(self.data, presence)
        self.broker.transit.send(TransitMessage("presence", "h1", msgpack.packb(presence)))

    # -- operations

    def asked(self, instance: str, **more: Any) -> dict[str, Any]:
        """A request for one instance, often with a constraint that hostile states touch."""
        constraints: tuple[dict[str, Any], ...] = (
            {"group": {"name": "web", "policy": self.data.choice(GROUPS)}},
            {"group": {"name": "web", "policy": "soft-anti-affinity"}, "spread": {"by": "zone"}},
            {"tolerations": ["gpu"]},
            {"same_host": [self.data.choice(("vm", "part", KEPT))]},
            {"different_host": ["vm"]},
            {"required_traits": ["T"]},
            {"zone": "a"},
            {},
        )
        room = {"VCPU": 1, "MEMORY_MB": 10}
        return {"instances": [instance], "resources": room, **self.data.choice(constraints), **more}

    def reserve(self, scheduler: Scheduler) -> None:
        """Reserve two nodes, and release, extend or confirm the reservation."""
        members: dict[str, Any] = {"members": [self.asked(f"m{n}") for n in range(2)], "hold_s": 60}
        if self.data.random() < 0.5:
            plain = [{"instances": [f"m{n}"], "resources": {"VCPU": 1}} for n in range(2)]
            members |= {"members": plain, "group": {"name": "apart", "policy": self.data.choice(GROUPS)}}
        held = scheduler.reservations.reserve(parse_group(members), timeout_s=1.0)
        if isinstance(held, Reservation):
            uses: tuple[Callable[[], object], ...] = (
                lambda: scheduler.reservations.release(held.id),
                lambda: scheduler.reservations.extend(held.id, 120.0),
                lambda: scheduler.reservations.confirm(held.id, timeout_s=TIMEOUT_S),
            )
            self.data.choice(uses)()

    def operate(self, scheduler: Scheduler) -> None:
        """Call one operation."""
        data = self.data
        instance, node = data.choice(("vm", "part", KEPT)), data.choice((*HOSTILE, "h1"))
        operations: tuple[Callable[[], object], ...] = (
            lambda: scheduler.claim([parse(self.asked("c0")), parse(self.asked("c1"))]),
            lambda: scheduler.boot(parse(self.asked("b0")), TIMEOUT_S),
            lambda: scheduler.boot(parse(self.asked("b1", force_nodes=[node])), TIMEOUT_S),
            lambda: scheduler.select(parse(self.asked("e"))),
            lambda: scheduler.explain(parse(self.asked("e"))),
            lambda: self.reserve(scheduler),
            scheduler.reservations.held,
            lambda: scheduler.reservations.confirm(ORDER, timeout_s=TIMEOUT_S),
            lambda: scheduler.reservations.release(ORDER),
            lambda: scheduler.migrations.evacuate(node, timeout_s=TIMEOUT_S),
            lambda: scheduler.migrations.migrate(data.choice(("vm", "part")), timeout_s=TIMEOUT_S),
            lambda: scheduler.migrations.resize(instance, {"VCPU": 2}, timeout_s=TIMEOUT_S),
            lambda: scheduler.updates.update(instance, {"zone": "a"}, timeout_s=TIMEOUT_S),
            lambda: scheduler.terminations.terminate([(node, "vm")]),
            lambda: scheduler.terminations.terminate_everywhere(["part"], TIMEOUT_S),
        )
        with suppress(*ALLOWED):
            data.choice(operations)()

    # -- what must hold

    def check(self) -> None:
        scheduler = self.process.scheduler
        self.run_for(2.0)
        assert KEPT in self.fleet.resources_of("h0").allocations, "a hostile node ended an instance of another node"
        view = self.process.reader.read(max_age=math.inf, on_stale="flag")
        record = view.nodes.record("h0")
        assert record is not None
        if "h0" not in view.incomplete and "h0" not in view.stale:
            assert record.state()["allocations"] == self.fleet.state("h0")["allocations"]
        assert 0.0 <= view.age < 5.0, view.age
        if self.data.random() < BOOTING_SHARE:
            [outcome] = scheduler.boot(parse({"instances": ["last"], "resources": {"VCPU": 1}, "force_nodes": ["h0"]}))
            assert isinstance(outcome, Booted), outcome
        self.process.close()


def run(data: Random) -> bool:
    """Attack a cell, and use it."""
    cell = _HostileCell(data)
    attacks = (
        cell.plant_state,
        cell.plant_state,
        cell.plant_record,
        cell.plant_item,
        cell.plant_seed,
        cell.send_answer,
        cell.send_presence,
    )
    for _ in range(data.randint(1, 3)):
        data.choice(attacks)()
    cell.step_agents()
    cell.operate(cell.process.scheduler)
    data.choice(attacks)()
    cell.operate(cell.process.scheduler)
    cell.check()
    return cell.reached
