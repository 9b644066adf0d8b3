"""Faults of queues, exchanges, memcached and connections that an operator once had to repair, each with its number.

For each fault the run notes when the fault began, when its cause ended, and when nodestate worked again: a new reader
has a complete and fresh view, or a boot succeeds, or an agent answers. Meanwhile a reader reads all the time, and its
claims are compared with the events that the broker had confirmed.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Final, NamedTuple

from bench.boot_probe import BootProbe
from bench.fault_run import FaultRun, without_figures
from bench.record import Case
from bench.recovery_times import BOUND_S, PATIENCE_S, FaultTarget, wait_until_at_rest
from bench.scenario import ReportProgress
from bench.view_observer import ViewObserver
from harness.proxies import TcpProxy
from harness.waiting import wait_until
from nodestate.broker import KombuResyncSender, queue_depths
from nodestate.broker.topology import DEAD_KEY
from nodestate.errors import BrokerUnavailableError
from nodestate.ports import Resync
from nodestate.text import count_text

MANY: Final = 2_500
"""Messages that can't be decoded, more than a consumer holds without an ack (``prefetch``)."""
LOST_EVENTS: Final = 20
"""Confirmed messages that are lost with their queue."""
LAST_LOOK_S: Final = 0.5
"""How long before the end of a freeze a reader reads for the first time since its beginning."""
ANSWER_S: Final = 1.0
"""Time in seconds that an agent has to answer a resync request."""
OTHER_LAYOUT: Final = 6
GROWTH_S: Final = 0.5
"""Time in which a queue that gets events grows."""


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
            f"dead-letter queue {'full' if full else 'deleted'}, {count_text(count, 'bad message')}",
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
                usual |= {without_figures(one) for one in run.doctor_findings()}
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
