"""A whole cell under test: brokers, stores, consumers as processes, a fleet, watchers; and when it is well again."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

from harness.fleet import AuthoredState, SimulatedFleet
from harness.members import Member
from harness.waiting import PATIENCE_S, wait_until
from harness.watchers import ViewWatcher
from nodestate.config import Config
from nodestate.designs.reader import Reader
from nodestate.model import NodeRecord
from nodestate.view.view import View

DESIGNS: Final = ("journal", "snapshot")
BOUND_S: Final = 1.5
"""What the watchers accept: five renewals."""

SETTINGS: Final = {
    "partitions": 8,
    "renew_s": 0.3,
    "standby_s": 0.5,
    "heartbeat_s": 0.5,
    "resync_jitter_s": 0.3,
    "broker_heartbeat_s": 1,
    "flush_s": 0.02,
}

Record = Callable[[str], None]


class Cell:
    """Begins with the ``with`` statement: members first, then the fleet, then, when all is well, the watchers.

    ``alone``: the first member takes all partitions before the others start.

    At the end every watcher must have seen nothing wrong, and every member that lives must end in order.
    """

    def __init__(
        self,
        folder: Path,
        record: Record,
        *,
        cell: str,
        broker: str,
        store: str,
        members: int = 2,
        count: int = 160,
        rate: float = 300.0,
        pad_bytes: int = 0,
        designs: Sequence[str] = DESIGNS,
        member_settings: Sequence[dict[str, str]] = (),
        bound_s: float = BOUND_S,
        alone: bool = False,
        **settings: object,
    ) -> None:
        values = {**SETTINGS, "cell": cell, "broker": broker, "store": store, "state_dir": str(folder), **settings}
        self.config = Config(**{**values, "designs": tuple(designs), "read_design": designs[0]})  # type: ignore[arg-type]
        self.record = record
        self.bound_s = bound_s
        self.alone = alone
        environment = {f"NODESTATE_{name.upper()}": str(value) for name, value in values.items()}
        environment["NODESTATE_DESIGNS"] = ",".join(designs)
        environment["NODESTATE_READ_DESIGN"] = designs[0]
        self.members = [
            Member(folder, number + 1, members, {**environment, **(member_settings[number] if member_settings else {})})
            for number in range(members)
        ]
        self.fleet = SimulatedFleet(self.config, count=count, rate=rate, pad_bytes=pad_bytes)
        self.watchers: list[ViewWatcher] = []
        self.counters: dict[str, dict[str, object]] = {}
        self._open = ExitStack()
        self._readers: dict[str, Reader] = {}

    # -- beginning and ending

    def __enter__(self) -> Self:
        try:
            for member in self.members:
                self._open.callback(member.kill)
                member.start()
                if self.alone and member is self.members[0]:
                    member.wait_for("partition taken over", self.config.partitions)
            self._open.callback(self.fleet.stop)
            self.fleet.start()
            self._readers = {
                design: self._open.enter_context(Reader(self.config, design=design)) for design in self.config.designs
            }
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._open:
            for watcher in self.watchers:
                watcher.stop()
            if kind is None:
                self.require_no_violations()
                for member in self.members:
                    if member.running:
                        self.counters[member.name] = member.stop()

    def begin(self) -> None:
        """Wait until all is well for the first time, then watch."""
        self.well()
        self.watch()

    def watch(self) -> None:
        """Let readers look at every design from now on."""
        self.watchers = [
            ViewWatcher(self.config, design, self.fleet, self.bound_s, cold=cold)
            for design in self.config.designs
            for cold in (False, True)
        ]
        for watcher in self.watchers:
            watcher.start()
        # A cold reader knows ages to two seconds only: what it sees is checked, but may not count as fresh.
        wait_until(
            lambda: all(watcher.reads if watcher.cold else watcher.fresh for watcher in self.watchers),
            "the watchers see nothing that is fresh",
        )

    def require_no_violations(self) -> None:
        """No read so far saw what must not be."""
        told = [violation for watcher in self.watchers for violation in watcher.violations]
        assert not told, "\n".join(["what readers saw was wrong:", *told, *self._logs()])

    # -- being well

    def read(self, design: str, max_age: float = math.inf) -> View:
        """A view of a reader that looked before."""
        return self._readers[design].read(max_age=max_age, on_stale="flag")

    def cold(self, design: str, max_age: float = math.inf) -> View:
        """A view of a reader that never looked before."""
        with Reader(self.config, design=design) as reader:
            return reader.read(max_age=max_age, on_stale="flag")

    def well(self, timeout_s: float = PATIENCE_S) -> float:
        """Wait until every view is fresh and complete, whatever happens meanwhile; returns how long it took."""
        return wait_until(
            lambda: not self.complaints(), lambda: "; ".join([*self.complaints(), *self._logs()]), timeout_s
        )

    def well_for_cold_readers(self, timeout_s: float = PATIENCE_S) -> float:
        """The same for readers that never looked before: they need every key that there is."""
        return wait_until(
            lambda: not self.complaints(cold=True),
            lambda: "; ".join([*self.complaints(cold=True), *self._logs()]),
            timeout_s,
        )

    def complaints(self, *, cold: bool = False) -> list[str]:
        """What keeps the views from being fresh and complete."""
        for member in self.members:
            member.require_alive()
        told = []
        for design in self.config.designs:
            view = self.cold(design, math.inf) if cold else self.read(design, self.bound_s)
            if view.age > self.bound_s and not cold:
                told.append(f"{design} is {view.age:.1f} s old ({[p.lost for p in view.partitions if p.lost][:2]})")
            if view.incomplete:
                told.append(f"{design} lacks {sorted(view.incomplete)[:6]} ({len(view.incomplete)})")
            missing = [name for name in self.fleet.names if name not in view.nodes]
            if missing:
                told.append(f"{design} has no {missing[:6]} ({len(missing)})")
        return told

    def equal(self, timeout_s: float = PATIENCE_S) -> float:
        """End the load; wait until each view, of warm and cold readers, is what the agents say, node by node."""
        rate, self.fleet.rate = self.fleet.rate, 0.0
        began = time.monotonic()
        self.fleet.flush(timeout_s)
        wait_until(
            lambda: not self.differences(),
            lambda: "; ".join([*self.differences(), *self._logs()]),
            timeout_s,
        )
        took_s = time.monotonic() - began
        self.fleet.rate = rate
        return took_s

    def differences(self) -> list[str]:
        """Where views and agents differ, in version or state; and what views can't vouch for."""
        truth = self.fleet.truth()
        told = []
        for design in self.config.designs:
            for kind, view in (("warm", self.read(design, self.bound_s)), ("cold", self.cold(design))):
                if view.stale or view.incomplete:
                    told.append(f"{kind} {design}: stale {len(view.stale)}, incomplete {sorted(view.incomplete)[:6]}")
                    break
                told += [f"{kind} {design}: {one}" for one in _differences(truth, view)]
        return told

    def recovered(self, what: str, timeout_s: float = PATIENCE_S) -> None:
        """The fault is over: wait until the views are well under load and then equal, and print how long it took."""
        fresh_s = self.well(timeout_s)
        equal_s = self.equal(timeout_s)
        self.require_no_violations()
        self.record(f"{what}: fresh and complete under load after {fresh_s:.1f} s, then equal after {equal_s:.1f} s")

    def reads(self) -> int:
        """Reads that were checked so far."""
        return sum(watcher.reads for watcher in self.watchers)

    def _logs(self) -> list[str]:
        if not os.environ.get("NODESTATE_FAULT_LOGS"):
            return []
        return [f"\n-- member {member.name}:\n{member.log_text()[-6000:]}" for member in self.members if member._lives]


def _differences(truth: dict[str, AuthoredState], view: View) -> list[str]:
    told = []
    for name, (version, state) in truth.items():
        record: NodeRecord | None = view.nodes.record(name)
        if record is None:
            told.append(f"{name} is not there, its agent is at {tuple(version)}")
        elif record.version != version:
            told.append(f"{name} is at {tuple(record.version)}, its agent at {tuple(version)}")
        elif state is not None and (name not in view.nodes or record.state() != state):
            told.append(f"{name} has another state at {tuple(version)}")
        elif state is None and name in view.nodes:
            told.append(f"{name} left and is still there")
    live = sum(1 for one in truth.values() if one.state is not None)
    if not told and len(view.nodes) != live:
        told.append(f"{len(view.nodes)} nodes where the agents are {live}")
    return told[:5]
