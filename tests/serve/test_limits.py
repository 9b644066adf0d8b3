"""Hostile clients: each is refused or dropped, while a reader beside them is served as before."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from harness.certificates import CertificateAuthority
from harness.waiting import PATIENCE_S, wait_until
from nodestate.serve.limits import Limits
from nodestate.serve.server import tls_context
from tests.machines.simulated_cell import SimulatedCell
from tests.serve.running_service import RunningService

LIMITS = Limits(max_connections=20, max_streams=2, max_body_bytes=1_000, request_timeout_s=0.5, write_timeout_s=0.5)


@pytest.fixture(scope="module")
def running() -> Iterator[RunningService]:
    """A service with low limits, of a cell whose view is too large for the buffers of a connection."""
    world = SimulatedCell(designs=("snapshot",))
    world.start_member([0, 1], [])
    for number in range(100):
        world.start_agent(f"node-{number}", {"namespaces": {"test": {"text": "x" * 100_000}}})
    world.run_well(60)
    with RunningService.over(world, limits=LIMITS) as running:
        yield running


def connect(running: RunningService) -> socket.socket:
    """Return a connection with a small buffer, so that it does not take a whole response which the test leaves."""
    host, _, port = running.listener.url.removeprefix("http://").rpartition(":")
    connection = socket.socket()
    connection.settimeout(PATIENCE_S)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    connection.connect((host, int(port)))
    return connection


def read_to_end(connection: socket.socket) -> bytes:
    """Return all bytes until the server closes the connection."""
    received = b""
    try:
        while piece := connection.recv(65_536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def test_a_body_that_is_too_large_is_refused(running: RunningService) -> None:
    for body in (b"x" * 1_001, (b"x" * 300 for _ in range(10))):
        refused = running.client.post("/v1/session", content=body)
        assert (refused.status_code, refused.json()["type"]) == (413, "too-large")
        assert "--max-body-bytes" in refused.json()["detail"]
    with connect(running) as connection:  # it declares more than any machine has, and sends nothing
        connection.sendall(b"POST /v1/session HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999999999\r\n\r\n")
        assert read_to_end(connection).startswith(b"HTTP/1.1 413 ")


@pytest.fixture(scope="module")
def patient() -> Iterator[RunningService]:
    """A service that waits for long requests as long as a busy machine may take for them."""
    world = SimulatedCell(designs=("snapshot",))
    world.start_member([0, 1], [])
    world.start_agent("node-0", {})
    world.run_well(60)
    with RunningService.over(world, limits=Limits(max_body_bytes=1_000, request_timeout_s=PATIENCE_S)) as patient:
        yield patient


def test_the_answer_to_an_endless_head_reaches_a_client_that_still_sends(patient: RunningService) -> None:
    """Regression: the server closed the connection while bytes were unread, and the system reset it."""
    with connect(patient) as connection:
        connection.sendall(b"GET /" + b"x" * 500_000)
        received = b""
        while piece := connection.recv(65_536):  # raises ConnectionResetError if the answer is lost
            received += piece
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"content-length: " in received.lower()


ANSWERED_EARLY = {
    "a body that is too large": (b"POST /v1/session", b"Content-Length: 20000000", b"413"),
    "a body without an end": (b"POST /v1/session", b"Transfer-Encoding: chunked", b"413"),
    "no such path": (b"POST /nothing", b"Content-Length: 20000000\r\nConnection: close", b"404"),
    "no such method": (b"POST /v1/view", b"Content-Length: 20000000\r\nConnection: close", b"405"),
    "another host": (b"POST /v1/session", b"Host: foreign.example\r\nContent-Length: 20000000", b"4"),
}


@pytest.mark.parametrize("why", ANSWERED_EARLY)
def test_an_answer_reaches_a_client_that_still_sends_the_body(patient: RunningService, why: str) -> None:
    """Regression: the server closed the connection while bytes were unread, and the system reset it."""
    line, headers, status = ANSWERED_EARLY[why]
    host = b"" if b"Host" in headers else b"Host: localhost\r\n"
    with connect(patient) as connection:
        connection.sendall(line + b" HTTP/1.1\r\n" + host + headers + b"\r\n\r\n")
        for _ in range(200):
            connection.sendall(b"ffff\r\n" + b"x" * 65_535 + b"\r\n")  # raises an error if the connection is reset
        received = b""
        while piece := connection.recv(65_536):  # as above
            received += piece
            if received.endswith(b"}"):
                break
    assert received.startswith(b"HTTP/1.1 " + status), received[:200]


def test_an_answer_by_tls_reaches_a_client_that_still_sends_the_body(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    made = authority.issue("127.0.0.1")
    key = tmp_path / "key.pem"
    key.write_bytes(made.key.read_bytes())
    key.chmod(0o600)
    limits = Limits(max_body_bytes=1_000, request_timeout_s=PATIENCE_S)
    with RunningService.over(SimulatedCell(), limits=limits, tls=tls_context(str(made.cert), str(key))) as secure:
        trusted = ssl.create_default_context(cafile=str(authority.file))
        address = urlsplit(secure.listener.url)
        with (
            socket.create_connection((address.hostname, address.port), PATIENCE_S) as plain,
            trusted.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
        ):
            connection.sendall(b"POST /v1/session HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 20000000\r\n\r\n")
            for _ in range(200):
                connection.sendall(b"x" * 65_536)  # raises an error if the connection is reset
            assert connection.recv(65_536).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_does_not_send_its_whole_request_is_dropped(running: RunningService) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(running)) for _ in range(3)]
        connections[1].sendall(b"GET /v1/view HTTP/1.1\r\nHost: ")
        connections[2].sendall(b"POST /v1/session HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx")
        for connection in connections:
            read_to_end(connection)
    assert running.get("/livez").status_code == 200


def test_the_answer_to_a_large_body_reaches_a_client_that_sends_all_of_it(running: RunningService) -> None:
    """Regression: the connection was closed with the answer, while the client still sent, and the system reset it."""
    head = b"POST /v1/session HTTP/1.1\r\nHost: localhost\r\n"
    chunks = b"".join(b"186a0\r\n" + b"x" * 100_000 + b"\r\n" for _ in range(50)) + b"0\r\n\r\n"
    for rest in (
        b"Content-Length: 5000000\r\n\r\n" + b"x" * 5_000_000,
        b"Transfer-Encoding: chunked\r\n\r\n" + chunks,
    ):
        with connect(running) as connection:
            connection.sendall(head + rest)  # raises ConnectionResetError if the server closes
            assert connection.recv(65_536).startswith(b"HTTP/1.1 413 ")


def test_the_rest_of_a_request_behind_another_one_is_not_waited_for(running: RunningService) -> None:
    """Regression: only bytes that came after the first response started the time for the second request.

    Such connections stayed for ever, and a client with --max-connections of them kept out all others.
    """
    for second in (b"POST /v1/session HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx", b"GET /livez HT"):
        with connect(running) as connection:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n" + second)
            received = read_to_end(connection)  # times out if the server does not close
        assert received.count(b"HTTP/1.1 200 ") == 1


def test_a_connection_whose_body_came_after_the_answer_is_used_again(running: RunningService) -> None:
    """The time for the first request must not end the connection while it is idle or has another request."""
    with connect(running) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n")
        assert b" 404 " in connection.recv(65_536)
        connection.sendall(b"abc")
        connection.settimeout(2 * LIMITS.request_timeout_s)
        with pytest.raises(TimeoutError):
            connection.recv(65_536)
        connection.settimeout(PATIENCE_S)
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")


def test_a_request_with_two_lengths_ends_its_connection(running: RunningService) -> None:
    """A proxy on the way may have believed the other length: the rest could be the request of another client."""
    with connect(running) as connection:
        connection.sendall(
            b"POST /v1/session HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n"
            b"0\r\n\r\nGET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )
        received = read_to_end(connection)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.count(b"HTTP/1.1 ") == 1


def test_a_request_whose_client_has_left_does_not_wait(running: RunningService) -> None:
    """Regression: each went on for the time that it had asked for, beside the limit of connections."""
    feed = running.service.feeds.main
    for _ in range(3):
        with connect(running) as connection:
            connection.sendall(
                b"GET /v1/nodes/node-1?wait=60s&max_age=1e9&at_least=node-1:999999999999.1 HTTP/1.1\r\n"
                b"Host: localhost\r\n\r\n"
            )
            wait_until(lambda: feed._watchers == 1, "the request does not wait")
        wait_until(lambda: feed._watchers == 0, "the request waits for its client", 20)


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02\x00\x01", b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET /" + b"x" * 100_000]
)
def test_bytes_that_are_no_request_are_answered_by_a_problem(running: RunningService, sent: bytes) -> None:
    with connect(running) as connection:
        connection.sendall(sent)
        answer = read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in answer
    assert b'"field":"head"' in answer


def test_a_client_that_does_not_take_its_response_is_dropped(running: RunningService) -> None:
    """The response is larger than all buffers on the way, so the server waits for the client, but not for ever."""
    whole = len(running.get("/v1/view?max_age=1000000").content)
    assert whole > 8_000_000
    with connect(running) as connection:
        connection.sendall(b"GET /v1/view?max_age=1000000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(10).startswith(b"HTTP/1.1")
        wait_until(lambda: not running.service.responder.unsent_bytes, "the client is not dropped", poll_s=0.1)
        assert len(read_to_end(connection)) < whole


def test_connections_above_the_limit_are_refused_and_those_below_it_served(running: RunningService) -> None:
    """The client beside, which has a connection already, is served all the time."""
    assert running.get("/livez").status_code == 200
    with ExitStack() as stack:
        for _ in range(LIMITS.max_connections + 5):
            connection = stack.enter_context(connect(running))
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n")  # never completed
        with httpx.Client(base_url=running.listener.url, trust_env=False) as late:
            refused = late.get("/livez")
            assert (refused.status_code, refused.json()["type"]) == (503, "overloaded")
            assert "--max-connections" in refused.json()["detail"]
        assert running.get("/livez").status_code == 200
    wait_until(lambda: httpx.get(f"{running.listener.url}/livez", trust_env=False).status_code == 200, "no recovery")


def test_head_of_a_stream_ends(running: RunningService) -> None:
    """Regression: it was served as a stream without content, and the next request waited behind it."""
    for _ in range(LIMITS.max_streams + 1):
        answer = running.client.head("/v1/events")
        assert (answer.status_code, answer.headers["content-type"][:17]) == (200, "text/event-stream")
    assert running.get("/livez").status_code == 200
    assert not running.service.hub.clients
