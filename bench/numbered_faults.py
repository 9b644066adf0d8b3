"""Faults of queues, exchanges, memcached and connections that an operator once had to repair, each with its number.

For each fault the run notes when the fault began, when its cause ended, and when nodestate worked again: a new reader
has a complete and fresh view, or a boot succeeds, or an agent answers. Meanwhile a reader reads all the time, and its
claims are compared with the events that the broker had confirmed.
"""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, Final, NamedTuple

import amqp

from bench.boot_probe import BootProbe
from bench.memcached_environment import MemcachedEnvironment
from bench.record import Case, Measure
from bench.recovery_times import BOUND_S, PATIENCE_S, FaultTarget, measure_recovery, wait_until_at_rest
from bench.scenario import ReportProgress
from bench.view_observer import ViewObserver
from bench.workload import require
from harness.commands import start_command
from harness.proxies import TcpProxy
from harness.waiting import wait_until
from nodestate.broker import KombuResyncSender, Topology, queue_depths
from nodestate.broker.topology import DEAD_KEY
from nodestate.errors import BrokerUnavailableError
from nodestate.ports import Resync

HEALED: Final = "healed, from the fault"
HEALED_FROM_END: Final = "healed, from the end of its cause"
ERRORS: Final = "errors meanwhile"
AGE_ERROR: Final = "worst age error"
WINDOW_S: Final = 10.0
"""Longest time for which a cause that does not end by itself lasts."""
FREEZE_S: Final = 8.0
MANY: Final = 2_500
"""Messages that can't be decoded, more than a consumer holds without an ack (``prefetch``)."""
LOST_EVENTS: Final = 20
"""Confirmed messages that are lost with their queue."""
LAST_LOOK_S: Final = 0.5
"""How long before the end of a freeze a reader reads for the first time since its beginning."""
BRIEF_S: Final = 1.0
DOCTOR_TIMEOUT_S: Final = 60.0
ANSWER_S: Final = 1.0
"""Time in seconds that an agent has to answer a resync request."""
RETRY_S: Final = 0.5
"""Pause between two failed boots or requests."""
DOCTOR_FINDINGS_COUNT: Final = 3
WARNINGS_COUNT: Final = 2
"""Number of different log entries that are shown."""
OTHER_LAYOUT: Final = 6
GROWTH_S: Final = 0.5
"""Time in which a queue that gets events grows."""
FINDING_CHARACTERS: Final = 100


