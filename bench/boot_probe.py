"""An agent with one node and a scheduler that boots instances there, to see when boots succeed again after a fault."""

from __future__ import annotations

import random
import threading
import time
from typing import Final, Self

import msgspec

from bench.recovery_times import PATIENCE_S
from bench.workload import require
from harness.waiting import wait_until
from nodestate.agent.agent import Agent
from nodestate.agent.sources.static_fleet import StaticFleet
from nodestate.broker import KombuCourier, KombuSink
from nodestate.config import Config
from nodestate.errors import NodestateError, UnconfirmedError
from nodestate.ports import SystemClock
from nodestate.scheduling.orders import Booted
from nodestate.scheduling.request import parse
from nodestate.scheduling.scheduler import Scheduler

NODE: Final = "boot-probe"
ZONE: Final = "boot-probe"
"""The zone of this node alone: the nodes of the simulated fleet carry out no orders."""
BOOT_S: Final = 10.0
"""Time in seconds that one boot may take."""
STEP_S: Final = 0.05


class BootProbe:
    """A node, its agent in a thread, and a scheduler; ready when a first boot has succeeded.

    Args:
        config: The cell's settings.
        broker: The broker's URL for the scheduler; empty: that of the settings.
    """

    def __init__(self, config: Config, broker: str = "") -> None:
        inventory = {"VCPU": {"total": 10_000}}
        self._fleet = StaticFleet({NODE: {"status": "up", "zone": ZONE, "inventory": inventory}}, name=NODE)
        self._sink = KombuSink(config)
        self._agent = Agent(
            config, [self._fleet], self._sink, SystemClock(), random.Random(1), inbox=self._sink,
            incarnation=int(time.time()),
        )  # fmt: skip
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._agent.run, args=(self._ending.is_set,), daemon=True)
        self._courier = KombuCourier(msgspec.structs.replace(config, broker=broker or config.broker))
        self._scheduler = Scheduler(config, name=NODE, courier=self._courier)
        # Nodes and instances that were booted.
        self._booted: list[tuple[str, str]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: not self.boot_error(), "no boot succeeds before the fault", PATIENCE_S)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._end_instances()
        finally:
            self._ending.set()
            self._thread.join(PATIENCE_S)
            try:
                self._agent.close(leave=True)  # the views must equal the simulated fleet again
            except UnconfirmedError:
                require(kind is not None, "the broker does not confirm that the node of the boots left")
            self._sink.close()
            self._scheduler.close()
            self._courier.close()

    def boot_error(self) -> str:
        """Boot an instance; return the reason if the boot fails, and an empty string otherwise."""
        try:
            [outcome] = self._scheduler.boot(parse({"zone": ZONE, "resources": {"VCPU": 1}}), BOOT_S)
        except TimeoutError:
            return f"no outcome within {BOOT_S:g} s"
        except NodestateError as error:
            return str(error)
        if not isinstance(outcome, Booted):
            return str(outcome.reason)
        self._booted.append((outcome.node, outcome.instance))
        return ""

    def _end_instances(self) -> None:
        """End all instances, because a node that leaves with instances stays in the view."""
        self._scheduler.terminations.terminate(self._booted)

        def ended() -> bool:
            self._scheduler.step(STEP_S)
            return not self._fleet.resources_of(NODE).allocations

        wait_until(ended, "instances of the boots do not end", PATIENCE_S)
