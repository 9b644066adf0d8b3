"""A RabbitMQ that stops, dies, freezes or refuses: nothing confirmed is lost, and old views never pass for fresh."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest

from harness.cell import DESIGNS, Cell
from harness.servers import MemcachedServer, RabbitServer, find_program
from harness.servers.rabbitmq import RabbitNode
from harness.waiting import wait_until
from nodestate.broker import queue_depths, read_dead_letters
from tests.faults.conftest import CellFactory

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def own_rabbit() -> Iterator[RabbitServer]:
    """A RabbitMQ that may be killed."""
    with RabbitServer() as server:
        yield server


@pytest.fixture
def cell_of_its_own(cell_of: CellFactory, memcached: MemcachedServer, own_rabbit: RabbitServer) -> Iterator[Cell]:
    with cell_of(memcached.url, broker=own_rabbit.url) as cell:
        cell.watch()
        yield cell


def wait_until_stale(cell: Cell) -> None:
    """Every node of every design is over the bound: whoever reads gets nothing, and nobody old state."""
    wait_until(
        lambda: all(len(cell.read(d, cell.bound_s).stale) == len(cell.fleet.names) for d in DESIGNS),
        "a view passes for fresh while its broker is away",
    )


@pytest.mark.parametrize("how", ["stopped", "killed", "frozen"])
def test_a_broker_that_goes_away_and_comes_back(cell_of_its_own: Cell, own_rabbit: RabbitServer, how: str) -> None:
    """I5, I6: views go stale while it is away; agents keep their newest state in memory and report it on its return."""
    cell = cell_of_its_own
    {"stopped": own_rabbit.stop, "killed": own_rabbit.kill, "frozen": own_rabbit.pause}[how]()
    wait_until_stale(cell)
    time.sleep(1.0)
    (own_rabbit.resume if how == "frozen" else own_rabbit.start)()
    cell.wait_until_recovered(f"after RabbitMQ was {how}")


def test_what_was_confirmed_survives_the_death_of_broker_and_consumers(
    cell_of_its_own: Cell, own_rabbit: RabbitServer
) -> None:
    """I6, without any help from agents: they say nothing more, so all must come out of the queues on disk."""
    cell = cell_of_its_own
    for member in cell.members:
        member.kill()
    time.sleep(1.5)
    cell.fleet.rate = 0.0
    cell.fleet.flush()
    cell.fleet.mute = True
    waiting = sum(depth.ready for depth in queue_depths(cell.config) if depth.partition is not None)
    own_rabbit.kill()
    own_rabbit.start()
    for member in cell.members:
        member.start()
    answers = cell.fleet.answers
    took_s = cell.wait_until_equal()
    assert cell.fleet.answers == answers
    cell.require_no_violations()
    cell.record(f"{waiting} messages came out of the queues; equal {took_s:.1f} s after consumers were started")


def test_a_broker_that_is_short_of_memory_is_still_drained(cell_of_its_own: Cell, own_rabbit: RabbitServer) -> None:
    """A RabbitMQ under a memory or disk alarm reads nothing from connections that publish. If that kept consumers from
    acking, the queues that filled it would never empty.
    """
    cell = cell_of_its_own
    for member in cell.members:
        member.pause()
    # Behind it is what matters: the dead-letter queue takes nothing either, and must not be waited for.
    poison = b"\xc1 is no event"
    cell.fleet.call(lambda: cell.fleet.sink.inner.publish(0, poison, lambda _ok: None))
    time.sleep(1.5)
    control(own_rabbit, "set_vm_memory_high_watermark", "absolute", "1MiB")
    try:
        assert unfinished(own_rabbit, cell) > 100
        for member in cell.members:
            member.resume()
        took_s = wait_until(lambda: unfinished(own_rabbit, cell) <= 1, "consumers do not drain their queues")
        wait_until_stale(cell)
        assert read_dead_letters(cell.config, 10) == []
    finally:
        control(own_rabbit, "set_vm_memory_high_watermark", "absolute", "1000MiB")
    cell.record(f"queues empty {took_s:.1f} s after consumers found the broker short of memory")
    cell.wait_until_recovered("after RabbitMQ's memory alarm")
    wait_until(
        lambda: poison in [letter.body for letter in read_dead_letters(cell.config, 10)], "poison is not dead-lettered"
    )


def control(server: RabbitServer, *command: str) -> str:
    """Run ``rabbitmqctl`` against this server; returns what it prints."""
    if not isinstance(server.host, RabbitNode):
        code, output = server.host._container.exec(["rabbitmqctl", *command])  # type: ignore[attr-defined]
        assert code == 0, output
        return str(output.decode())
    program = find_program("rabbitmqctl", "/usr/lib/rabbitmq/bin")
    assert program is not None, "it comes with the server"
    environment = server.host._node._environment
    done = subprocess.run(  # noqa: S603 - our own server, our own words
        [program, *command], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def unfinished(server: RabbitServer, cell: Cell) -> int:
    """Messages of a cell's partitions that wait or are not acked."""
    table = control(server, "--quiet", "list_queues", "--no-table-headers", "name", "messages")
    rows = [line.split("\t") for line in table.splitlines()]
    return sum(int(count) for name, count in rows if name.startswith(f"nodestate.{cell.config.cell}."))
