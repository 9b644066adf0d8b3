"""A cluster of three RabbitMQ nodes with quorum queues: nodes die, freeze, restart and lose sight of each other.

Meanwhile agents publish, schedulers boot instances, readers read, and consumers publish dead letters.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Final

import amqp
import pytest

from harness.cell import Cell
from harness.servers import MemcachedServer, RabbitCluster, RabbitServer, ServerMissingError
from harness.waiting import PATIENCE_S, wait_until
from harness.watchers import ViewWatcher
from nodestate.broker import KombuCourier, Topology, read_dead_letters
from nodestate.errors import BrokerUnavailableError
from nodestate.findings.broker_checks import examine_broker
from nodestate.scheduling.orders.boot import Booted
from nodestate.scheduling.request import parse
from nodestate.scheduling.scheduler import Scheduler
from tests.conftest import skip_or_fail
from tests.faults.conftest import CellFactory
from tests.faults.histories import Histories
from tests.faults.test_scheduling import ANSWER_TIMEOUT_S, CLAIM_TTL_S, HOSTS_COUNT, NODES_COUNT, VCPU, ChildProcesses

pytestmark = [pytest.mark.service, pytest.mark.thorough]

BOUND_S: Final = 3.0
KEPT_COUNT: Final = 60
"""Instances that each scheduler keeps. All of them together leave most of the fleet empty."""
BOOT_TIMEOUT_S: Final = 60.0
BOOTS_COUNT: Final = 20
"""Boots that must succeed during each fault, and after it."""


@pytest.fixture
def cluster() -> Iterator[RabbitCluster]:
    """Three nodes."""
    yield from _cluster(cuttable=False)


@pytest.fixture
def cuttable_cluster() -> Iterator[RabbitCluster]:
    """Three nodes, and links between them that can be cut."""
    yield from _cluster(cuttable=True)


def _cluster(*, cuttable: bool) -> Iterator[RabbitCluster]:
    try:
        made = RabbitCluster(cuttable=cuttable)
    except ServerMissingError as error:
        skip_or_fail(error)
    with made:
        yield made


@pytest.fixture
def quorum_cell(cell_of: CellFactory, memcached: MemcachedServer, cluster: RabbitCluster) -> Iterator[Cell]:
    """A cell whose queues are quorum queues of the cluster."""
    with cell_of(
        memcached.url, broker=cluster.url, queue_type="quorum", designs=("snapshot",), bound_s=BOUND_S
    ) as cell:
        cell.wait_until_well()
        yield cell


def faults_of(cluster: RabbitCluster) -> Iterator[tuple[str, RabbitServer, Callable[[], object], Callable[[], object]]]:
    """Yield each fault, its node, and the functions that begin and end it: each node is killed and frozen in turn.

    Processes go on with the next URL, so they are connected to the node that is killed or frozen next.
    """
    for number, node in enumerate(cluster.nodes):
        yield f"node {number + 1} of 3 killed", node, node.kill, node.start
    for number, node in enumerate(cluster.nodes):
        yield f"node {number + 1} of 3 frozen", node, node.pause, partial(cluster.resume, node)


def connections_count(node: RabbitServer) -> int:
    """Return the number of clients of a node."""
    return int(node.control("eval", "length(rabbit_networking:local_connections())."))


def test_one_of_three_nodes_is_away(quorum_cell: Cell, cluster: RabbitCluster) -> None:
    """Each node is killed and frozen in turn. No confirmed event is lost, and events go on to be confirmed."""
    cell = quorum_cell
    watcher = cell.watch_control_record()
    for fault, node, go_away, come_back in faults_of(cluster):
        before = watcher.reads, watcher.stale_reads
        clients = connections_count(node)
        go_away()
        new_s = wait_for_new_views(cell, watcher)
        wait_until(lambda seen=watcher.fresh: watcher.fresh >= seen + 60, "there are no more fresh views")
        come_back()
        cluster.wait_until_whole()
        cell.wait_until_well()
        cell.record(
            f"{fault}, which had {clients} clients: all events confirmed again, and in views, after {new_s:.1f} s; "
            f"{watcher.stale_reads - before[1]} of {watcher.reads - before[0]} views had a stale node"
        )
        cell.require_no_violations()
    cell.wait_until_equal()


def test_two_of_three_nodes_are_away(quorum_cell: Cell, cluster: RabbitCluster) -> None:
    """Quorum queues take nothing then. Agents keep their states, views age, and all is well once one node is back."""
    cell = quorum_cell
    watcher = cell.watch_control_record()
    for node in cluster.nodes[:2]:
        node.kill()
    stale = watcher.stale_reads
    wait_until(lambda: watcher.stale_reads > stale, "the views do not age")
    cluster.nodes[1].start()
    cell.wait_until_recovered("two of three nodes killed, one is back")
    cluster.nodes[0].start()
    cell.wait_until_recovered("both nodes are back")


def wait_for_new_views(cell: Cell, watcher: ViewWatcher) -> float:
    """Wait until all agents' states are confirmed, and the reader had fresh views since; returns the seconds."""
    began = time.monotonic()
    cell.fleet.flush(120.0)
    fresh = watcher.fresh
    wait_until(lambda: watcher.fresh >= fresh + 5, "the reader sees no fresh views")
    return time.monotonic() - began


