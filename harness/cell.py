"""A whole cell: broker, stores, consumers as processes, a simulated fleet and watchers; and when it is well again."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

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
"""Greatest age of a view that the watchers accept as fresh: five renewals."""

SETTINGS: Final = {
    "partitions": 8,
    "replicas": 1,
    "renew_s": 0.3,
    "standby_s": 0.5,
    "heartbeat_s": 0.5,
    "resync_jitter_s": 0.3,
    "broker_heartbeat_s": 1,
    "flush_s": 0.02,
}
"""nodestate's settings for a cell under test: renewals, takeovers and resyncs happen often.

It writes the designs that a test names, and adds no replicas to them.
"""
LOGS_VARIABLE: Final = "NODESTATE_FAULT_LOGS"
"""If this environment variable is set, a failed wait shows the members' logs."""
LOG_CHARACTERS: Final = 6_000
SHOWN_COUNT: Final = 6
"""Names of nodes that an explanation shows."""

Record = Callable[[str], None]
"""Keeps a measured figure, to be printed at the end of the run."""


class Cell:
    """A cell that runs within a ``with`` statement, which starts its consumers and then its fleet.

    ``alone``: the first member takes all partitions before the others start.

    At the end every watcher must have seen nothing wrong, and every member that runs must end in order.
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
        values: dict[str, Any] = {**SETTINGS, "cell": cell, "broker": broker, "store": store, **settings}
        values["state_dir"] = str(folder)
        self.config = Config(**{**values, "designs": tuple(designs), "read_design": designs[0]})
        self.record = record
        self.bound_s = bound_s
        """Greatest age in seconds of a view that counts as fresh."""
        self.alone = alone
        environment = {f"NODESTATE_{name.upper()}": str(value) for name, value in values.items()}
        environment["NODESTATE_DESIGNS"] = ",".join(designs)
        environment["NODESTATE_READ_DESIGN"] = designs[0]
        self.environment = environment
        """The settings as environment variables, for other processes of the cell."""
        self.members = [
            Member(folder, number + 1, members, {**environment, **(member_settings[number] if member_settings else {})})
            for number in range(members)
        ]
        self.fleet = SimulatedFleet(self.config, count=count, rate=rate, pad_bytes=pad_bytes)
        self.watchers: list[ViewWatcher] = []
        """Readers that check each view; ``watch`` starts them."""
        self.counters: dict[str, dict[str, object]] = {}
        """The counters of each member, by its name, once it has ended in order."""
        self._open = ExitStack()
        """Closes everything that was started."""
        self._readers: dict[str, Reader] = {}
        """One reader for each design, which every ``read`` uses."""

    # -- start and end

    def __enter__(self) -> Self:
        try:
            for member in self.members:
                self._open.callback(member.kill)
                member.start()
                if self.alone and member is self.members[0]:
                    member.wait_for_log("partition taken over", self.config.partitions)
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

    def watch(self) -> None:
        """Wait until all is well, then let a warm and a cold reader watch every design."""
        self.wait_until_well()
        self.watchers += [
            ViewWatcher(self.config, design, self.fleet, self.bound_s, cold=cold)
            for design in self.config.designs
            for cold in (False, True)
        ]
        for watcher in self.watchers:
            watcher.start()
        # A cold reader knows ages to two seconds only: its views are checked, but need not count as fresh.
        wait_until(
            lambda: all(watcher.reads if watcher.cold else watcher.fresh for watcher in self.watchers),
            "the watchers see no fresh view",
        )

    def watch_control_record(self) -> ViewWatcher:
        """Start a reader that follows the control record, as a scheduler does, and checks each view."""
        watcher = ViewWatcher(self.config, None, self.fleet, self.bound_s)
        self.watchers.append(watcher)
        watcher.start()
        return watcher

    def require_no_violations(self) -> None:
        """Raise AssertionError if a watcher has seen a view that must not be."""
        violations = [violation for watcher in self.watchers for violation in watcher.violations]
        assert not violations, "\n".join(["readers saw what must not be:", *violations, *self._logs()])

    # -- being well

    def read(self, design: str, max_age: float = math.inf) -> View:
        """Return a view of a reader that has read before."""
        return self._readers[design].read(max_age=max_age, on_stale="flag")

    def read_cold(self, design: str, max_age: float = math.inf) -> View:
        """Return a view of a new reader."""
        with Reader(self.config, design=design) as reader:
            return reader.read(max_age=max_age, on_stale="flag")

    def wait_until_well(self, timeout_s: float = PATIENCE_S) -> float:
        """Wait until every view is fresh and complete, while the fleet may go on changing; returns the seconds it
        took.
        """
        return wait_until(lambda: not self.problems(), lambda: "; ".join([*self.problems(), *self._logs()]), timeout_s)

    def wait_until_well_for_cold_readers(self, timeout_s: float = PATIENCE_S) -> float:
        """Wait until the views of new readers are complete: they need every key that there is."""
        return wait_until(
            lambda: not self.problems(cold=True),
            lambda: "; ".join([*self.problems(cold=True), *self._logs()]),
            timeout_s,
        )

    def problems(self, *, cold: bool = False) -> list[str]:
        """Return what keeps the views from being fresh and complete; of new readers only their completeness counts."""
        for member in self.members:
            member.require_alive()
        found = []
        for design in self.config.designs:
            view = self.read_cold(design) if cold else self.read(design, self.bound_s)
            if view.age > self.bound_s and not cold:
                found.append(f"{design} is {view.age:.1f} s old ({[p.lost for p in view.partitions if p.lost][:2]})")
            if view.incomplete:
                found.append(f"{design} lacks {sorted(view.incomplete)[:SHOWN_COUNT]} ({len(view.incomplete)})")
            missing = [name for name in self.fleet.names if name not in view.nodes]
            if missing:
                found.append(f"{design} has no {missing[:SHOWN_COUNT]} ({len(missing)})")
        return found

    def wait_until_equal(self, timeout_s: float = PATIENCE_S) -> float:
        """Stop the changes; wait until each view, of warm and new readers, equals the states of the agents, node by
        node.

        Then the changes go on. Returns the seconds that it took.
        """
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
        """Return the differences in version or state between views and agents, and the nodes that the views exclude."""
        authored = self.fleet.authored_states()
        found = []
        for design in self.config.designs:
            for kind, view in (("warm", self.read(design, self.bound_s)), ("cold", self.read_cold(design))):
                if view.stale or view.incomplete:
                    incomplete = sorted(view.incomplete)[:SHOWN_COUNT]
                    found.append(f"{kind} {design}: stale {len(view.stale)}, incomplete {incomplete}")
                    break
                found += [f"{kind} {design}: {one}" for one in _differences(authored, view)]
        return found

    def wait_until_recovered(self, after: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait, after a fault, until the views are well while nodes change, and then equal; record how long it took."""
        fresh_s = self.wait_until_well(timeout_s)
        equal_s = self.wait_until_equal(timeout_s)
        self.require_no_violations()
        self.record(f"{after}: fresh and complete under load after {fresh_s:.1f} s, then equal after {equal_s:.1f} s")

    def checked_reads(self) -> int:
        """Return how many views the watchers have checked."""
        return sum(watcher.reads for watcher in self.watchers)

    def wait_for_checked_reads(self, count: int) -> None:
        """Wait until the watchers have checked ``count`` more views."""
        before = self.checked_reads()
        wait_until(lambda: self.checked_reads() >= before + count, f"the watchers do not check {count} more views")

    def _logs(self) -> list[str]:
        if not os.environ.get(LOGS_VARIABLE):
            return []
        return [
            f"\n-- {member.name}:\n{member.log_text()[-LOG_CHARACTERS:]}" for member in self.members if member.started
        ]


def _differences(authored: dict[str, AuthoredState], view: View) -> list[str]:
    found = []
    for name, (version, state) in authored.items():
        record: NodeRecord | None = view.nodes.record(name)
        if record is None:
            found.append(f"{name} is not there, its agent is at {tuple(version)}")
        elif record.version != version:
            found.append(f"{name} is at {tuple(record.version)}, its agent at {tuple(version)}")
        elif state is not None and (name not in view.nodes or record.state() != state):
            found.append(f"{name} has another state at {tuple(version)}")
        elif state is None and name in view.nodes:
            found.append(f"{name} left and is still there")
    live = sum(1 for one in authored.values() if one.state is not None)
    if not found and len(view.nodes) != live:
        found.append(f"{len(view.nodes)} nodes where the agents are {live}")
    return found[:SHOWN_COUNT]
