"""The server of the page of metrics, ``GET /metrics``, and of ``/livez`` and ``/readyz``, in threads of its own.

A process must not end, wait or grow because of a client of this page. So a request is short: ``MAX_HEAD_BYTES`` of its
head are read, and a client that sends nothing for ``SILENCE_S`` is dropped. Beyond ``MAX_CLIENTS_COUNT`` connections,
each new one ends the oldest one: a client that sends one byte a second, or a thousand of them, cannot keep out others.
"""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from types import TracebackType
from typing import Any, Final, Self

import structlog

from nodestate.agent.agent import Agent
from nodestate.broker import KombuSink
from nodestate.consumers.loop import Consumer
from nodestate.consumers.member import Member
from nodestate.designs.reader import Reader
from nodestate.listening import address_text, bound_socket
from nodestate.metrics.collectors import agent_samples, consumer_samples, reader_samples, scheduler_samples
from nodestate.metrics.exposition import MetricsPage, SampleSource
from nodestate.metrics.metric_table import Part
from nodestate.scheduling.scheduler import Scheduler

MAX_HEAD_BYTES: Final = 16_384
"""Bytes of a request that are read."""
SILENCE_S: Final = 5.0
"""Seconds after which a client that sends or takes nothing is dropped."""
MAX_CLIENTS_COUNT: Final = 16
"""Most connections at a time. One more ends the oldest one."""
BACKLOG: Final = 128
MAX_STEP_S: Final = 60.0
"""A loop whose step takes longer than this number of seconds does not live; as ``WatchdogSec`` of the units."""
POLL_S: Final = 0.2
"""Longest wait of ``MetricsServer.close`` for the thread to notice it."""

StepAge = Callable[[], float | None]
"""Returns the seconds since the loop of this process finished a step; None before the end of the first one."""

_log: Final = structlog.get_logger("nodestate.metrics")


def serve_metrics(
    listen: str,
    *,
    scheduler: Scheduler | None = None,
    reader: Reader | None = None,
    consumer: Consumer | Member | None = None,
    agent: Agent | None = None,
    sink: KombuSink | None = None,
    step_age: StepAge | None = None,
) -> MetricsServer:
    """Serve the metrics of these parts of this process in a background thread. Close the server after use.

    Args:
        listen: ``host:port``, or a port of this machine alone, as ``9464``. Port 0: any free one, see
            ``MetricsServer.url``.
        scheduler: a scheduler, whose reader is shown as well.
        reader: a reader that is not the scheduler's.
        consumer: a consumer, or a member.
        agent: an agent.
        sink: takes the agent's events; its confirms are measured.
        step_age: the age of the last step of the loop, for ``/livez`` and ``/readyz``. None if the process has no loop.

    Raises:
        ConfigError: if the address is wrong or taken.
    """
    sources: list[tuple[Part, SampleSource]] = []
    if consumer is not None:
        sources.append(("consumer", partial(consumer_samples, consumer)))
    if agent is not None:
        sources.append(("agent", partial(agent_samples, agent, sink)))
    if scheduler is not None:
        sources.append(("scheduler", partial(scheduler_samples, scheduler)))
        reader = reader or scheduler.refresher.reader
    if reader is not None:
        sources.append(("reader", partial(reader_samples, reader)))
    return MetricsServer(listen, MetricsPage(sources), step_age=step_age)


class MetricsServer:
    """Answers ``GET /metrics``, ``/livez`` and ``/readyz`` from its construction until ``close``.

    ``/readyz`` fails until the loop has finished its first step. ``/livez`` and ``/readyz`` fail while a step takes
    longer than ``MAX_STEP_S``.

    Args:
        listen: ``host:port``, or a port of this machine alone. Port 0: any free one.
        page: the metrics.
        option: name of the option that gave the address, for errors.
        step_age: the age of the last step of the loop; None if the process has no loop.

    Raises:
        ConfigError: if the address is wrong or taken.
    """

    def __init__(
        self, listen: str, page: MetricsPage, *, option: str = "--metrics-listen", step_age: StepAge | None = None
    ) -> None:
        bound = bound_socket(option, f"127.0.0.1:{listen}" if listen.isdecimal() else listen, BACKLOG)
        self.url = f"http://{address_text(bound)}/metrics"
        """Address of the page."""
        self._server = _BoundedServer(bound, page, step_age or (lambda: 0.0))
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_S,), name="nodestate-metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _BoundedServer(ThreadingMixIn, TCPServer):
    """A server with a thread for each connection, and a bounded number of connections."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, bound: socket.socket, page: MetricsPage, step_age: StepAge) -> None:
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = bound
        self.page = page
        """The metrics."""
        self.step_age = step_age
        """The age of the last step of the loop."""
        self._lock = threading.Lock()
        """Held while ``_clients`` changes."""
        self._clients: dict[int, socket.socket] = {}
        """The open connections, by id, the oldest first."""

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread of its own. End the oldest connection if there are too many."""
        with self._lock:
            self._clients[id(request)] = request
            over = len(self._clients) > MAX_CLIENTS_COUNT
            oldest = self._clients.pop(next(iter(self._clients))) if over else None
        if oldest is not None:
            with suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)  # its thread sees the end of the connection, and ends
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._lock:
            self._clients.pop(id(request), None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore the error of a connection: its client went away, or was dropped."""


class _BoundedHead(io.RawIOBase):
    """The lines that a client sends, as if it sent nothing after the first ``MAX_HEAD_BYTES``."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self._stream = stream
        self._left = MAX_HEAD_BYTES

    def readline(self, size: int | None = -1, /) -> bytes:
        """Return the next line, or the first ``size`` bytes of it."""
        limit = self._left if size is None or size < 0 else min(size, self._left)
        line = self._stream.readline(limit)
        self._left -= len(line)
        return line


class _Handler(BaseHTTPRequestHandler):
    """One connection, with one request."""

    timeout = SILENCE_S
    server: _BoundedServer

    def setup(self) -> None:
        """Prepare to read a bounded number of bytes."""
        super().setup()
        self._stream = self.rfile
        self.rfile = _BoundedHead(self._stream)  # type: ignore[assignment]  # the base class calls readline alone

    def finish(self) -> None:
        """Send the rest of the answer, and close the streams."""
        self._stream.close()
        super().finish()

    def do_GET(self) -> None:
        """Answer with the metrics, or say whether the process lives or is ready."""
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._send_metrics()
        elif path in {"/livez", "/readyz"}:
            age = self.server.step_age()
            passes = path == "/livez" if age is None else age <= MAX_STEP_S
            body = b'{"status":"pass"}' if passes else b'{"status":"fail"}'
            self._send(HTTPStatus.OK if passes else HTTPStatus.SERVICE_UNAVAILABLE, "application/health+json", body)
        else:
            self.send_error(HTTPStatus.NOT_FOUND, "the metrics are at /metrics")

    def _send_metrics(self) -> None:
        try:
            body, content_type = self.server.page.render(self.headers.get("Accept", ""))
        except Exception as error:  # noqa: BLE001 - whatever fails here, the process goes on
            _log.error("the metrics could not be collected", reason=str(error), exc_info=error)
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, "the log of this process has the cause")
            return
        self._send(HTTPStatus.OK, content_type, body)

    def _send(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        """Return the name of the server, without versions."""
        return "nodestate"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Log nothing: a client may send anything, and often."""
