"""A fleet of simulated agents that knows its own truth, and when the broker had which part of it.

One thread owns the sink and one ``Publisher`` per node; ``call`` runs a function in it. For each node it keeps

- the truth: the newest version and state, as its author has it;
- the history: the body of every version that was ever sent, since a version names one state for ever;
- the confirms: which version the broker had confirmed by when. What a view claims to contain is judged by these.
"""

from __future__ import annotations

import bisect
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeVar

from nodestate.agent.publisher import Publisher, concerns
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
"""A fleet that was held up for longer does not make up for the changes that it did not make."""
KEPT_EVENTS_COUNT: Final = 20_000


class AuthoredState(NamedTuple):
    """A node as its author has it; ``state`` is None where it left."""

    version: Version
    state: Mapping[str, Any] | None


class ConfirmLog:
    """When the broker confirmed which version of one node. Written by one thread, read by others."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._newest: list[Version] = []

    def note(self, at: float, version: Version) -> None:
        """The broker has this version, at the latest since ``at``."""
        newest = max(version, self._newest[-1]) if self._newest else version
        self._newest.append(newest)
        self._times.append(at)  # last: a reader that sees the time finds the version

    def newest_by(self, at: float) -> Version:
        """The newest version that was confirmed by then."""
        return self._newest[place - 1] if (place := bisect.bisect_right(self._times, at)) else NEVER


class WitnessSink:
    """A ``ports.Sink`` around the real one, that notes what was sent and confirmed, and loses what it is told to.

    ``lose``: a predicate of events that are published nowhere while their author believes that they were.
    ``swap``: a predicate of events that are held back until the next one of the same node went out.
    """

    def __init__(self, inner: KombuSink, confirms: Mapping[str, ConfirmLog]) -> None:
        self.inner = inner
        self.lose: Callable[[Event], bool] | None = None
        self.swap: Callable[[Event], bool] | None = None
        self.before_sending: Callable[[str], None] = lambda _node: None
        self.sent: deque[tuple[int, bytes]] = deque(maxlen=KEPT_EVENTS_COUNT)
        self.lost = 0
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
            on_done(ok)

        if self.swap is not None and event.node not in self._held and self.swap(event):
            self._held[event.node] = (bucket, body, done)
            return
        self.inner.publish(bucket, body, done)
        if event.node in self._held:
            self._send_held(event.node)

    def let_go(self) -> None:
        """Send what is still held back."""
        self.swap = None
        while self._held:
            self._send_held(next(iter(self._held)))

    def _send_held(self, node: str) -> None:
        bucket, body, done = self._held.pop(node)
        try:
            self.inner.publish(bucket, body, done)
        except BrokerUnavailableError:  # as with any other: whoever sent it learns that it is lost
            done(False)

    def flush(self, timeout_s: float) -> None:
        """Wait until the broker has confirmed everything, at most ``timeout_s``."""
        self.inner.flush(timeout_s)

    def resyncs(self, timeout_s: float) -> list[Resync]:
        """Return the resync requests that arrived; waits at most ``timeout_s``."""
        return self.inner.resyncs(timeout_s)

    def answer_census(self, queue: str, body: bytes) -> None:
        """Answer a census of nodes, as the real sink does."""
        self.inner.answer_census(queue, body)

    def close(self) -> None:
        """Close the real sink."""
        self.inner.close()


class SimulatedFleet:
    """``count`` nodes that together change ``rate`` times a second, give signs of life, and answer resyncs.

    Those in ``silent`` are dead: they do none of that. Nothing happens on those in ``still`` by itself. ``mute``: nobody
    answers, nor gives signs of life.
    """

    def __init__(
        self, config: Config, *, count: int = 200, rate: float = 300.0, seed: int = 1, pad_bytes: int = 0
    ) -> None:
        self.config = config
        self.rate = rate
        self.pad_bytes = pad_bytes
        self.mute = False
        self.silent: set[str] = set()
        self.still: set[str] = set()
        self.names = [f"compute-{number:04}" for number in range(count)]
        self._in_layouts: dict[int, dict[int, list[str]]] = {}
        self.of_partition = self.in_layout(config.partitions)
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

    def in_layout(self, partitions: int) -> dict[int, list[str]]:
        """The names of each partition in a layout of so many."""
        layout = self._in_layouts.get(partitions)
        if layout is None:
            layout = {number: [] for number in range(partitions)}
            for name in self.names:
                layout[partition_of(name, partitions)].append(name)
            self._in_layouts[partitions] = layout
        return layout

    # -- for the test's thread

    def start(self) -> None:
        """Report every node, then go on by itself."""
        self._thread.start()

    def call(self, what: Callable[[], T], timeout_s: float = 60.0) -> T:
        """Run ``what`` in the fleet's thread, between two of its steps."""
        answer: Future[T] = Future()
        self._calls.put((what, answer))
        return answer.result(timeout_s)

    def truth(self) -> dict[str, AuthoredState]:
        """Every node that ever reported."""
        return self.call(
            lambda: {
                name: AuthoredState(one.version, one.state() if one.live else None)
                for name, one in self.publishers.items()
                if one.version.generation
            }
        )

    def stop(self) -> None:
        """End the thread and close the connection. Raises what ended it before, if anything did."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(30.0)
        assert not self._thread.is_alive(), "the fleet hangs"
        if self.failure is not None:
            raise self.failure

    # -- in the fleet's thread, through ``call``

    def publisher(
        self, name: str, incarnation: int | None = None, clock: Clock | None = None, config: Config | None = None
    ) -> Publisher:
        """Another author of this node, in place of the one before: its next life."""
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
        """One more thing that happened on this node."""
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
        """A whole state, as random as the changes."""
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
        except BaseException as error:  # noqa: BLE001 - told by stop(), in the test's thread
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
                if self.publishers[name].live and name not in self.silent | self.still:
                    self.change(name)
            while beats[0][0] <= now:
                at, name = beats.popleft()
                beats.append((max(at + beat_s, now), name))
                if self.publishers[name].live and not self.mute and name not in self.silent:
                    self.publishers[name].heartbeat()
            self._keep_up()

    def _keep_up(self) -> None:
        """What an agent does for its nodes: take requests, answer them in their time, send again what was lost."""
        if not self._backoff.ready:
            time.sleep(TICK_S)
            return
        try:
            for resync in self.sink.resyncs(TICK_S):
                for name, one in self.publishers.items():
                    if not self.mute and name not in self.silent and concerns(resync, name, one.bucket):
                        self.answers += 1
                        one.resync(resync)
                        self._answering.add(name)
        except BrokerUnavailableError:
            self._backoff.failed()
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
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            answer.set_exception(error)

    def flush(self, timeout_s: float = 30.0) -> None:
        """Wait until the broker has the newest state of every node; from the test's thread."""
        deadline = time.monotonic() + timeout_s
        while True:
            if self.call(self._flushed):
                return
            assert time.monotonic() < deadline, f"the broker did not take the fleet's states within {timeout_s:g} s"
            time.sleep(0.05)

    def _flushed(self) -> bool:
        try:
            self.sink.flush(1.0)
        except (BrokerUnavailableError, UnconfirmedError):
            return False
        return not self._dirty and not self._answering


def with_patch(state: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """A state after a merge patch; for expectations."""
    merged: dict[str, Any] = merge_patch(dict(state), patch)
    return merged
