"""A thousand open streams: all get each change, the rest is refused, and the service answers other requests as before.

The clients are real sockets of this process, read by one selector, so that they cost little beside the service.
"""

from __future__ import annotations

import resource
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psutil
import pytest

from harness.waiting import PATIENCE_S, wait_until
from nodestate.serve.limits import Limits
from nodestate.serve.node_board import NodesEvent
from tests.machines.simulated_cell import SimulatedCell
from tests.serve.running_service import RunningService, publish

STREAMS_COUNT = 1_000
REFUSED_COUNT = 10
STREAM_BYTES = 200_000
"""Most memory for one stream, of the service and of this test together."""
REQUEST = b"GET /v1/events?topics=nodes,decisions HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def running() -> Iterator[RunningService]:
    needed = 2 * (STREAMS_COUNT + REFUSED_COUNT) + 500
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    world = SimulatedCell(designs=("snapshot",))
    world.start_member([0, 1], [])
    world.start_agent("node-1", {"usage": {"VCPU": 1}, "inventory": {"VCPU": {"total": 10}}})
    world.run_well(60)
    limits = Limits(max_streams=STREAMS_COUNT, max_connections=STREAMS_COUNT + 100)
    with RunningService.over(world, limits=limits) as running:
        yield running


class Streams:
    """Clients of the stream, and the last bytes that each of them received."""

    def __init__(self, running: RunningService) -> None:
        host, _, port = running.listener.url.removeprefix("http://").rpartition(":")
        self._address = (host, int(port))
        self._selector = selectors.DefaultSelector()
        self.received: dict[socket.socket, bytes] = {}

    def open(self, stack: ExitStack, request: bytes = REQUEST) -> socket.socket:
        """Open a stream that ``read`` reads."""
        client = stack.enter_context(socket.create_connection(self._address, PATIENCE_S))
        client.sendall(request)
        client.setblocking(False)
        self.received[client] = b""
        self._selector.register(client, selectors.EVENT_READ)
        return client

    def open_unread(self, stack: ExitStack, topic: str) -> socket.socket:
        """Open a stream with a small buffer that nothing reads."""
        client = stack.enter_context(socket.socket())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.settimeout(PATIENCE_S)
        client.connect(self._address)
        client.sendall(REQUEST.replace(b"nodes,decisions", topic.encode()))
        return client

    def read_until(self, condition: Callable[[bytes], bool], failure: str) -> None:
        """Read until the condition holds for the bytes of each client."""
        waiting = {client for client, received in self.received.items() if not condition(received)}
        until = time.monotonic() + PATIENCE_S
        while waiting:
            assert time.monotonic() < until, f"{failure}: {len(waiting)} of {len(self.received)} clients"
            for key, _ in self._selector.select(0.1):
                client = key.fileobj
                assert isinstance(client, socket.socket)
                self.received[client] = (self.received[client] + client.recv(65_536))[-65_536:]
                if condition(self.received[client]):
                    waiting.discard(client)

    def forget(self) -> None:
        """Forget the bytes so far."""
        self.received = dict.fromkeys(self.received, b"")


def memory_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def test_a_thousand_streams_get_each_change_and_the_service_answers_others(running: RunningService) -> None:
    with ExitStack() as stack:
        streams = Streams(running)
        before = memory_bytes()
        unread = streams.open_unread(stack, "findings")
        wait_until(lambda: len(running.service.hub.clients) == 1, "the client does not connect")
        for _ in range(STREAMS_COUNT - 1):
            streams.open(stack)
        streams.read_until(lambda text: b"event: nodes" in text, "streams do not open")
        assert len(running.service.hub.clients) == STREAMS_COUNT
        for _ in range(REFUSED_COUNT):
            refused = running.get("/v1/events")
            assert (refused.status_code, refused.json()["type"]) == (503, "overloaded")
            assert f"{STREAMS_COUNT} (--max-streams)" in refused.json()["detail"]
        streams.forget()
        publish(running, "decisions", NodesEvent(names=["a change"]))
        streams.read_until(lambda text: b"a change" in text, "a change does not arrive")
        large = NodesEvent(names=["x" * 100_000])
        while not running.service.hub.dropped:
            publish(running, "findings", large)
            time.sleep(0.001)
        assert len(running.service.hub.clients) == STREAMS_COUNT - 1, "only the client that never reads is dropped"
        publish(running, "decisions", NodesEvent(names=["after the drop"]))
        for path in ("/livez", "/readyz", "/v1/nodes/node-1", "/v1/view", "/metrics"):
            assert running.get(path).status_code == 200, path
        streams.read_until(lambda text: b"after the drop" in text, "a change does not arrive after the drop")
        assert memory_bytes() - before < STREAMS_COUNT * STREAM_BYTES
        unread.close()
    wait_until(lambda: not running.service.hub.clients, "clients that left still count")
