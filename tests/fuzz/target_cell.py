"""One stored value is mutated while a cell has no consumer; a consumer takes over, and the cell becomes right again."""

from __future__ import annotations

import functools
import math
from random import Random
from typing import Final

from nodestate.model import NodeRecord
from nodestate.store.memory import StoredItem
from nodestate.store.wire import ENVELOPE_BYTES, seal
from tests.fuzz.mutation import mutated, mutated_bytes
from tests.planted_values import content, sealed
from tests.test_repair import OnePartitionCell

DESIGNS: Final = (("journal", "snapshot"), ("snapshot",), ("journal",))
NODES: Final = ("n", "m")
STEPS_COUNT: Final = 12
"""Steps of half a second after which the nodes that reported again must be right."""


@functools.cache
def _stored(designs: tuple[str, ...]) -> tuple[dict[str, StoredItem], float]:
    """The items of a cell whose consumer has gone, and the seconds that it ran."""
    cell = OnePartitionCell(designs)
    began = cell.clock.monotonic()
    cell.step(2)
    for node in NODES:
        cell.publish("report", node, state={"usage": {"VCPU": 1}, "inventory": {"VCPU": {"total": 8}}})
    cell.step(3)
    cell.publish("change", "m", patch={"usage": {"VCPU": 2}})
    cell.step(3)
    cell.consumer.close()
    return dict(cell.server._entries), cell.clock.monotonic() - began


def run(data: Random) -> bool:
    """Mutate one value."""
    designs = data.choice(DESIGNS)
    entries, passed_s = _stored(designs)
    cell = OnePartitionCell(designs)
    cell.clock.advance(passed_s)
    cell.server._entries.update({key: StoredItem(one.value, one.cas, one.expires_at) for key, one in entries.items()})
    cell.server._last_cas = max(one.cas for one in entries.values()) + 1
    key = data.choice(sorted(entries))
    raw, kind = entries[key].value, data.random()
    reached = kind < 0.9
    if kind < 0.75:
        raw = sealed(mutated(data, content(raw)))
    elif kind < 0.9:
        raw = seal(mutated_bytes(data, raw[ENVELOPE_BYTES:]))
    else:
        raw = mutated_bytes(data, raw)
    cell.server._entries[key] = StoredItem(raw, cell.server._last_cas, entries[key].expires_at)
    readers = [cell.reader(design) for design in designs]
    for reader in readers:
        reader.read(max_age=math.inf, node_max_age=math.inf, on_stale="flag")
    cell.step(2)
    cell.incarnation = int(cell.clock.time())
    cell.generation = 10
    for node in NODES:
        cell.publish("heartbeat", node)
        cell.publish("change", node, patch={"usage": {"VCPU": 3}})
    cell.step(2)
    cell.clock.advance(1.0)
    for node in NODES:
        cell.publish("report", node, state={"usage": {"VCPU": 4}})
    cell.step(STEPS_COUNT)
    for reader in (*readers, *map(cell.reader, designs)):
        view = reader.read(max_age=math.inf, node_max_age=math.inf, on_stale="flag")
        for node in NODES:
            if not _is_from_the_future(view.nodes.record(node), cell):
                assert node not in view.incomplete, f"{node} is not repaired"
                assert view.nodes[node].state == {"usage": {"VCPU": 4}}
    return reached


def _is_from_the_future(record: NodeRecord | None, cell: OnePartitionCell) -> bool:
    """True for a record with a version that its agent has not had: no process can tell that the agent never will."""
    return record is not None and max(record.version, record.wanted) > (cell.incarnation, cell.generation)
