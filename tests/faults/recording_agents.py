"""An agent of given nodes in a process of its own, which records all orders that it gets and all events that it sends.

``python -m tests.faults.recording_agents FOLDER NAME``: FOLDER/NAME.states has the states of the nodes.
FOLDER/NAME.history gets one msgpack map after the other: ``{"event": bytes}`` for each event, in the order in which the
agent authored them, and ``{"order": bytes, "at": seconds}`` for each order before it is carried out. Ends on SIGTERM.
"""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec

from nodestate.agent.agent import Agent
from nodestate.agent.allocation_file import AllocationFile
from nodestate.agent.incarnation import state_directory
from nodestate.agent.sources.static_fleet import StaticFleet
from nodestate.broker import KombuSink
from nodestate.config import Config, load
from nodestate.model.orders import Order, encode
from nodestate.ports import SystemClock

_pack = msgspec.msgpack.Encoder().encode


class HistorySink(KombuSink):
    """A real sink that records each event before the broker has it."""

    def __init__(self, config: Config, history: BinaryIO) -> None:
        super().__init__(config)
        self._history = history

    def publish(self, where: object, body: bytes, on_done: Callable[[bool], None]) -> None:
        self._history.write(_pack({"event": body}))
        super().publish(where, body, on_done)  # type: ignore[arg-type]  # a bucket

    def orders(self) -> list[Order]:
        orders = super().orders()
        for order in orders:
            self._history.write(_pack({"order": encode(order), "at": SystemClock().time()}))
        return orders


def main(folder: Path, name: str) -> None:
    """Run the agent until SIGTERM."""
    config, clock = load(), SystemClock()
    states = msgspec.json.decode((folder / f"{name}.states").read_bytes())
    fleet = StaticFleet(states, name=name, every_s=0.02, allocations=AllocationFile(state_directory(config), name))
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopping.append(number))
    with (folder / f"{name}.history").open("ab", buffering=0) as history:
        sink = HistorySink(config, history)
        agent = Agent(config, [fleet], sink, clock, random.Random(name), inbox=sink)
        agent.run(lambda: bool(stopping))
        agent.close()
        sink.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
