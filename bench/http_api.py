"""Measures ``nodestate serve``: the time of a request while the cell changes, and the memory of the service.

One consumer commits 1,000 changes a second. The service runs as an operator starts it. A client in a process of its own
sends requests for one node at a steady rate, whether or not earlier ones were answered, over a few connections that it
keeps open. The time of a request counts from the moment at which it was due, so a service that stalls does not hide it.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psutil

from bench.environments import PATIENCE_S, Environment
from bench.record import Case, Goal, Measure
from bench.runs import Runs
from bench.scenario import Findings, ReportProgress, Scenario, Settings
from bench.stepped_cell import MAX_AGE_S, SteppedCell
from bench.worker import ParentLink, Worker
from bench.workload import SeededFleet, require
from harness.processes import COMMAND, ModuleProcess, start_module

RATE: Final = 200
"""Requests per second."""
CHANGES_PER_S: Final = 1_000
COMMIT_EVERY_S: Final = 0.05
"""Time between two commits: a consumer under steady traffic writes after its ``flush_s``."""
CONNECTIONS_COUNT: Final = 8
STREAMS_COUNTS: Final = (0, 20)
"""Numbers of clients that follow ``/v1/events`` meanwhile."""
P99_GOAL_MS: Final = 50.0
GROWTH_GOAL: Final = 1.5
"""Memory of the service at the end of a run, in relation to its memory when the first requests were answered."""
_MIB: Final = 1024 * 1024
_DURATION_PREFIX: Final = "GET /v1/nodes/{name}"


def run(settings: Settings, report_progress: ReportProgress) -> Findings:
    """Measure every design at every size, without and with clients of the event stream."""
    runs = Runs()
    for design in settings.designs:
        for nodes in settings.nodes:

            def measure(environment: Environment, nodes: int = nodes) -> list[Case]:
                fleet = SeededFleet(
                    settings.seed, nodes, state_bytes=settings.state_bytes, change_bytes=settings.change_bytes
                )
                with SteppedCell(fleet, environment, settings) as cell:
                    cell.load(report_progress)
                    return [_measure(cell, streams, settings, report_progress) for streams in STREAMS_COUNTS]

            runs.measure_in([design], nodes * settings.state_bytes, measure)
    return runs.findings(goals=[goal for case in runs.cases for goal in _goals(case)])


SCENARIO: Final = Scenario("http", "requests to `nodestate serve` while the cell changes", run)


def _goals(case: Case) -> list[Goal]:
    at = f"{case.design}, {case.nodes:,} nodes, {case.settings['streams']:g} streams"
    return [
        Goal.at_most(f"p99 of GET /v1/nodes/{{name}} ({at})", case.measures[_DURATION_PREFIX].p99, P99_GOAL_MS, "ms"),
        Goal.at_most(f"memory at the end / at first ({at})", case.ratios["memory, end / begin"], GROWTH_GOAL, "x"),
    ]


def _measure(cell: SteppedCell, streams: int, settings: Settings, report_progress: ReportProgress) -> Case:
    label, fleet = f"{cell.label}: {streams} streams", cell.fleet
    report_progress(f"{label}: service starts", 0.0)
    with _service(cell) as (process, port):
        _require_equal_views(cell, port)
        resident = psutil.Process(process.pid).memory_info
        begin_bytes, picks = resident().rss, random.Random(settings.seed)
        changed = min(round(CHANGES_PER_S * COMMIT_EVERY_S), len(fleet))
        samples = [begin_bytes]
        with Worker(send_requests, port, fleet.names, streams, settings.seconds, settings.seed) as client:
            client.wait_until_ready()
            began, commits = time.monotonic(), 0
            while not client.has_ended(0.0):
                passed_s = time.monotonic() - began
                require(passed_s < settings.seconds + PATIENCE_S, "the client did not end")
                report_progress(f"{label}: requests", min(1.0, passed_s / settings.seconds))
                cell.change(picks.sample(range(len(fleet)), changed))
                samples.append(resident().rss)
                commits += 1
                time.sleep(max(0.0, began + commits * COMMIT_EVERY_S - time.monotonic()))
            took_s = time.monotonic() - began
            durations_ms, events_bytes = client.result()
        _require_equal_views(cell, port)
    return Case(
        cell.label,
        len(fleet),
        {"streams": streams, "requests/s": RATE, "changes/s": round(commits * changed / took_s)},
        {
            _DURATION_PREFIX: Measure.of("ms", durations_ms),
            "memory of the service": Measure.of("MiB", [size / _MIB for size in samples]),
            **({"bytes of one stream": Measure.of("bytes/s", [events_bytes / took_s])} if streams else {}),
        },
        {"memory, end / begin": samples[-1] / begin_bytes},
        [
            f"each of {len(durations_ms):,} responses had status 200 and named the node",
            "/v1/view was equal to 'nodestate view --json', before and after",
        ],
    )


@contextmanager
def _service(cell: SteppedCell) -> Iterator[tuple[ModuleProcess, int]]:
    """Start the service on the cell; gives its process and its port."""
    words = ["serve", "--listen", "127.0.0.1:0", "--json", "--log-level", "warning"]
    with start_module(COMMAND, words, _settings_of(cell), stderr=None) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            require(line.startswith(b"{"), f"the service did not start: {line!r}")
            yield process, int(json.loads(line)["listening"].rpartition(":")[2])
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def _settings_of(cell: SteppedCell) -> dict[str, str]:
    config = cell.config
    return {
        "NODESTATE_STORE": config.store,
        "NODESTATE_SQL": config.sql,
        "NODESTATE_CELL": config.cell,
        "NODESTATE_READ_DESIGN": config.read_design,
        "NODESTATE_DESIGNS": ",".join(config.designs),
        "NODESTATE_PARTITIONS": str(config.partitions),
    }


def _require_equal_views(cell: SteppedCell, port: int) -> None:
    """Raise ``WrongResultError`` unless the service and the command show the same nodes in the same versions."""
    words = ["view", "--json", "--max-age", f"{MAX_AGE_S:g}", "--on-stale", "flag"]
    with start_module(COMMAND, words, _settings_of(cell), stderr=None) as process:
        shown = json.loads(process.communicate(timeout=PATIENCE_S)[0])

    async def ask() -> tuple[int, bytes]:
        connection = await _Connection.open(port)
        try:
            return await connection.get(f"/v1/view?max_age={MAX_AGE_S:g}&on_stale=flag")
        finally:
            connection.close()

    deadline = time.monotonic() + PATIENCE_S
    while True:  # the service refreshes its view about once a second
        status, body = asyncio.run(ask())
        require(status == 200, f"/v1/view answered {status}: {body[:200]!r}")
        served = json.loads(body)
        if served["position"] == shown["position"]:
            break
        require(time.monotonic() < deadline, "the service does not reach the position of the command")
        time.sleep(0.1)
    for field in ("nodes", "incomplete"):
        require(served[field] == shown[field], f"/v1/view and 'nodestate view' differ in {field}")


# -- the client, in a process of its own ----------------------------------------------------------


def send_requests(
    link: ParentLink, port: int, names: list[str], streams: int, seconds: float, seed: int
) -> tuple[list[float], int]:
    """Send ``RATE`` requests a second for ``seconds``. Returns their times in milliseconds, and bytes of one stream."""
    return asyncio.run(_send_requests(link, port, names, streams, seconds, seed))


class _Connection:
    """A connection to the service that is kept open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> _Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 24))

    def ask(self, path: str) -> None:
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())

    async def read_head(self) -> tuple[int, int]:
        """Return the status and the length of the body."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        _, _, length = head.partition(b"content-length:")
        return int(head.split(b" ", 2)[1]), int(length.partition(b"\r\n")[0] or 0)

    async def get(self, path: str) -> tuple[int, bytes]:
        """Send a request and return the status and the body of its response."""
        self.ask(path)
        status, length = await self.read_head()
        return status, await self._reader.readexactly(length)

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


async def _send_requests(
    link: ParentLink, port: int, names: list[str], streams: int, seconds: float, seed: int
) -> tuple[list[float], int]:
    free: asyncio.Queue[_Connection] = asyncio.Queue()
    for _ in range(CONNECTIONS_COUNT):
        free.put_nowait(await _Connection.open(port))
    followers: list[tuple[_Connection, asyncio.Task[int]]] = []
    for _ in range(streams):
        follower = await _Connection.open(port)
        follower.ask("/v1/events")
        require((await follower.read_head())[0] == 200, "an event stream was refused")
        followers.append((follower, asyncio.create_task(follower.count_bytes())))
    picks, durations_ms = random.Random(seed), list[float]()

    async def request_one(due: float) -> None:
        name = picks.choice(names)
        connection = await free.get()
        status, body = await connection.get(f"/v1/nodes/{name}?max_age={MAX_AGE_S:g}")
        free.put_nowait(connection)
        require(status == 200 and json.loads(body)["name"] == name, f"{name}: {status} {body[:200]!r}")
        durations_ms.append((time.monotonic() - due) * 1e3)

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
    return durations_ms, counts[0] if counts else 0