class FaultRun:
    """One fault while it is caused and observed."""

    def __init__(self, target: FaultTarget, seconds: float) -> None:
        self.target, self.cell, self.config = target, target.cell, target.cell.config
        self.topology = Topology.of(self.config)
        self.window_s = min(WINDOW_S, seconds)
        self.freeze_s = min(FREEZE_S, seconds)
        self.asks_doctor = seconds >= BRIEF_S
        self.measures: dict[str, Measure] = {}
        """Figures of this fault alone."""
        self.errors: list[str] = []
        """Reasons why boots and requests failed."""
        self.observers = [ViewObserver(self.cell, target.design, BOUND_S)]
        """Readers that observe the fault. The first one reads all the time."""
        self._fault_at = self._cause_ended_at = self._healed_at = 0.0
        self._unconfirmed = 0
        self._doctor: subprocess.Popen[str] | None = None
        # What the doctor found.
        self._findings: list[str] = []
        # Characters of each member's log from before the fault.
        self._logged = [len(member.log_text()) for member in self.cell.members]

    @contextmanager
    def channel(self) -> Iterator[Any]:
        """A channel of an operator's connection to the broker."""
        with amqp.Connection(self.target.rabbit.address) as connection:
            yield connection.channel()

    @property
    def memcached(self) -> MemcachedEnvironment:
        """The environment of the cell."""
        assert isinstance(self.target.environment, MemcachedEnvironment), "these faults need memcached"
        return self.target.environment

    # -- steps of a fault

    def begin(self, *, ask_doctor: bool = True) -> None:
        """Note that the fault has been caused; the cause is over unless ``end_cause`` says otherwise."""
        self._fault_at = self._cause_ended_at = time.monotonic()
        self._unconfirmed = self.cell.fleet.sink.unconfirmed
        if ask_doctor:
            self.ask_doctor()

    def ask_doctor(self) -> None:
        """Start ``nodestate doctor``, unless the run is brief or the doctor was asked before."""
        if self.asks_doctor and self._doctor is None:
            self._doctor = start_command(self.cell.environment, "doctor", "--json")

    def end_cause(self) -> None:
        """Note that the cause is over."""
        self._cause_ended_at = time.monotonic()

    def heal(self) -> None:
        """Note that nodestate works again."""
        self._healed_at = time.monotonic()

    def heal_views(self) -> None:
        """Wait until the views of an existing and of a new reader are complete, fresh and show new changes."""
        measure_recovery(self.target)
        self.heal()

    def note(self, name: str, value: float, unit: str) -> None:
        """Keep a figure of this fault alone."""
        self.measures[name] = Measure.of(unit, [value])

    def confirms_of(self, partitions: Sequence[int]) -> int:
        """Return how many events of these partitions the broker has confirmed so far."""
        fleet = self.cell.fleet
        return sum(len(fleet.confirms[name]) for number in partitions for name in fleet.names_of_partition[number])

    def confirms_per_s(self, partitions: Sequence[int]) -> float:
        """Count the confirmed events of these partitions for the length of the window."""
        before, began = self.confirms_of(partitions), time.monotonic()
        time.sleep(self.window_s)
        return (self.confirms_of(partitions) - before) / (time.monotonic() - began)

    def retry(self, error_of: Callable[[], str], what: str) -> None:
        """Call a probe until it returns no error, and keep its errors."""
        began = time.monotonic()
        while error := error_of():
            self.errors.append(error)
            require(time.monotonic() - began < PATIENCE_S, f"{what} after {PATIENCE_S:g} s: {error}")
            time.sleep(RETRY_S)

    # -- results

    def figures(self) -> dict[str, Measure]:
        """Return all figures of the fault."""
        unconfirmed = self.cell.fleet.sink.unconfirmed - self._unconfirmed
        age_error_s = max(observer.age_error_s for observer in self.observers)
        return {
            HEALED: Measure.of("s", [self._healed_at - self._fault_at]),
            HEALED_FROM_END: Measure.of("s", [self._healed_at - self._cause_ended_at]),
            ERRORS: Measure.of("errors", [float(len(self.errors) + unconfirmed)]),
            AGE_ERROR: Measure.of("s", [age_error_s]),
            **self.measures,
        }

    def said(self, usual: Sequence[str]) -> list[str]:
        """Return what views, errors, logs of consumers and the doctor said, without what the doctor says
        ``usual``ly.
        """
        first = self.observers[0]
        said = []
        if first.stale:
            oldest = max(first.oldest_s.values())
            said.append(f"views: {len(first.stale)} of {self.config.partitions} partitions stale, up to {oldest:.1f} s")
        if first.incomplete:
            partitions = sorted(name for name in first.incomplete if name.startswith("partition "))
            named = f"{partitions[0]}{' and others' if len(partitions) > 1 else ''}" if partitions else ""
            nodes = len(first.incomplete) - len(partitions)
            said.append("views: incomplete, " + " and ".join(filter(None, [named, f"{nodes} nodes" if nodes else ""])))
        said += [f"error: {one}" for one in dict.fromkeys(self.errors[:1])]
        said += [f"log: {_shortened(one)}" for one in list(dict.fromkeys(self._warnings()))[:WARNINGS_COUNT]]
        findings = [one for one in self.doctor_findings() if _without_figures(one) not in usual]
        return [*said, *(f"doctor: {_shortened(one)}" for one in findings[:DOCTOR_FINDINGS_COUNT])]

    def _warnings(self) -> Iterator[str]:
        """Yield the warnings and errors that consumers logged since the fault began, each without its details."""
        for member, logged in zip(self.cell.members, self._logged, strict=True):
            text = member.log_text()
            for line in text[logged if len(text) >= logged else 0 :].splitlines():  # another life has another log
                if '"warning"' in line or '"error"' in line:
                    with suppress(ValueError):  # the last line may be incomplete
                        entry = json.loads(line)
                        yield f"{entry['event']}{f': {reason}' if (reason := entry.get('reason')) else ''}"

    def doctor_findings(self) -> list[str]:
        """Wait for the doctor, if it was asked, and return its findings other than OK."""
        self.finish_doctor()
        findings, self._findings = self._findings, []
        return findings

    def finish_doctor(self) -> None:
        """Wait for the doctor, if it was asked."""
        if self._doctor is None:
            return
        with self._doctor as process:
            out, err = process.communicate(timeout=DOCTOR_TIMEOUT_S)
        self._doctor = None
        if not out.strip():
            self._findings = err.strip().splitlines()[-1:]
            return
        findings = json.loads(out)["findings"]
        self._findings = [f"{one['level']} {one['about']}: {one['says']}" for one in findings if one["level"] != "OK"]

    def close(self) -> None:
        """End observers and the doctor."""
        for observer in self.observers:
            observer.stop()
        if self._doctor is not None:
            self._doctor.kill()
            self._doctor.communicate()