def test_a_node_that_is_cut_off_from_the_others_loses_its_clients_to_them(
    cell_of: CellFactory, memcached: MemcachedServer, cuttable_cluster: RabbitCluster
) -> None:
    """The node that all processes are connected to loses sight of the other two. It confirms nothing from then on.

    Its clients go on with the other nodes before it notices, and it pauses. No confirmed event is lost.
    """
    cluster = cuttable_cluster
    with cell_of(
        memcached.url, broker=cluster.url, queue_type="quorum", designs=("snapshot",), bound_s=BOUND_S
    ) as cell:
        cell.wait_until_well()
        watcher = cell.watch_control_record()
        for number, node in enumerate(cluster.nodes):
            clients = connections_count(node)
            before = watcher.reads, watcher.stale_reads
            cluster.cut_off(node)
            new_s = wait_for_new_views(cell, watcher)
            wait_until(lambda seen=watcher.fresh: watcher.fresh >= seen + 60, "there are no more fresh views")
            cluster.cut_off()
            cluster.wait_until_whole()
            cell.wait_until_recovered(f"node {number + 1} of 3 sees the others again")
            cell.record(
                f"node {number + 1} of 3 cut off, which had {clients} clients: all events confirmed again, and in "
                f"views, after {new_s:.1f} s; {watcher.stale_reads - before[1]} of {watcher.reads - before[0]} views "
                "had a stale node"
            )


def test_no_dead_letter_is_lost_with_the_leader_of_its_queue(quorum_cell: Cell, cluster: RabbitCluster) -> None:
    """Consumers publish dead letters all the time. The leader of the dead-letter queue is killed, then frozen."""
    cell = quorum_cell
    watcher = cell.watch_control_record()
    sent: list[bytes] = []

    def publish_bad_event() -> None:
        body = b"\xc1 %d" % len(sent)

        def publish() -> None:
            try:
                cell.fleet.sink.inner.publish(len(sent) % 64, body, lambda ok: sent.append(body) if ok else None)
            except BrokerUnavailableError:
                time.sleep(0.05)

        cell.fleet.call(publish)

    def publish_bad_events(count: int) -> None:
        wanted = len(sent) + count

        def publish_one() -> bool:
            publish_bad_event()
            return len(sent) >= wanted

        wait_until(publish_one, "bad events are not confirmed")

    def missing() -> set[bytes]:
        return set(sent) - {letter.body for letter in read_dead_letters(cell.config, 1_000_000)}

    for name in ("killed", "frozen"):
        publish_bad_events(20)
        leader = leader_of(cluster, Topology.of(cell.config).dead)
        (leader.kill if name == "killed" else leader.pause)()
        publish_bad_events(50)
        findings = {finding.about: finding for finding in examine_broker(cell.config, [cell.config.partitions])}
        assert findings["dead letters"].level == "WARN", findings
        took_s = wait_until(lambda: not missing(), lambda: f"lost: {len(missing())} of {len(sent)}", poll_s=0.5)
        (leader.start if name == "killed" else partial(cluster.resume, leader))()
        cluster.wait_until_whole()
        cell.wait_until_well()
        cell.record(f"leader {name}: {len(sent)} dead letters, all in their queue {took_s:.1f} s after the last one")
    assert not missing()
    wait_until(lambda seen=watcher.fresh: watcher.fresh >= seen + 5, "there are no fresh views")


