"""A fleet of simulated agents that knows what each agent authored, and when the broker confirmed it.

One thread owns the sink and one ``Publisher`` for each node; ``call`` runs a function in this thread. For each node the
fleet keeps

- the authored state: the newest version and state that its agent has;
- the history: the body of every version that was ever sent, since a version names one state for ever;
- the confirm log: when the broker confirmed which version. Watchers compare the claims of views with it.
"""

from __future__ import annotations

import bisect
import math
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeVar

from harness.waiting import PATIENCE_S, wait_until
from nodestate.agent.publisher import Publisher
from nodestate.agent.resync_scope import concerns
from nodestate.broker import KombuSink
from nodestate.config import Config
from nodestate.errors import BrokerUnavailableError, UnconfirmedError
from nodestate.model import NEVER, Event, Heartbeat, NodeRecord, Version, merge_patch, parse_event
from nodestate.model.partitioning import partition_of
from nodestate.ports import Clock, Resync, SystemClock
from nodestate.ports.backoff import Backoff

T = TypeVar("T")

TICK_S: Final = 0.005
MAX_BURST_S: Final = 0.5
"""After a delay of more than this the fleet does not catch up on the changes that it did not make."""
KEPT_EVENTS_COUNT: Final = 20_000
"""The newest events that are kept, to be sent once more."""


class AuthoredState(NamedTuple):
    """A node as its agent has it; ``state`` is None if the node left."""

    version: Version
    state: Mapping[str, Any] | None