def _without_figures(finding: str) -> str:
    return re.sub(r"[\d.,]+", "#", finding)


def _shortened(finding: str) -> str:
    """Return the finding without addresses, which differ in each run, and without its end if it is long."""
    return textwrap.shorten(re.sub(r"127\.0\.0\.1:\d+", "SERVER", finding), FINDING_CHARACTERS, placeholder=" …")


# -- the faults -----------------------------------------------------------------------------------


def delete_events_exchange(run: FaultRun) -> None:
    """Delete the exchange to which agents publish."""
    with run.channel() as channel:
        channel.exchange_delete(run.topology.exchange)
    run.begin()
    run.heal_views()


def delete_orders_exchange(run: FaultRun) -> None:
    """Delete the exchange for orders, and boot until a boot succeeds."""
    with BootProbe(run.config) as probe:
        with run.channel() as channel:
            channel.exchange_delete(run.topology.orders)
        run.begin()
        run.retry(probe.boot_error, "no boot succeeds")
        run.heal()


def delete_control_exchange(run: FaultRun) -> None:
    """Delete the exchange for resync requests, and ask an agent until it answers."""
    fleet, sender = run.cell.fleet, KombuResyncSender(run.config)

    def ask() -> str:
        answers, deadline = fleet.answers, time.monotonic() + ANSWER_S
        try:
            sender.request_resync(Resync(nodes=(fleet.names[0],)))
        except BrokerUnavailableError as error:
            return str(error)
        while fleet.answers == answers:
            if time.monotonic() > deadline:
                return f"no agent answered a resync request within {ANSWER_S:g} s"
            time.sleep(0.02)
        return ""

    try:
        wait_until(lambda: not ask(), "agents answer no resync request before the fault", PATIENCE_S)
        with run.channel() as channel:
            channel.exchange_delete(run.topology.control)
        run.begin()
        run.retry(ask, "agents answer no resync request")
        run.heal()
    finally:
        sender.close()


def delete_queue_without_consumers(run: FaultRun) -> None:
    """Kill all consumers and delete one queue: events of other partitions must be confirmed as before."""
    others = range(1, run.config.partitions)
    run.note("confirms of other partitions before", run.confirms_per_s(others), "events/s")
    for member in run.cell.members:
        member.kill()
    with run.channel() as channel:
        channel.queue_delete(run.topology.queue(0))
    run.begin()
    run.note("confirms of other partitions meanwhile", run.confirms_per_s(others), "events/s")
    for member in run.cell.members:
        member.start()
    run.end_cause()
    run.heal_views()


