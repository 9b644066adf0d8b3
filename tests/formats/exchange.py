"""One side of an exchange between two versions: it authors events, consumes events, and reads stored items.

The same file runs under today's code, imported by the tests, and under an older commit, as a process with the older
package on its path. All values that the two sides exchange are JSON.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Final

import structlog

from nodestate import Reader
from nodestate.agent.publisher import Publisher
from nodestate.config import Config
from nodestate.consumers.loop import Consumer
from nodestate.ports import Put, Write
from nodestate.testing import ManualClock, MemoryBroker, MemoryServer, MemoryStore

PARTITIONS: Final = 2
DESIGNS: Final = ("journal", "snapshot")
Events = list[tuple[int, str]]
"""Events in the order of their creation: bucket of the node, and body in hexadecimal."""
Items = list[tuple[str, str, int]]
"""Items of a memcached: key, value in hexadecimal, and time to live in seconds (0: unlimited)."""


def _named(name: str, *modules: str) -> Any:
    """Return a name from the first module that exists: modules were renamed between versions."""
    for module in modules:
        try:
            return getattr(import_module(module), name)
        except ModuleNotFoundError:
            continue
    raise ImportError(f"no {name} in {', '.join(modules)}")


_Stores = _named("Stores", "nodestate.store.round_trips", "nodestate.lockstep")


class _Recorder:
    """A sink that keeps every event and confirms it."""

    def __init__(self) -> None:
        self.events: Events = []

    def publish(self, bucket: int, body: bytes, on_done: Callable[[bool], None]) -> None:
        self.events.append((bucket, body.hex()))
        on_done(True)

    def flush(self, timeout_s: float) -> None:
        """Everything is confirmed."""

    def close(self) -> None:
        """Nothing is open."""


def _config(read_design: str = "journal") -> Any:
    return Config(partitions=PARTITIONS, designs=DESIGNS, read_design=read_design, prefetch=1_000)


def author(life: int = 0) -> Events:
    """Return the events of six nodes in one life of their agent."""
    clock, sink = ManualClock(), _Recorder()
    clock.advance(60 * life)
    for number in range(6):
        publisher = Publisher(
            _config(),
            f"node-{number}",
            sink=sink,
            clock=clock,
            incarnation=int(clock.time()),
            rng=random.Random(number),
        )
        inventory = {"VCPU": {"total": 16, "reserved": 1, "allocation_ratio": 4.0}, "MEMORY_MB": {"total": 65_536}}
        publisher.report({"zone": f"z{number % 2}", "inventory": inventory, "usage": {"VCPU": number}, "traits": ["A"]})
        clock.advance(1)
        vm = {"resources": {"VCPU": 2}, "group": "g", "hints": {"group_policy": "affinity", "order": f"o{life}"}}
        publisher.change({"usage": {"VCPU": number + 2}, "allocations": {f"vm-{number}": vm}})
        publisher.change({"metrics": {"load": 0.5}, "namespaces": {"nova": {"n": [number, None]}}})
        publisher.heartbeat()
        if number == 5:
            publisher.change({"usage": {"VCPU": 0}, "allocations": {"vm-5": None}})
            publisher.leave()
    return sink.events


def _server(items: Sequence[Sequence[Any]], clock: Any) -> Any:
    server = MemoryServer(clock=clock)
    store = MemoryStore(server)
    for key, value, ttl_s in items:
        store.write([Write(Put.ADD, key, bytes.fromhex(value), ttl_s=ttl_s)])
    return server


def consume(items: Items, events: Events) -> tuple[Items, dict[str, int]]:
    """Take over the partitions stored in ``items``, and consume the events.

    Returns the items that are stored then, and the number of dead letters by reason.
    """
    clock = ManualClock()
    clock.advance(3_600)
    broker = MemoryBroker(PARTITIONS, clock=clock)
    server = _server(items, clock)
    sink = broker.sink()
    for bucket, body in events:
        sink.publish(bucket, bytes.fromhex(body), lambda _ok: None)
    source, stores = broker.source(range(PARTITIONS)), _Stores([MemoryStore(server)])
    consumer = Consumer(_config(), source, stores, broker, clock, random.Random(1), "member")
    for _ in range(60):
        consumer.step()
        clock.advance(1.5)
    consumer.close()
    found = MemoryStore(server).fetch(server.keys())
    stored = [(key, item.value.hex(), item.ttl_s or 0) for key, item in found.items()]
    return stored, dict(consumer.stats.counts.dead_letters)


def read(items: Items) -> dict[str, Any]:
    """Return the views of all designs: the state of each node with its version, and whether anything is incomplete."""
    clock = ManualClock()
    views = {}
    for design in DESIGNS:
        stores = _Stores([MemoryStore(_server(items, clock))])
        view = Reader(_config(design), design=design, stores=stores, clock=clock).read(max_age=1e9, on_stale="flag")
        nodes = {name: [*view.nodes[name].version, _plain(view.nodes[name].state)] for name in sorted(view.nodes)}
        views[design] = {"nodes": nodes, "incomplete": sorted(view.incomplete)}
    return views


def messages() -> dict[str, str]:
    """Return one message of each kind between schedulers, agents and operators, in hexadecimal."""
    modules = ("nodestate.model.orders", "nodestate.orders")
    build, end, answer, encode = (_named(name, *modules) for name in ("Build", "End", "Answer", "encode"))
    resync, encode_resync = _named("Resync", "nodestate.ports"), _named("encode_resync", *_RESYNC_MODULES)
    order = {"id": "1.o", "node": "node-1", "instance": "vm", "reply_to": "q"}
    hints = {"order": "1.o", "same_host": ["vm-1"], "group_policy": "anti-affinity"}
    return {
        "build": encode(build(**order, resources={"VCPU": 1}, group="g", hints=hints, deadline=9.5)).hex(),
        "resize": encode(build(**order, resources={"VCPU": 1}, deadline=9.5, in_place=True, of="0.o")).hex(),
        "end": encode(end(**order, of="0.o")).hex(),
        "answer": encode(answer(id="1.o", node="n", instance="vm", incarnation=5, generation=6)).hex(),
        "refusal": encode(answer(id="1.o", node="n", instance="vm", refused="no-room", detail="full")).hex(),
        "resync": encode_resync(resync(("node-1",), (0,), 2, 0.5, "census")).hex(),
    }


def understood(bodies: Mapping[str, str]) -> dict[str, str]:
    """Decode messages, and return them as this version writes them."""
    modules = ("nodestate.model.orders", "nodestate.orders")
    decode_order, decode_answer, encode = (
        _named(name, *modules) for name in ("decode_order", "decode_answer", "encode")
    )
    decode_resync, encode_resync = (_named(name, *_RESYNC_MODULES) for name in ("decode_resync", "encode_resync"))
    written = {}
    for kind, body in bodies.items():
        raw = bytes.fromhex(body)
        if kind == "resync":
            written[kind] = encode_resync(decode_resync(raw)).hex()
        else:
            decode = decode_answer if kind in {"answer", "refusal"} else decode_order
            written[kind] = encode(decode(raw)).hex()
    return written


_RESYNC_MODULES: Final = ("nodestate.broker.resyncs", "nodestate.broker.control")


def _plain(state: Any) -> Any:
    return json.loads(json.dumps(state, default=dict))


def main() -> None:
    """Read a list of calls as JSON from stdin; write the list of their results to stdout."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    calls = {"author": author, "consume": consume, "read": read, "messages": messages, "understood": understood}
    sys.stdout.write(json.dumps([calls[name](*arguments) for name, *arguments in json.load(sys.stdin)]))


if __name__ == "__main__":
    main()
