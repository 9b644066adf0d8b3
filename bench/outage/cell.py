"""A whole cell for an outage run: three memcacheds, three RabbitMQ nodes, and all processes of nodestate under load."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeVar

import msgspec

from bench.consumer_process import settings_as_environment
from bench.outage.agents import run_agents
from bench.outage.clients import MAX_AGE_S, run_reader, run_scheduler
from bench.outage.gate import Gate
from bench.outage.messages import BUSY, Command, NodeStates, NodeVersions, WorkerLog
from bench.outage.run_log import RunLog
from bench.scenario import ReportProgress
from bench.worker import Worker
from bench.workload import require
from harness.keyspace import KeySpace
from harness.members import Member
from harness.servers import MemcachedServer, RabbitCluster
from nodestate.broker import connect_check
from nodestate.config import Config, load
from nodestate.designs.reader import Reader
from nodestate.errors import NodestateError
from nodestate.model import NEVER, Version

T = TypeVar("T")

SERVERS_COUNT: Final = 3
"""Number of memcacheds, of RabbitMQ nodes, of consumers and of processes with agents: one for each controller."""
GATED: Final = 2
"""Number, from 0, of the memcached and of the RabbitMQ node that are reached through a proxy."""
READERS_COUNT: Final = 2
BUSY_NODES_COUNT: Final = 36
"""Number of nodes on which instances are booted: at the default load a third of them may be unreachable."""
MEMORY_MB: Final = 512
PATIENCE_S: Final = 180.0
"""Longest wait for a cell that must become well."""
PUMP_S: Final = 0.02
REPORT_EVERY_S: Final = 0.5
ANSWER_S: Final = 90.0
"""Longest wait for an answer of an agent process, which may be waiting for a broker that is away."""
WELL_AGE_S: Final = 3.0
"""Greatest age of the view of a cell that is well: three renewals."""


class Load(NamedTuple):
    """The size of the cell and its load."""

    nodes: int
    rate: float
    """Events per second, all nodes together."""
    schedulers: int
    seed: int
    replicas: int = 2
    designs: tuple[str, ...] = ("snapshot",)


class OutageCell:
    """A cell that runs within a ``with`` statement.

    Args:
        folder: Where state and logs of its processes go.
        load: The size of the cell and its load.
        cuttable: Whether the links between RabbitMQ nodes can be cut. They pass through this process then.
        report_progress: Takes the name of the current step, and the share of the run that is done.
    """

    def __init__(self, folder: Path, load: Load, report_progress: ReportProgress, *, cuttable: bool = False) -> None:
        self.load = load
        self.log = RunLog(MAX_AGE_S)
        """The merged logs of all processes."""
        self.versions: dict[str, str] = {}
        """Versions of the servers."""
        self.rabbit = RabbitCluster(SERVERS_COUNT, cuttable=cuttable)
        self.memcacheds: list[MemcachedServer] = []
        self.members: list[Member] = []
        """The consumers."""
        self.names = [f"{BUSY if number < BUSY_NODES_COUNT else 'idle'}-{number:05}" for number in range(load.nodes)]
        """Names of all nodes."""
        self.share_done = 0.0
        """The share of the run that is done, for the progress bar."""
        self._report_progress = report_progress
        self._folder = folder
        self._open = ExitStack()
        # All workers that run, by name.
        self._workers: dict[str, Worker[None]] = {}
        # Messages of workers other than logs.
        self._answers: dict[str, Any] = {}
        # Numbers of processes that get broker URLs: each begins with another node.
        self._turns = itertools.count()

    # -- start and end

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            self._open = opening
            self._start()
            self._open = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _start(self) -> None:
        self.report_step("starting servers")
        self._open.enter_context(self.rabbit)
        for _ in range(SERVERS_COUNT):
            self.memcacheds.append(self._open.enter_context(MemcachedServer(memory_mb=MEMORY_MB)))
        self.memcached_gate = self._open.enter_context(Gate(self.memcacheds[GATED].port))
        self.rabbit_gate = self._open.enter_context(Gate(self.rabbit.nodes[GATED].port))
        self.config = self._settings()
        self.versions = {"rabbitmq": connect_check(self.config).version}
        self._reader = self._open.enter_context(Reader(self.config))
        for number in range(SERVERS_COUNT):
            settings = settings_as_environment(self._config_of_process())
            member = Member(self._folder, number + 1, SERVERS_COUNT, settings)
            self._open.callback(member.kill)
            member.start()
            self.members.append(member)
        self.report_step("starting agents")
        for number in range(SERVERS_COUNT):
            self.start_agents(number)
        self.wait_until(self.is_well, self.problem, PATIENCE_S)
        self.report_step("starting schedulers and readers")
        for number in range(self.load.schedulers):
            name = f"scheduler-{number + 1}"
            self._start_worker(name, run_scheduler, self._config_of_process(), name, self.load.seed + number)
        busy = frozenset(name for name in self.names if name.startswith(BUSY))
        for number in range(READERS_COUNT):
            name = f"reader-{number + 1}"
            self._start_worker(name, run_reader, self._config_of_process(), name, busy)

    def _settings(self) -> Config:
        addresses = [server.address for server in self.memcacheds]
        addresses[GATED] = self.memcached_gate.address
        urls = [node.url for node in self.rabbit.nodes]
        urls[GATED] = urls[GATED].replace(self.rabbit.nodes[GATED].address, self.rabbit_gate.address)
        return load(
            {
                "cell": "outage",
                "broker": ";".join(urls),
                "store": f"memcached://{','.join(addresses)}",
                "queue_type": "quorum",
                "designs": self.load.designs,
                "read_design": self.load.designs[0],
                "replicas": self.load.replicas,
                "state_dir": str(self._folder),
            },
            environ={},
            file=os.devnull,
        )

    def _config_of_process(self) -> Config:
        """Return the settings of one process, which tries another RabbitMQ node first than the process before."""
        urls, turn = self.config.broker.split(";"), next(self._turns) % SERVERS_COUNT
        return msgspec.structs.replace(self.config, broker=";".join([*urls[turn:], *urls[:turn]]))

    def _start_worker(self, name: str, function: Callable[..., None], *arguments: Any) -> None:
        worker = self._open.enter_context(Worker(function, *arguments))
        self.wait_until(lambda: worker.is_ready(0.0), lambda: f"{name} is not ready", PATIENCE_S)
        self._workers[name] = worker

    # -- processes with agents

    def start_agents(self, number: int) -> None:
        """Start a process with a share of the agents, with the instances that they had."""
        name, share = f"agents-{number + 1}", self.names[number::SERVERS_COUNT]
        rate, seed = self.load.rate / SERVERS_COUNT, self.load.seed + number
        self._start_worker(name, run_agents, self._config_of_process(), name, share, rate, seed)

    def stop_agents(self, number: int) -> None:
        """End a process with agents in order; its nodes stay in the views."""
        name = f"agents-{number + 1}"
        worker = self._workers[name]
        worker.stop()
        self.wait_until(lambda: worker.has_ended(0.0), lambda: f"{name} does not end", PATIENCE_S)
        worker.result()
        self._take_messages(name, worker)
        del self._workers[name], self.log.until[name]

    def ask_agents(self, command: Command, answer_type: type[T]) -> list[T]:
        """Send a command to all processes with agents, and return their answers."""
        names = [name for name in self._workers if name.startswith("agents")]
        self._answers.clear()
        for name in names:
            self._workers[name].send(command)
        self.wait_until(lambda: self._answers.keys() >= set(names), lambda: "agents do not answer", ANSWER_S)
        answers = [self._answers[name] for name in names]
        assert all(isinstance(answer, answer_type) for answer in answers)
        return answers

    def send(self, prefix: str, command: Command) -> None:
        """Send a command to all workers whose names begin with ``prefix``."""
        for name, worker in self._workers.items():
            if name.startswith(prefix):
                worker.send(command)

    # -- waiting

    def report_step(self, what: str) -> None:
        """Report the name of the current step."""
        self._report_progress(what, self.share_done)

    def wait_until(self, condition: Callable[[], bool], failure: Callable[[], str], timeout_s: float) -> None:
        """Take the logs of all processes until a condition is true. Raises ``WrongResultError`` after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            require(time.monotonic() < deadline, f"not within {timeout_s:g} s: {failure()}")
            self._pump()

    def watch(self, seconds: float, what: str) -> None:
        """Take the logs of all processes for some seconds, and report the progress."""
        began, report_at = time.monotonic(), 0.0
        while (passed_s := time.monotonic() - began) < seconds:
            if passed_s >= report_at:
                report_at = passed_s + REPORT_EVERY_S
                self.report_step(f"{what}: {passed_s:.0f} of {seconds:.0f} s")
            self._pump()

    def call(self, function: Callable[[], T], what: str) -> T:
        """Call a function that may take long in a thread, and take the logs of all processes meanwhile.

        If no process took the logs, the processes would wait until their logs are taken.
        """
        self.report_step(what)
        with ThreadPoolExecutor(1) as thread:
            future = thread.submit(function)
            while not future.done():
                self._pump()
        return future.result()

    def wait_for_logs(self, until: float) -> None:
        """Wait until the logs of all processes reach a moment."""

        def late() -> list[str]:
            return [name for name in self._workers if self.log.until.get(name, 0.0) < until]

        self.wait_until(lambda: not late(), lambda: f"the logs of {', '.join(late())} do not arrive", PATIENCE_S)

    def _pump(self) -> None:
        time.sleep(PUMP_S)
        for name, worker in list(self._workers.items()):
            self._take_messages(name, worker)
        for member in self.members:
            member.require_alive()

    def _take_messages(self, name: str, worker: Worker[None]) -> None:
        while (message := worker.receive(0.0)) is not None:
            if isinstance(message, WorkerLog):
                self.log.add(name, message)
            else:
                self._answers[name] = message

    # -- being well

    def is_well(self) -> bool:
        """True if views are fresh and complete and show all nodes, and both replicas of each partition are in sync."""
        return not self.problem()

    def problem(self) -> str:
        """Return a reason why the cell is not well; empty if it is."""
        view = self._reader.read(max_age=WELL_AGE_S, on_stale="flag")
        if view.age > WELL_AGE_S:
            return f"the view is {view.age:.1f} s old"
        if view.incomplete:
            return f"the view is incomplete: {sorted(view.incomplete)[:4]}"
        missing = sum(name not in view.nodes for name in self.names)
        if missing:
            return f"the view lacks {missing} nodes"
        copies = self._copies()
        return "" if set(copies) == {self.load.replicas} else f"replicas in sync are {copies}"

    def _copies(self) -> list[int]:
        """Return the number of replicas in sync from the head of each replica; 0 if there is no head."""
        found = []
        for shift, suffix in enumerate(("", "_replica")[: self.load.replicas]):
            for number, server in enumerate(self.memcacheds):
                with KeySpace(self.config, server.address) as space:
                    for partition in range(self.config.partitions):
                        if (partition + shift) % SERVERS_COUNT == number:
                            try:
                                head = space.head(f"{self.load.designs[0]}{suffix}", partition)
                            except NodestateError:
                                head = None
                            found.append(head.copies if head is not None else 0)
        return found

    # -- comparing views with agents

    def lost_events(self, timeout_s: float) -> int:
        """Ask all agents for their versions, and wait until the view shows them or newer ones.

        Returns the number of events that it lacks after ``timeout_s`` seconds.
        """
        wanted = {
            name: version
            for answer in self.ask_agents(Command.VERSIONS, NodeVersions)
            for name, version in answer.versions.items()
        }

        def lacking() -> int:
            nodes = self._reader.read(max_age=WELL_AGE_S, on_stale="flag").nodes
            return sum(
                _behind(record.version if (record := nodes.record(name)) else NEVER, wanted[name]) for name in wanted
            )

        deadline = time.monotonic() + timeout_s
        while (lacks := lacking()) and time.monotonic() < deadline:
            self._pump()
        return lacks

    def differences(self) -> list[str]:
        """Stop all changes; return the differences between the view and the agents, node by node."""
        self.send("agents", Command.PAUSE)
        self.lost_events(PATIENCE_S)
        found = []
        view = self._reader.read(max_age=PATIENCE_S, on_stale="flag")
        states = {
            name: state
            for answer in self.ask_agents(Command.STATES, NodeStates)
            for name, state in answer.states.items()
        }
        for name, (version, state) in states.items():
            record = view.nodes.record(name)
            if record is None or record.version != version:
                at = tuple(record.version) if record is not None else "missing"
                found.append(f"the view has {name} at {at}, and its agent has it at {tuple(version)}")
            elif record.state() != state:
                found.append(f"the view has {name} at {tuple(version)} with another state than its agent")
        return found


def _behind(shown: Version, wanted: Version) -> int:
    """Return the number of events by which a view is behind; at least 1 if it is behind at all."""
    if shown >= wanted:
        return 0
    same_life = shown.incarnation == wanted.incarnation
    return wanted.generation - shown.generation if same_life else wanted.generation