def break_dead_letters(run: FaultRun, *, full: bool, count: int) -> None:
    """Delete the dead-letter queue, or fill it, and publish messages to partition 0 that can't be decoded."""
    dead, sink = run.topology.dead, run.cell.fleet.sink.inner

    def publish() -> None:
        for number in range(count):
            sink.publish(0, b"\xc1 is no event %d" % number, lambda _ok: None)

    def letters() -> int:
        return queue_depths(run.config)[-1].ready

    with run.channel() as channel:
        channel.queue_delete(dead)
        if full:
            arguments = {"x-max-length": 0, "x-overflow": "reject-publish"}
            channel.queue_declare(dead, durable=True, auto_delete=False, arguments=arguments)
            channel.queue_bind(dead, dead, DEAD_KEY)
        run.begin(ask_doctor=False)
        run.cell.fleet.call(publish)
        if full:
            time.sleep(run.window_s / 2)
            run.ask_doctor()
            time.sleep(run.window_s / 2)
            channel.queue_delete(dead)
            run.end_cause()
        run.ask_doctor()
        wait_until(lambda: letters() == count, lambda: f"{letters()} of {count} letters arrive", PATIENCE_S)
        run.heal_views()
        oldest = max(run.observers[0].oldest_s[number] for number in range(1, run.config.partitions))
        run.note("oldest view of other partitions", oldest, "s")
        channel.queue_purge(dead)


def delete_queue_with_messages(run: FaultRun) -> None:
    """Delete the queue of a partition while confirmed messages wait in it, because its consumers are frozen."""
    for member in run.cell.members:
        member.pause()
    before = run.confirms_of([0])
    wait_until(lambda: run.confirms_of([0]) >= before + LOST_EVENTS, "no events are confirmed", PATIENCE_S)
    with run.channel() as channel:
        channel.queue_delete(run.topology.queue(0))
    run.begin()
    for member in run.cell.members:
        member.resume()
    run.end_cause()
    run.heal_views()


def restart_servers_without_agents(run: FaultRun) -> None:
    """Restart memcached and the broker while no agent lives: only the consumers know the nodes."""
    cell, fleet, names = run.cell, run.cell.fleet, set(run.cell.fleet.names)
    fleet.rate, rate = 0.0, fleet.rate
    fleet.flush(PATIENCE_S)
    fleet.call(lambda: fleet.dead.update(names))
    wait_until(lambda: not cell.differences(), lambda: "; ".join(cell.differences()), PATIENCE_S)
    try:
        for server in (run.memcached.server, run.target.rabbit):
            server.kill()
        run.begin()
        for server in (run.memcached.server, run.target.rabbit):
            server.start()
        run.end_cause()

        def lacks() -> str:
            views = [look(run.target.design, BOUND_S) for look in (cell.read, cell.read_cold)]
            return next((f"{view.age:.1f} s old" for view in views if view.incomplete or view.age > BOUND_S), "")

        wait_until(lambda: not lacks(), lambda: f"a view is incomplete, or {lacks()}", PATIENCE_S)
        run.heal()
        run.note("nodes known after", len(names & set(cell.read_cold(run.target.design).nodes)), "nodes")
        run.note("nodes missing and not named", run.observers[0].silently_missing, "nodes")
    finally:
        fleet.call(fleet.dead.clear)
        fleet.rate = rate


def freeze_memcached(run: FaultRun) -> None:
    """Freeze memcached; a reader that read before the freeze reads again just before its end."""
    server, seldom = run.memcached.server, ViewObserver(run.cell, run.target.design, BOUND_S)
    run.observers.append(seldom)
    server.pause()
    resume = threading.Timer(min(LAST_LOOK_S, run.freeze_s / 2), server.resume)
    try:
        run.begin()
        time.sleep(run.freeze_s - resume.interval)
        resume.start()
        seldom.look()
        resume.join()
    finally:
        server.resume()
    run.end_cause()
    seldom.look()
    run.heal_views()


def lose_record_of_another_layout(run: FaultRun) -> None:
    """Lose the consumers and memcached, and with it the record of a layout that the settings do not name.

    Its queues are still bound and no consumer reads them, so they fill until a consumer unbinds them.
    """
    other = dataclasses.replace(run.topology, partitions=OTHER_LAYOUT)
    queues = dict(other.queues())
    with run.channel() as channel:
        for partition, name in queues.items():
            channel.queue_declare(name, durable=True, auto_delete=False, arguments=other.queue_arguments)
            for bucket in other.buckets(partition):
                channel.queue_bind(name, other.exchange, str(bucket))

        def waiting() -> int:
            return sum(channel.queue_declare(name, passive=True).message_count for name in queues.values())

        def stays() -> bool:
            before = waiting()
            time.sleep(GROWTH_S)
            return waiting() == before

        for member in run.cell.members:
            member.kill()
        run.memcached.restart()
        run.begin(ask_doctor=False)
        for member in run.cell.members:
            member.start()
        run.end_cause()
        wait_until(stays, "the queues of the other layout grow", PATIENCE_S)
        run.heal_views()
        run.note("messages that wait in unread queues", waiting(), "messages")
        run.ask_doctor()
        run.finish_doctor()
        for name in queues.values():
            channel.queue_delete(name)


