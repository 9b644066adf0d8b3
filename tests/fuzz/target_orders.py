"""Orders, answers, presences and resync requests: an agent or a scheduler acts on them, or refuses them."""

from __future__ import annotations

from contextlib import suppress
from random import Random
from typing import Any, Final

import msgpack

from nodestate.agent.agent import Agent
from nodestate.agent.sources.static_fleet import StaticFleet
from nodestate.broker.resyncs import decode_resync
from nodestate.config import Config
from nodestate.errors import BadEventError
from nodestate.model import parse_event
from nodestate.model.orders import MAX_ORDER_BYTES, Answer, bad_order, decode_answer, decode_order, encode
from nodestate.testing import ManualClock, MemoryBroker, TransitMessage
from tests.fuzz.mutation import TEXTS, mutated, mutated_bytes, odd_value

CONFIG: Final = Config(partitions=1, heartbeat_s=10.0)
NODE: Final[dict[str, Any]] = {"inventory": {"VCPU": {"total": 6}}, "taints": ["gpu"]}
ADDRESS: Final = {"id": "0199c1f2a3b4-0123456789ab", "node": "n1", "instance": "i-1", "reply_to": "courier"}
BUILD: Final[dict[str, Any]] = {
    **ADDRESS,
    "kind": "build",
    "resources": {"VCPU": 2},
    "group": "web",
    "hints": {"group_policy": "anti-affinity", "max_per_node": 1, "order": ADDRESS["id"], "tolerations": ["gpu"]},
    "deadline": 4e9,
    "in_place": False,
    "of": "",
}
END: Final[dict[str, Any]] = {**ADDRESS, "kind": "end", "of": ""}
PRESENCE: Final[dict[str, Any]] = {"kind": "presence", "node": "n1", "incarnation": 7, "life": "l", "host": "h"}
RESYNC: Final[dict[str, Any]] = {"nodes": ["n1"], "partitions": [0], "layout": 8, "jitter_s": 2.5, "census": "q"}
ANSWER: Final[dict[str, Any]] = {"id": "o", "node": "n", "instance": "i", "incarnation": 7, "generation": 2}


def run(data: Random) -> bool:
    """Give one message to an agent, or to a scheduler."""
    valid = data.choice((BUILD, BUILD, END, PRESENCE, RESYNC, ANSWER))
    message = mutated(data, valid)
    if isinstance(message, dict) and data.random() < 0.2:
        message = {**message, data.choice(TEXTS): odd_value(data)}
    reached = data.random() < 0.9
    body = bytes(msgpack.packb(message))
    if not reached:
        body = mutated_bytes(data, body)
    if valid is ANSWER:
        with suppress(BadEventError):
            answer = decode_answer(body)
            assert answer.version <= (2**53, 2**53)
    else:
        _give_to_agent(data, body, is_resync=valid is RESYNC)
    return reached and isinstance(message, dict)


def _give_to_agent(data: Random, body: bytes, *, is_resync: bool) -> None:
    clock = ManualClock()
    broker = MemoryBroker(CONFIG.partitions, clock=clock)
    sink = broker.sink()
    source = StaticFleet({"n1": NODE})
    agent = Agent(CONFIG, [source], sink, clock, data, inbox=sink, incarnation=7, life="a", host="h")
    agent.step()
    if is_resync:
        with suppress(BadEventError):
            sink.resync_requests.append(decode_resync(body))
    else:
        sink.order_messages.append(TransitMessage("order", "n1", body))
        _check_refusal(body)
    for _ in range(2):
        agent.step()
        clock.advance(5.0)
    for waiting in broker.queued(0):
        parse_event(waiting)


def _check_refusal(body: bytes) -> None:
    """An order that cannot be decoded has an answer that can be sent and read, or none."""
    try:
        decode_order(body)
    except BadEventError as error:
        refusal = bad_order(body, error)
        if refusal is not None:
            queue, answer = refusal
            assert len(queue.encode()) <= 255
            raw = encode(answer)
            assert len(raw) <= MAX_ORDER_BYTES
            assert isinstance(decode_answer(raw), Answer)
