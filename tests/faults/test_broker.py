"""A RabbitMQ that stops, dies, freezes or blocks publishers: no confirmed event is lost, no old view passes for
fresh.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from harness.cell import DESIGNS, Cell
from harness.servers import MemcachedServer, RabbitServer, find_program
from harness.servers.rabbitmq import RabbitNode
from harness.waiting import PATIENCE_S, wait_until
from nodestate.agent.publisher import Publisher
from nodestate.broker import (
    KombuResyncSender,
    KombuSink,
    check_accepts_messages,
    collect_census,
    connect_check,
    queue_depths,
    read_dead_letters,
)
from nodestate.cli.ordered_publisher import OrderedPublisher
from nodestate.config import Config
from nodestate.errors import NodestateError
from nodestate.ports import Resync, SystemClock
from tests.faults.conftest import CellFactory

pytestmark = pytest.mark.service


@pytest.fixture
def watched_cell(cell_of: CellFactory, memcached: MemcachedServer) -> Iterator[Cell]:
    with cell_of(memcached.url) as cell:
        cell.watch()
        yield cell


def wait_until_stale(cell: Cell) -> None:
    """Wait until every node of every design is stale: then no read returns an old state as fresh."""
    wait_until(
        lambda: all(len(cell.read(d, cell.bound_s).stale) == len(cell.fleet.names) for d in DESIGNS),
        "a view passes for fresh while its broker is away",
    )


@pytest.mark.parametrize("how", [pytest.param("stopped", marks=pytest.mark.thorough), "killed", "frozen"])
def test_views_are_stale_while_the_broker_is_away_and_recover_when_it_returns(
    watched_cell: Cell, rabbit: RabbitServer, how: str
) -> None:
    """I5, I6: agents keep their newest states in memory while the broker is away, and report them when it is back."""
    cell = watched_cell
    {"stopped": rabbit.stop, "killed": rabbit.kill, "frozen": rabbit.pause}[how]()
    wait_until_stale(cell)
    (rabbit.resume if how == "frozen" else rabbit.start)()
    cell.wait_until_recovered(f"after RabbitMQ was {how}")


def test_confirmed_events_survive_the_death_of_broker_and_consumers(watched_cell: Cell, rabbit: RabbitServer) -> None:
    """I6, without help of the agents: they send nothing more, so all states must come from the queues on disk."""
    cell = watched_cell
    for member in cell.members:
        member.kill()
    wait_until(lambda: ready_messages(cell) > 200, "no events wait in the queues")
    cell.fleet.rate = 0.0
    cell.fleet.flush()
    cell.fleet.mute = True
    waiting = ready_messages(cell)
    rabbit.kill()
    rabbit.start()
    for member in cell.members:
        member.start()
    answers = cell.fleet.answers
    took_s = cell.wait_until_equal()
    assert cell.fleet.answers == answers
    cell.require_no_violations()
    cell.record(f"{waiting} messages came out of the queues; equal {took_s:.1f} s after consumers were started")


def ready_messages(cell: Cell) -> int:
    """Return how many messages of the cell's partitions are ready for a consumer."""
    return sum(depth.ready for depth in queue_depths(cell.config) if depth.partition is not None)


def test_consumers_drain_the_queues_of_a_broker_that_is_short_of_memory(
    watched_cell: Cell, rabbit: RabbitServer
) -> None:
    """A RabbitMQ under a memory or disk alarm reads nothing from connections that publish. If that kept consumers from
    acking, the queues that filled its memory would never become empty.
    """
    cell = watched_cell
    for member in cell.members:
        member.pause()
    # The events behind it matter: the broker accepts no dead letters either, and consumers must not wait for that.
    poison = b"\xc1 is no event"
    cell.fleet.call(lambda: cell.fleet.sink.inner.publish(0, poison, lambda _ok: None))
    wait_until(lambda: unfinished(rabbit, cell) > 100, "no events wait in the queues")
    control(rabbit, "set_vm_memory_high_watermark", "absolute", "1MiB")
    try:
        for member in cell.members:
            member.resume()
        took_s = wait_until(lambda: unfinished(rabbit, cell) <= 1, "consumers do not drain their queues")
        wait_until_stale(cell)
        assert read_dead_letters(cell.config, 10) == []
    finally:
        control(rabbit, "set_vm_memory_high_watermark", "absolute", "1000MiB")
    cell.record(f"queues empty {took_s:.1f} s after consumers found the broker short of memory")
    cell.wait_until_recovered("after RabbitMQ's memory alarm")
    wait_until(
        lambda: poison in [letter.body for letter in read_dead_letters(cell.config, 10)], "poison is not dead-lettered"
    )


def control(server: RabbitServer, *command: str) -> str:
    """Run ``rabbitmqctl`` for this server; returns its output."""
    if not isinstance(server.host, RabbitNode):
        code, output = server.host._container.exec(["rabbitmqctl", *command])  # type: ignore[attr-defined]  # a container
        assert code == 0, output
        return str(output.decode())
    program = find_program("rabbitmqctl", "/usr/lib/rabbitmq/bin")
    assert program is not None, "rabbitmqctl comes with the server"
    environment = server.host._node._environment
    done = subprocess.run(  # noqa: S603 - our own server, our own words
        [program, *command], env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def unfinished(server: RabbitServer, cell: Cell) -> int:
    """Return how many messages of a cell's partitions are ready or not acked."""
    table = control(server, "--quiet", "list_queues", "--no-table-headers", "name", "messages")
    rows = [line.split("\t") for line in table.splitlines()]
    return sum(int(count) for name, count in rows if name.startswith(f"nodestate.{cell.config.cell}."))


@pytest.mark.thorough
def test_an_alarm_of_the_broker_is_named_instead_of_a_time_out(rabbit: RabbitServer) -> None:
    """By ``nodestate resync``, by consumers that ask agents, by the doctor, by publishers and by a census."""
    config = Config(broker=rabbit.url, cell="alarm", partitions=2)
    connect_check(config)
    control(rabbit, "set_vm_memory_high_watermark", "absolute", "1MiB")

    def message_of(call: Callable[[], None]) -> str:
        try:
            call()
        except NodestateError as error:
            return str(error)
        return ""

    def resync() -> None:
        sender = KombuResyncSender(config)
        try:
            sender.request_resync(Resync())
        finally:
            sender.close()

    def report() -> None:
        sink = KombuSink(config)
        try:
            publisher = Publisher(config, "node", sink=sink, inbox=sink, incarnation=1)
            publisher.report({})
            publisher.flush(1.0)
        finally:
            sink.close()

    def publish() -> None:
        sink = KombuSink(config, control=False)
        try:
            publisher = OrderedPublisher(sink, SystemClock(), 1.0)
            publisher.send(0, b"event")
            publisher.finish()
        finally:
            sink.close()

    def census() -> None:
        collect_census(config, Resync(), 1.0)

    try:
        for call in (resync, lambda: check_accepts_messages(config), report, publish, census):
            message = partial(message_of, call)
            wait_until(lambda message=message: "short of memory" in message(), "the alarm is not named")  # type: ignore[misc]  # a lambda's default has no type
    finally:
        control(rabbit, "set_vm_memory_high_watermark", "absolute", "1000MiB")
    wait_until(lambda: not message_of(lambda: check_accepts_messages(config)), "the broker takes no messages")
