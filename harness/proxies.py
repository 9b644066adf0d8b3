"""A TCP proxy in front of a server that holds, delays or cuts what passes through it at a chosen byte.

With it "in the middle of a batch" is a place in the stream and not a matter of luck: everything before a chosen command
is delivered; the rest is under way until the test releases it, cuts it off, or delivers it long after its sender died.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Final, Self

from harness.servers import free_ports
from harness.waiting import PATIENCE_S

RECV_BYTES: Final = 64 * 1024
JOIN_S: Final = 5.0
CONNECT_TIMEOUT_S: Final = 10.0


class TcpProxy:
    """A proxy for a memcached.

    open --hold_at(command)--> open until a request contains it --> holding --release--> open, what it held is delivered
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        """Host and port for connections that are made from now on."""
        self.delay_s = 0.0
        """Delay of each piece of a request, in seconds."""
        self.holding = threading.Event()
        """Set while a request is held."""
        self.delivered = threading.Event()
        """Set when a held request was delivered after its release, or could not be delivered."""
        self._pattern: bytes | None = None
        """A request that contains this is held."""
        self._skip = 0
        """How many more matches to let through."""
        self._gate = threading.Condition()
        """Guards the two above and ``_ending``; notified when held requests may go on."""
        self._ending = False
        self._open: set[socket.socket] = set()
        """Both ends of all connections."""
        self._swallowed: set[socket.socket] = set()
        """Both ends of connections on which nothing passes."""
        self._threads: list[threading.Thread] = []
        [self.port] = free_ports(1)
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=64)

    @property
    def url(self) -> str:
        """The address of the proxy, as nodestate's setting ``store`` takes it."""
        return f"memcached://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._start_thread(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        with self._gate:
            self._ending = True
            self._gate.notify_all()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(JOIN_S)

    def hold_at(self, command: bytes, skip: int = 0) -> None:
        """Hold the request line that contains ``command``, after ``skip`` others, and everything that follows it."""
        with self._gate:
            self.holding.clear()
            self.delivered.clear()
            self._pattern, self._skip = command, skip

    def wait_until_holding(self) -> None:
        """Wait until a request that ``hold_at`` named is held."""
        assert self.holding.wait(PATIENCE_S), f"no request with {self._pattern!r} came within {PATIENCE_S:g} s"

    def release(self) -> None:
        """Deliver all held requests and hold no more, also those from connections that their sender has closed."""
        with self._gate:
            self._pattern = None
            self._gate.notify_all()

    def swallow(self) -> None:
        """Discard everything on the present connections, and leave them open, as a load balancer does."""
        with self._gate:
            self._swallowed |= self._open

    def cut(self) -> None:
        """Break all connections; what is held is lost."""
        with self._gate:
            self._pattern = None
            for one in list(self._open):
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            self._gate.notify_all()

    def _start_thread(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]  # its arguments differ
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self.target, CONNECT_TIMEOUT_S)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open.add(one)
            self._start_thread(self._forward, client, server, True)
            self._start_thread(self._forward, server, client, False)

    def _forward(self, source: socket.socket, sink: socket.socket, requests: bool) -> None:
        try:
            while piece := source.recv(RECV_BYTES):
                if source in self._swallowed:
                    continue
                if requests:
                    self._forward_request(sink, piece)
                else:
                    sink.sendall(piece)
        except OSError:
            pass
        finally:
            # The other direction may still carry data: only this one ends.
            with suppress(OSError):
                sink.shutdown(socket.SHUT_WR)
            if not requests:
                for one in (source, sink):
                    self._open.discard(one)
                    one.close()

    def _forward_request(self, sink: socket.socket, piece: bytes) -> None:
        if self.delay_s:
            time.sleep(self.delay_s)
        cut = self._hold_position(piece)
        if cut is None:
            sink.sendall(piece)
            return
        sink.sendall(piece[:cut])
        with self._gate:
            self.holding.set()
            self._gate.wait_for(lambda: self._pattern is None or self._ending)
        try:
            sink.sendall(piece[cut:])
        finally:
            self.delivered.set()

    def _hold_position(self, piece: bytes) -> int | None:
        """Where in the piece the line begins that is to be held; None if nothing of it is."""
        with self._gate:
            if self._pattern is None:
                return None
            if self.holding.is_set():
                return 0
            at = -1
            while (at := piece.find(self._pattern, at + 1)) >= 0:
                if self._skip == 0:
                    return piece.rfind(b"\n", 0, at) + 1
                self._skip -= 1
            return None