def swallow_scheduler_connection(run: FaultRun) -> None:
    """Let a proxy discard all that passes on the broker connection of a scheduler, and boot until it succeeds."""
    rabbit = run.target.rabbit
    with ExitStack() as held:
        proxy = held.enter_context(TcpProxy(("127.0.0.1", rabbit.port)))
        broker = rabbit.url.replace(rabbit.address, f"127.0.0.1:{proxy.port}")
        probe = held.enter_context(BootProbe(run.config, broker))
        proxy.swallow()
        run.begin()
        run.retry(probe.boot_error, "no boot succeeds")
        run.heal()


class NumberedFault(NamedTuple):
    """A fault that can be caused."""

    number: str
    name: str
    cause: Callable[[FaultRun], None]
    """Causes the fault, ends its cause, and waits until nodestate works again."""
    brief: bool = False
    """Whether brief runs cause it, too."""


NUMBERED_FAULTS: Final = (
    NumberedFault("B1", "exchange for events deleted", delete_events_exchange),
    NumberedFault("B1", "exchange for orders deleted", delete_orders_exchange),
    NumberedFault("B1", "exchange for resync requests deleted", delete_control_exchange),
    NumberedFault("B2", "one queue deleted, all consumers dead", delete_queue_without_consumers),
    *(
        NumberedFault(
            "V2",
            f"dead-letter queue {'full' if full else 'deleted'}, {count:,} bad message{'s' if count > 1 else ''}",
            partial(break_dead_letters, full=full, count=count),
            brief=count == 1 and not full,
        )
        for full in (False, True)
        for count in (1, MANY)
    ),
    NumberedFault("V3", "queue deleted with confirmed messages", delete_queue_with_messages),
    NumberedFault("V7", "record of another layout lost with memcached and consumers", lose_record_of_another_layout),
    NumberedFault("V1", "memcached frozen", freeze_memcached),
    NumberedFault("B4", "broker connection of a scheduler swallowed", swallow_scheduler_connection),
    NumberedFault("V9", "memcached and broker restarted, agents dead", restart_servers_without_agents),
)
"""All numbered faults, in the order in which they are caused."""


def measure_numbered_faults(
    target: FaultTarget,
    faults: Sequence[NumberedFault],
    seconds: float,
    settings: Mapping[str, float],
    report_progress: ReportProgress,
) -> list[Case]:
    """Cause each fault once and return one case for each. A cause lasts for at most ``seconds``."""
    cases, nodes = [], len(target.cell.fleet.names)
    usual: set[str] = set()
    for index, fault in enumerate(faults):
        report_progress(f"{target.environment.label}, {nodes:,} nodes: {fault.number}", index / len(faults))
        with ExitStack() as held:
            run = FaultRun(target, seconds)
            held.callback(run.close)
            if index == 0:  # findings about the cell before any fault
                run.ask_doctor()
                usual |= {_without_figures(one) for one in run.doctor_findings()}
            run.observers[0].start()
            fault.cause(run)
            figures, said = run.figures(), run.said(sorted(usual))
        target.cell.wait_until_equal(PATIENCE_S)
        wait_until_at_rest(target.cell)
        cases.append(
            Case(
                f"{target.environment.label}: {fault.number}: {fault.name}",
                nodes,
                {**settings, "window_s": run.window_s},
                figures,
                {},
                [
                    "in the end both views showed version and state of each node as its agent had them",
                    target.environment.require_nothing_lost(nodes),
                ],
                said=said,
            )
        )
    return cases
