"""Measures ``nodestate serve``: the time of a request while the cell changes, and the memory of the service.

RabbitMQ, the store, two consumers, the agents of a simulated fleet and the service run as an operator starts them, each
in processes of its own. The fleet makes 1,000 changes a second. A client in a further process sends requests for one
node at a steady rate, whether or not earlier ones were answered, over a few connections that it keeps open. The time of
a request counts from the moment at which it was due, so a service that stalls does not hide it.

Before and after, the agents are paused, and the view of the service must be that of the command. At the end the
consumers are stopped, and every route that decides must refuse the stale view.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, NamedTuple

import psutil

from bench.consumer_process import failures_as_wrong_results, settings_as_environment
from bench.environments import BRIEF_S, PATIENCE_S, Environment, config_for
from bench.record import Case, Goal, Measure
from bench.running_cell import RunningCell
from bench.runs import Runs
from bench.scenario import Findings, ReportProgress, Scenario, Settings
from bench.worker import ParentLink, Worker
from bench.workload import require
from harness.deciding_requests import BODIES
from harness.processes import COMMAND, ModuleProcess, start_module
from harness.servers import RabbitServer
from nodestate.broker import connect_check
from nodestate.config import Config
from nodestate.serve.app import ROUTES

RATE: Final = 200
"""Requests per second."""
CHANGES_PER_S: Final = 1_000
CONNECTIONS_COUNT: Final = 8
STREAMS_COUNTS: Final = (0, 20)
"""Numbers of clients that follow ``/v1/events`` meanwhile."""
P99_GOAL_MS: Final = 50.0
GROWTH_GOAL: Final = 1.5
"""Memory of the service at the end of a run, in relation to its memory after a whole view and a report of findings."""
SIMULATED_STATE_BYTES: Final = 4_096
"""More than the state of a simulated node has, for the size of the store."""
MAX_AGE_S: Final = 30.0
"""Age that requests accept: a busy machine makes views older, and the run shows by how much."""
AGENTS: Final = {"heartbeat_s": Config().heartbeat_s, "resync_jitter_s": Config().resync_jitter_s}
"""The default settings of agents. ``config_for`` replaces them for fleets that never answer."""
AGENTS_BRIEF: Final = {"heartbeat_s": 0.5, "resync_jitter_s": 0.0}
STALE_S: Final = 10.0
"""Age of the view from which the routes that decide must refuse it. They accept half of it, by readers of their own."""
SAMPLE_EVERY_S: Final = 0.2
STREAM_BYTES: Final = "bytes of one stream"
_MIB: Final = 1024 * 1024
_DURATION_PREFIX: Final = "GET /v1/nodes/{name}"


def run(settings: Settings, report_progress: ReportProgress) -> Findings:
    """Measure every design at every size, without and with clients of the event stream."""
    runs = Runs()
    with RabbitServer() as rabbit:
        runs.servers["rabbitmq"] = connect_check(Config(broker=rabbit.url)).version
        for design in settings.designs:
            for nodes in settings.nodes:

                def measure(environment: Environment, nodes: int = nodes) -> list[Case]:
                    agents = AGENTS_BRIEF if settings.seconds < BRIEF_S else AGENTS
                    name = f"bench-{environment.slug}-{nodes}"
                    config = config_for(
                        environment, settings, broker=rabbit.url, cell=name, broker_heartbeat_s=60, **agents
                    )
                    with failures_as_wrong_results(), RunningCell(config, nodes, CHANGES_PER_S) as cell:
                        return _measure_cell(cell, environment, settings, report_progress)

                runs.measure_in([design], nodes * SIMULATED_STATE_BYTES, measure)
    return runs.findings(goals=[goal for case in runs.cases for goal in _goals(case)])


SCENARIO: Final = Scenario("http", "requests to `nodestate serve` while the cell changes", run)


def _goals(case: Case) -> list[Goal]:
    at = f"{case.design}, {case.nodes:,} nodes, {case.settings['streams']:g} streams"
    return [
        Goal.at_most(f"p99 of GET /v1/nodes/{{name}} ({at})", case.measures[_DURATION_PREFIX].p99, P99_GOAL_MS, "ms"),
        Goal.at_most(f"memory at the end / at first ({at})", case.ratios["memory, end / begin"], GROWTH_GOAL, "x"),
    ]


def _measure_cell(
    cell: RunningCell, environment: Environment, settings: Settings, report_progress: ReportProgress
) -> list[Case]:
    label = f"{environment.label}, {cell.nodes:,} nodes"
    report_progress(f"{label}: loads", 0.0)
    cell.wait_until_whole()
    cases = []
    for streams in STREAMS_COUNTS:
        report_progress(f"{label}: {streams} streams: service starts", 0.0)
        cases.append(_measure(cell, environment.label, streams, settings, report_progress))
    report_progress(f"{label}: consumers stop", 1.0)
    refused = _require_refusals(cell)
    shown = [refused, environment.require_nothing_lost(cell.nodes)]
    return [replace(case, shown=[*case.shown, *shown]) for case in cases]


def _measure(cell: RunningCell, design: str, streams: int, settings: Settings, report_progress: ReportProgress) -> Case:
    with _service(cell) as (process, port):
        service = psutil.Process(process.pid)
        with cell.agents_paused():
            generations = _require_equal_views(cell, port)
        _wait_for(port, "/v1/findings", 200)  # it asks the agents
        begin_bytes, begin_cpu_s = service.memory_info().rss, _cpu_s(service)
        samples, began = [begin_bytes], time.monotonic()
        with Worker(send_requests, port, cell.names, streams, settings.seconds, settings.seed) as client:
            client.wait_until_ready()
            while not client.has_ended(SAMPLE_EVERY_S):
                passed_s = time.monotonic() - began
                require(passed_s < settings.seconds + PATIENCE_S, "the client did not end")
                report_progress(f"{design}, {cell.nodes:,} nodes: requests", min(1.0, passed_s / settings.seconds))
                samples.append(service.memory_info().rss)
            answers = client.result()
        samples.append(service.memory_info().rss)
        cpu_share = (_cpu_s(service) - begin_cpu_s) / (time.monotonic() - began)
        with cell.agents_paused():
            took_s = time.monotonic() - began
            changes = _require_equal_views(cell, port) - generations
    require(changes > 0, "no change arrived")
    return Case(
        design,
        cell.nodes,
        {"streams": streams, "requests/s": RATE, "changes/s": round(changes / took_s)},
        {
            _DURATION_PREFIX: Measure.of("ms", answers.durations_ms),
            "age of the view": Measure.of("s", answers.ages_s),
            "processor time of the service": Measure.of("% of a core", [cpu_share * 100]),
            "memory of the service": Measure.of("MiB", [size / _MIB for size in samples]),
            **({STREAM_BYTES: Measure.of("bytes/s", [answers.stream_bytes / took_s])} if streams else {}),
        },
        {"memory, end / begin": samples[-1] / begin_bytes},
        [
            f"each of {len(answers.durations_ms):,} responses had status 200 and named the node",
            f"the views showed {changes:,} changes meanwhile",
            f"the service had {begin_bytes / _MIB:.0f} MiB before and {samples[-1] / _MIB:.0f} MiB after",
            "/v1/view was equal to 'nodestate view --json', before and after",
        ],
    )


def _cpu_s(process: psutil.Process) -> float:
    """Return the processor time that a process has used, in seconds."""
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def _service(cell: RunningCell) -> Iterator[tuple[ModuleProcess, int]]:
    """Start the service on the cell; gives its process and its port."""
    words = ["serve", "--listen", "127.0.0.1:0", "--json", "--log-level", "warning"]
    with start_module(COMMAND, words, settings_as_environment(cell.config), stderr=None) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            require(line.startswith(b"{"), f"the service did not start: {line!r}")
            yield process, int(json.loads(line)["listening"].rpartition(":")[2])
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def _require_equal_views(cell: RunningCell, port: int) -> int:
    """Raise ``WrongResultError`` unless the service and the command show the same nodes in the same versions.

    Returns the sum of the generations of all nodes. The cell must come to rest: agents are paused.
    """
    words = ["view", "--json", "--max-age", f"{MAX_AGE_S:g}", "--on-stale", "flag"]
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with start_module(COMMAND, words, settings_as_environment(cell.config), stderr=None) as process:
            shown = json.loads(process.communicate(timeout=PATIENCE_S)[0])
        status, body = asyncio.run(_ask_once(port, "GET", f"/v1/view?max_age={MAX_AGE_S:g}&on_stale=flag"))
        require(status == 200, f"/v1/view answered {status}: {body[:200]!r}")
        served = json.loads(body)
        if served["position"] == shown["position"]:
            break
        require(time.monotonic() < deadline, "the service and the command do not reach the same position")
    require(len(shown["nodes"]) == cell.nodes, f"the view has {len(shown['nodes']):,} of {cell.nodes:,} nodes")
    for field in ("nodes", "incomplete"):
        require(served[field] == shown[field], f"/v1/view and 'nodestate view' differ in {field}")
    return sum(node["generation"] for node in shown["nodes"].values())


def _require_refusals(cell: RunningCell) -> str:
    """Stop the consumers and raise ``WrongResultError`` unless every route that decides refuses the stale view.

    Returns a sentence that states it.
    """
    with _service(cell) as (_, port):
        _wait_for(port, "/v1/view", 200)
        cell.stop_consumers()
        _wait_for(port, f"/v1/view?max_age={STALE_S:g}", 503)
        deciding = [route for route in ROUTES if route.decides]
        for route in deciding:
            path = route.path.replace("{id}", "any").replace("{name}", cell.names[0])
            body = json.dumps(BODIES[route.path]).encode() if route.method == "POST" else b""
            status, answer = asyncio.run(_ask_once(port, route.method, path, body))
            is_refused = status == 503 and json.loads(answer)["type"] == "stale-view"
            require(is_refused, f"{route.method} {path} decided on a stale view: {status} {answer[:200]!r}")
    return f"without consumers, each of the {len(deciding)} routes that decide answered 503 stale-view"


def _wait_for(port: int, path: str, status: int) -> None:
    """Wait until a GET request has this status."""
    deadline = time.monotonic() + PATIENCE_S
    while (last := asyncio.run(_ask_once(port, "GET", path)))[0] != status:
        require(time.monotonic() < deadline, f"{path} answers {last[0]} instead of {status}: {last[1][:200]!r}")
        time.sleep(SAMPLE_EVERY_S)


# -- the client, in a process of its own ----------------------------------------------------------


class Answers(NamedTuple):
    """The answers to a client."""

    durations_ms: Sequence[float]
    """The time of each request, from the moment at which it was due."""
    ages_s: Sequence[float]
    """The age of the view of each answer."""
    stream_bytes: int
    """Bytes of one event stream; 0 without streams."""


def send_requests(
    link: ParentLink, port: int, names: Sequence[str], streams: int, seconds: float, seed: int
) -> Answers:
    """Send ``RATE`` requests a second for ``seconds``."""
    return asyncio.run(_send_requests(link, port, names, streams, seconds, seed))


class _Connection:
    """A connection to the service that is kept open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> _Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 24))

    def ask(self, path: str, method: str = "GET", body: bytes = b"") -> None:
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)

    async def read_head(self) -> tuple[int, dict[str, str]]:
        """Return the status and the headers, with names in lower case."""
        first, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
        headers = (line.partition(": ") for line in lines)
        return int(first.split(" ", 2)[1]), {name.lower(): value for name, _, value in headers}

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Return the status, the headers and the body of a response."""
        status, headers = await self.read_head()
        return status, headers, await self._reader.readexactly(int(headers.get("content-length", 0)))

    async def count_bytes(self) -> int:
        """Read until the connection is closed, and return the number of bytes."""
        count = 0
        try:
            while piece := await self._reader.read(1 << 16):
                count += len(piece)
        except ConnectionError:
            pass
        return count

    def close(self) -> None:
        self._writer.close()


async def _ask_once(port: int, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """Return the status and the body of the response to one request."""
    connection = await _Connection.open(port)
    try:
        connection.ask(path, method, body)
        status, _, answer = await connection.answer()
        return status, answer
    finally:
        connection.close()


async def _send_requests(
    link: ParentLink, port: int, names: Sequence[str], streams: int, seconds: float, seed: int
) -> Answers:
    free: asyncio.Queue[_Connection] = asyncio.Queue()
    for _ in range(CONNECTIONS_COUNT):
        free.put_nowait(await _Connection.open(port))
    followers: list[tuple[_Connection, asyncio.Task[int]]] = []
    for _ in range(streams):
        follower = await _Connection.open(port)
        follower.ask("/v1/events")
        require((await follower.read_head())[0] == 200, "an event stream was refused")
        followers.append((follower, asyncio.create_task(follower.count_bytes())))
    picks, durations_ms, ages_s = random.Random(seed), list[float](), list[float]()

    async def request_one(due: float) -> None:
        name = picks.choice(names)
        connection = await free.get()
        connection.ask(f"/v1/nodes/{name}?max_age={MAX_AGE_S:g}")
        status, headers, body = await connection.answer()
        free.put_nowait(connection)
        require(status == 200 and json.loads(body)["name"] == name, f"{name}: {status} {body[:200]!r}")
        durations_ms.append((time.monotonic() - due) * 1e3)
        ages_s.append(float(headers["nodestate-age"]))

    link.report_ready()
    began = time.monotonic()
    tasks: list[asyncio.Task[Any]] = []
    for number in range(max(1, round(RATE * seconds))):
        due = began + number / RATE
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        tasks.append(asyncio.create_task(request_one(due)))
    await asyncio.gather(*tasks)
    for follower, _ in followers:
        follower.close()
    counts = [await task for _, task in followers]
    return Answers(durations_ms, ages_s, counts[0] if counts else 0)
