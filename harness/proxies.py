"""A TCP relay before a memcached, that stops, delays or cuts what goes through it at a chosen byte.

So "mid-batch" is a place in the stream and no matter of luck: everything up to a command is delivered, the rest is
under way until it is let go, cut off, or delivered long after its sender has died.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Final, Self

from harness.servers import free_ports

RECV_BYTES: Final = 64 * 1024
JOIN_S: Final = 5.0


class TcpProxy:
    """open --hold_at(command)--> open until a request contains it --> holding --let_go--> open, what was held delivered

    ``delay_s`` holds up every request for so long. ``target`` may be changed: connections made from then on go there.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.delay_s = 0.0
        self.holding = threading.Event()
        self._pattern: bytes | None = None
        self._skip = 0
        self._gate = threading.Condition()
        self._ending = False
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        [self.port] = free_ports(1)
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=64)

    @property
    def url(self) -> str:
        """The address of the proxy as nodestate's setting ``store`` takes it."""
        return f"memcached://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._begin(self._accept)
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
        """Stop before the request line that contains ``command`` (after ``skip`` others) and hold it and all after it."""
        with self._gate:
            self.holding.clear()
            self._pattern, self._skip = command, skip

    def let_go(self) -> None:
        """Deliver what is held, and hold no more; also what was held of connections that their sender has closed."""
        with self._gate:
            self._pattern = None
            self._gate.notify_all()

    def cut(self) -> None:
        """Break all connections; what is held is lost."""
        with self._gate:
            self._pattern = None
            for one in list(self._open):
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            self._gate.notify_all()

    # -- inside

    def _begin(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self.target, 1.0)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open.add(one)
            self._begin(self._carry, client, server, True)
            self._begin(self._carry, server, client, False)

    def _carry(self, source: socket.socket, sink: socket.socket, requests: bool) -> None:
        try:
            while piece := source.recv(RECV_BYTES):
                if requests:
                    self._send_requests(sink, piece)
                else:
                    sink.sendall(piece)
        except OSError:
            pass
        finally:
            # The other direction may still carry: only this one ends.
            with suppress(OSError):
                sink.shutdown(socket.SHUT_WR)
            if not requests:
                for one in (source, sink):
                    self._open.discard(one)
                    one.close()

    def _send_requests(self, sink: socket.socket, piece: bytes) -> None:
        if self.delay_s:
            time.sleep(self.delay_s)
        cut = self._place(piece)
        if cut is None:
            sink.sendall(piece)
            return
        sink.sendall(piece[:cut])
        with self._gate:
            self.holding.set()
            self._gate.wait_for(lambda: self._pattern is None or self._ending)
        sink.sendall(piece[cut:])

    def _place(self, piece: bytes) -> int | None:
        """Where the line begins that is to be held."""
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