def test_a_standby_consumer_goes_on_soon_after_the_node_of_the_active_one_froze(cluster: RabbitCluster) -> None:
    """The settings of docs/how-to/cluster-rabbitmq.md decide how soon. RabbitMQ alone is tested, without a cell."""
    frozen, publishing, standing_by = cluster.nodes
    delivered_at: list[float] = []
    with ExitStack() as stack:

        def channel_on(node: RabbitServer) -> amqp.Channel:
            connection = node_connection(node)
            stack.callback(connection.collect)
            return connection.channel()

        active, sending, waiting = map(channel_on, (frozen, publishing, standing_by))
        arguments = {"x-queue-type": "quorum", "x-single-active-consumer": True}
        active.queue_declare("standby", durable=True, auto_delete=False, arguments=arguments)
        active.basic_consume("standby", no_ack=True, callback=lambda _: None)
        waiting.basic_consume("standby", no_ack=True, callback=lambda _: delivered_at.append(time.monotonic()))
        assert leader_of(cluster, "standby") is frozen
        sending.basic_publish(amqp.Message(b"before"), routing_key="standby")
        frozen.pause()
        froze_at = time.monotonic()
        sending.basic_publish(amqp.Message(b"after"), routing_key="standby")

        def is_delivered() -> bool:
            with suppress(TimeoutError):
                waiting.connection.drain_events(timeout=0.1)
            return bool(delivered_at)

        wait_until(is_delivered, "the standby consumer gets no message")
        print(f"first delivery to the standby consumer {delivered_at[0] - froze_at:.1f} s after the freeze")  # noqa: T201 - the figure
        cluster.resume(frozen)


def node_connection(node: RabbitServer) -> amqp.Connection:
    """Connect to one node."""
    connection = amqp.Connection(node.address, read_timeout=PATIENCE_S, write_timeout=PATIENCE_S)
    connection.connect()
    return connection


def leader_of(cluster: RabbitCluster, queue: str) -> RabbitServer:
    """Return the node that leads a quorum queue."""
    rows = [line.split() for line in cluster.nodes[0].control("list_queues", "name", "leader").splitlines()]
    leaders = {row[0]: row[1] for row in rows if len(row) == 2}
    return next(node for node in cluster.nodes if node.name == leaders[queue])