class ConfirmLog:
    """When the broker confirmed which version of one node. One thread writes it, others read it."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._newest: list[Version] = []

    def note(self, at: float, version: Version) -> None:
        """Note that the broker has had this version since ``at`` at the latest."""
        newest = max(version, self._newest[-1]) if self._newest else version
        self._newest.append(newest)
        self._times.append(at)  # last: a reader that sees the time finds the version

    def __len__(self) -> int:
        """The number of confirms."""
        return len(self._times)

    def newer_since(self, version: Version) -> float:
        """Return when the broker first confirmed a version newer than this one; infinity if it did not."""
        place = bisect.bisect_right(self._newest, version)
        return self._times[place] if place < len(self._times) else math.inf

    def newest_by(self, at: float) -> Version:
        """Return the newest version that was confirmed by ``at``."""
        return self._newest[place - 1] if (place := bisect.bisect_right(self._times, at)) else NEVER


class WitnessSink:
    """A ``ports.Sink`` around the real one: records sent and confirmed events, and loses or swaps events on demand."""

    def __init__(self, inner: KombuSink, confirms: Mapping[str, ConfirmLog]) -> None:
        self.inner = inner
        self.lose: Callable[[Event], bool] | None = None
        """Chooses events that are not published although their agent is told that they were confirmed."""
        self.swap: Callable[[Event], bool] | None = None
        """Chooses events that are sent after the next event of the same node."""
        self.before_sending: Callable[[str], None] = lambda _node: None
        """Called with the name of the node before each event."""
        self.sent: deque[tuple[int, bytes]] = deque(maxlen=KEPT_EVENTS_COUNT)
        """Bucket and body of the newest events."""
        self.lost = 0
        """How many events ``lose`` chose."""
        self.unconfirmed = 0
        """How many events their agents had to send again, because the broker did not confirm them."""
        self._confirms = confirms
        self._held: dict[str, tuple[int, bytes, Callable[[bool], None]]] = {}

    def publish(self, bucket: int, body: bytes, on_done: Callable[[bool], None]) -> None:
        """Publish an event unless ``lose`` or ``swap`` applies to it, and note when the broker confirmed it."""
        event = parse_event(body)
        if type(event) is Heartbeat:
            self.inner.publish(bucket, body, on_done)
            return
        self.before_sending(event.node)
        self.sent.append((bucket, body))
        if self.lose is not None and self.lose(event):
            self.lost += 1
            on_done(True)
            return

        def done(ok: bool) -> None:
            if ok:
                self._confirms[event.node].note(time.monotonic(), event.version)
            else:
                self.unconfirmed += 1
            on_done(ok)

        if self.swap is not None and event.node not in self._held and self.swap(event):
            self._held[event.node] = (bucket, body, done)
            return
        self.inner.publish(bucket, body, done)
        if event.node in self._held:
            self._send_held(event.node)

    def stop_swapping(self) -> None:
        """Send the events that are still held back."""
        self.swap = None
        while self._held:
            self._send_held(next(iter(self._held)))

    def _send_held(self, node: str) -> None:
        bucket, body, done = self._held.pop(node)
        try:
            self.inner.publish(bucket, body, done)
        except BrokerUnavailableError:  # as for any event: its agent learns that it is lost
            done(False)

    def flush(self, timeout_s: float) -> None:
        """Wait until the broker has confirmed everything, at most ``timeout_s``."""
        self.inner.flush(timeout_s)

    def resyncs(self, timeout_s: float) -> list[Resync]:
        """Return the resync requests that arrived; waits at most ``timeout_s``."""
        return self.inner.resyncs(timeout_s)

    def answer_census(self, queue: str, node: str, body: bytes) -> None:
        """Answer a census of nodes, as the real sink does."""
        self.inner.answer_census(queue, node, body)

    def close(self) -> None:
        """Close the real sink."""
        self.inner.close()


class SimulatedFleet:
    """``count`` nodes that together change ``rate`` times a second, send heartbeats and answer resync requests."""

    def __init__(
        self, config: Config, *, count: int = 200, rate: float = 300.0, seed: int = 1, pad_bytes: int = 0
    ) -> None:
        self.config = config
        self.rate = rate
        self.pad_bytes = pad_bytes
        """Bytes by which every state is made larger."""
        self.mute = False
        """If true, no node sends heartbeats or answers resync requests."""
        self.dead: set[str] = set()
        """Nodes that send nothing at all."""
        self.unchanging: set[str] = set()
        """Nodes that change only when the test changes them."""
        self.names = [f"compute-{number:04}" for number in range(count)]
        self._layouts: dict[int, dict[int, list[str]]] = {}
        self.names_of_partition = self.names_by_partition(config.partitions)
        self.confirms = {name: ConfirmLog() for name in self.names}
        self.history: dict[str, dict[Version, bytes]] = {name: {} for name in self.names}
        self.changes = 0
        self.answers = 0
        self.sink = WitnessSink(KombuSink(config), self.confirms)
        self.sink.before_sending = self._remember
        self.publishers: dict[str, Publisher] = {}
        self.failure: BaseException | None = None
        self._rng = random.Random(seed)
        self._clock = SystemClock()
        self._backoff = Backoff(self._clock, self._rng, config.heartbeat_s / 2)
        self._dirty: set[str] = set()
        self._answering: set[str] = set()
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleet", daemon=True)

    def names_by_partition(self, partitions: int) -> dict[int, list[str]]:
        """Return the names of the nodes of each partition, in a layout of this many partitions."""
        layout = self._layouts.get(partitions)
        if layout is None:
            layout = {number: [] for number in range(partitions)}
            for name in self.names:
                layout[partition_of(name, partitions)].append(name)
            self._layouts[partitions] = layout
        return layout

    # -- for the test's thread

    def start(self) -> None:
        """Start the thread, which reports every node and then lets them change."""
        self._thread.start()

    def call(self, what: Callable[[], T], timeout_s: float = PATIENCE_S) -> T:
        """Run ``what`` in the fleet's thread, between two of its steps; returns its result or raises its error."""
        answer: Future[T] = Future()
        self._calls.put((what, answer))
        return answer.result(timeout_s)

    def authored_states(self) -> dict[str, AuthoredState]:
        """Return version and state of every node that ever reported, as its agent has them."""
        return self.call(
            lambda: {
                name: AuthoredState(one.version, one.state() or None)
                for name, one in self.publishers.items()
                if one.version.generation
            }
        )

    def stop(self) -> None:
        """End the thread and close the connection. Raises the error that ended the thread before, if there was one."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the fleet hangs"
        if self.failure is not None:
            raise self.failure

    # -- in the fleet's thread, through ``call``

    def publisher(
        self, name: str, incarnation: int | None = None, clock: Clock | None = None, config: Config | None = None
    ) -> Publisher:
        """Replace the agent of this node by a new one, which begins the node's next life; returns its publisher."""
        one = self.publishers[name] = Publisher(
            config or self.config,
            name,
            sink=self.sink,
            inbox=self.sink.inner,
            clock=clock or self._clock,
            incarnation=incarnation,
            backoff=self._backoff,
            on_dirty=self._dirty.add,
            rng=self._rng,
        )
        return one

    def change(self, name: str) -> None:
        """Let something random happen on this node."""
        rng, one = self._rng, self.publishers[name]
        self.changes += 1
        what = rng.random()
        if what < 0.02:
            one.report(self.state(name))
        elif what < 0.15:
            consumer = f"vm-{rng.randrange(6)}"
            allocation = None if rng.random() < 0.5 else {"resources": {"VCPU": rng.randint(1, 8)}, "group": "web"}
            one.change({"allocations": {consumer: allocation}, "usage": {"VCPU": rng.randint(0, 64)}})
        else:
            one.change(
                {"usage": {"VCPU": rng.randint(0, 64)}, "metrics": {"cpu.percent": round(100 * rng.random(), 2)}}
            )

    def state(self, name: str) -> dict[str, Any]:
        """Return a random whole state for this node."""
        rng = self._rng
        return {
            "status": "up",
            "zone": f"az{rng.randint(1, 3)}",
            "inventory": {"VCPU": {"total": 64, "reserved": 2}, "MEMORY_MB": {"total": 262_144}},
            "usage": {"VCPU": rng.randint(0, 64), "MEMORY_MB": rng.randint(0, 262_144)},
            "traits": ["HW_CPU_X86_AVX2"],
            "metrics": {"cpu.percent": round(100 * rng.random(), 2)},
            "namespaces": {"test": {"name": name, "pad": "x" * self.pad_bytes}},
        }

    # -- inside

    def _remember(self, name: str) -> None:
        record: NodeRecord | None = self.publishers[name]._record
        if record is not None:
            self.history[name][record.version] = record.body

    def _run(self) -> None:
        try:
            self._report_all()
            self._live()
        except BaseException as error:  # noqa: BLE001 - stop() raises it in the test's thread
            self.failure = error
        finally:
            with suppress(BrokerUnavailableError):
                self.sink.close()
            while not self._calls.empty():
                self._calls.get()[1].set_exception(RuntimeError(f"the fleet ended: {self.failure!r}"))

    def _report_all(self) -> None:
        incarnation = int(self._clock.time())
        for name in self.names:
            self.publisher(name, incarnation).report(self.state(name))

    def _live(self) -> None:
        now = time.monotonic()
        beat_s = self.config.heartbeat_s
        beats = deque((now + beat_s * place / len(self.names), name) for place, name in enumerate(self.names))
        due, then = 0.0, now
        while not self._ending.is_set():
            with suppress(queue.Empty):
                while True:
                    self._answer_call(*self._calls.get_nowait())
            now = time.monotonic()
            due += min(MAX_BURST_S, now - then) * self.rate
            then = now
            while due >= 1.0:
                due -= 1.0
                name = self._rng.choice(self.names)
                if self.publishers[name].live and name not in self.dead | self.unchanging:
                    self.change(name)
            while beats and beats[0][0] <= now:
                at, name = beats.popleft()
                beats.append((max(at + beat_s, now), name))
                if self.publishers[name].live and not self.mute and name not in self.dead:
                    self.publishers[name].heartbeat()
            self._keep_up()

    def _keep_up(self) -> None:
        """Act as the agent of the nodes: receive resync requests, answer them, send lost states again."""
        if not self._backoff.ready:
            time.sleep(TICK_S)
            return
        try:
            for resync in self.sink.resyncs(TICK_S):
                for name, one in self.publishers.items():
                    if not self.mute and name not in self.dead and concerns(resync, name, one.bucket):
                        self.answers += 1
                        one.resync(resync)
                        self._answering.add(name)
        except BrokerUnavailableError as error:
            self._backoff.failed(error.cause)
            return
        self._backoff.worked()
        for name in list(self._answering | self._dirty):
            one = self.publishers[name]
            one.tick()
            if one._answer_at is None:
                self._answering.discard(name)
            if not one.dirty:
                self._dirty.discard(name)

    def _answer_call(self, what: Callable[[], Any], answer: Future[Any]) -> None:
        try:
            answer.set_result(what())
        except BaseException as error:  # noqa: BLE001 - it belongs to the caller of call()
            answer.set_exception(error)

    def flush(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait until the broker has confirmed the newest state of every node. Called in the test's thread."""
        wait_until(lambda: self.call(self._flushed), "the broker does not confirm the fleet's states", timeout_s)

    def _flushed(self) -> bool:
        try:
            self.sink.flush(1.0)
        except (BrokerUnavailableError, UnconfirmedError):
            return False
        return not self._dirty and not self._answering


def with_patch(state: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state that a merge patch makes of ``state``."""
    merged: dict[str, Any] = merge_patch(dict(state), patch)
    return merged