class BootingScheduler(threading.Thread):
    """A scheduler that boots one instance after the other, and ends the oldest ones."""

    def __init__(self, cell: Cell, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.kept: dict[str, str] = {}
        """The node of each instance that was booted and not ended."""
        self.booted_count = 0
        self.longest_s = 0.0
        """The longest boot, in seconds."""
        self.refused = Counter[str]()
        """Nodes that did not take an instance, by reason."""
        self.failures: list[str] = []
        """Boots that failed or did not end."""
        self._config = cell.config
        self._ending = threading.Event()

    def run(self) -> None:
        """Boot until ``finish`` is called."""
        courier = KombuCourier(self._config)
        with Scheduler(self._config, name=self.name, courier=courier) as scheduler:
            while not self._ending.is_set():
                began = time.monotonic()
                try:
                    self._boot(scheduler)
                except Exception as error:  # noqa: BLE001 - the test shows it
                    self.failures.append(f"after {time.monotonic() - began:.1f} s: {error!r} {error.__cause__!r}")
                self.longest_s = max(self.longest_s, time.monotonic() - began)
        courier.close()

    def _boot(self, scheduler: Scheduler) -> None:
        wanted = {"resources": {"VCPU": 1, "MEMORY_MB": 512}}
        [outcome] = scheduler.boot(parse(wanted), BOOT_TIMEOUT_S)
        self.refused.update(f"{refusal.reason} {refusal.detail}" for refusal in outcome.refusals)
        if not isinstance(outcome, Booted):
            self.failures.append(str(outcome))
            return
        self.kept[outcome.instance] = outcome.node
        self.booted_count += 1
        if len(self.kept) > KEPT_COUNT:
            instance = next(iter(self.kept))
            scheduler.terminations.terminate([(self.kept.pop(instance), instance)])

    def wait_for_boots(self, count: int) -> None:
        """Wait for more boots. Raises AssertionError at the first one that fails."""
        wanted = self.booted_count + count
        wait_until(lambda: self.failures or self.booted_count >= wanted, f"{self.name} boots nothing")
        assert self.failures == []

    def finish(self) -> None:
        """End the thread."""
        self._ending.set()
        self.join(PATIENCE_S)
        assert not self.is_alive(), f"{self.name} hangs"


def test_boots_go_on_while_each_node_is_killed_and_frozen_in_turn(
    cell_of: CellFactory, memcached: MemcachedServer, cluster: RabbitCluster, tmp_path: Path
) -> None:
    """Orders and answers pass through queues of one node, which are lost with it. No boot fails, and no copy stays."""
    with cell_of(
        memcached.url,
        broker=cluster.url,
        queue_type="quorum",
        designs=["snapshot"],
        count=0,
        rate=0.0,
        claim_ttl_s=CLAIM_TTL_S,
        answer_timeout_s=ANSWER_TIMEOUT_S,
    ) as cell:
        processes = ChildProcesses(tmp_path, cell.environment)
        schedulers = [BootingScheduler(cell, f"scheduler-{number}") for number in range(2)]
        try:
            start_agents(processes)
            wait_until(lambda: len(cell.read("snapshot").nodes) == NODES_COUNT, "the nodes are not in the view")
            for scheduler in schedulers:
                scheduler.start()
                scheduler.wait_for_boots(BOOTS_COUNT)
            for fault, node, go_away, come_back in faults_of(cluster):
                clients = connections_count(node)
                for scheduler in schedulers:
                    scheduler.longest_s = 0.0
                    scheduler.refused.clear()
                go_away()
                for scheduler in schedulers:
                    scheduler.wait_for_boots(BOOTS_COUNT)
                come_back()
                cluster.wait_until_whole()
                for scheduler in schedulers:
                    scheduler.wait_for_boots(BOOTS_COUNT)
                longest_s = max(scheduler.longest_s for scheduler in schedulers)
                refused = sum((scheduler.refused for scheduler in schedulers), Counter[str]())
                cell.record(f"{fault}, which had {clients} clients: longest boot {longest_s:.1f} s, {dict(refused)}")
            for scheduler in schedulers:
                scheduler.finish()
            kept = {instance: node for scheduler in schedulers for instance, node in scheduler.kept.items()}
            booted = sum(scheduler.booted_count for scheduler in schedulers)
            # Another scheduler ends copies and instances whose orders to end were lost.
            processes.start("repairing", "tests.faults.repairing_scheduler")

            def histories() -> Histories:
                files = [tmp_path / f"host-{host}.history" for host in range(HOSTS_COUNT)]
                return Histories(files, CLAIM_TTL_S - ANSWER_TIMEOUT_S)

            wait_until(lambda: not [*histories().doubled()], lambda: f"{[*histories().doubled()]}", poll_s=0.5)
            processes.finish(["repairing"])
            found = {
                instance: node for node, state in histories().last.items() for instance in state.get("allocations", {})
            }
            cell.record(f"{booted} boots, {histories().orders} orders; {len(found)} instances, {len(kept)} kept")
            assert kept.items() <= found.items()
            assert list(histories().overcommitted()) == []
            assert histories().late == []
        finally:
            processes.close()


def start_agents(processes: ChildProcesses) -> None:
    """Start an agent for each host, with nodes that have room for all instances."""
    for host in range(HOSTS_COUNT):
        state = {"status": "up", "inventory": {"VCPU": {"total": VCPU}, "MEMORY_MB": {"total": 512 * VCPU}}}
        states = {f"host-{host}-{number:02}": state for number in range(NODES_COUNT // HOSTS_COUNT)}
        (processes.folder / f"host-{host}.states").write_text(json.dumps(states))
        processes.start_agents(host)
