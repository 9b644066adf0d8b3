"""Links between the nodes of a RabbitMQ cluster that a test can cut, as a broken network would.

Nodes ask Erlang's port mapper (epmd) for each other's ports. The one here answers with the port of a proxy in front of
the node, so that everything that nodes send each other passes through it. Clients of the cluster connect to the nodes
themselves.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
import uuid
from contextlib import suppress
from typing import Final

RECV_BYTES: Final = 64 * 1024
CONNECT_TIMEOUT_S: Final = 10.0
JOIN_S: Final = 5.0

_REGISTER: Final = 120
_REGISTERED: Final = 118
_PORT_OF: Final = 122
_PORT_IS: Final = 119
_NAMES: Final = 110
_FOUND: Final = 0
_NOT_FOUND: Final = 1
_NODE_TYPE: Final = 77
_VERSIONS: Final = (6, 5)
"""Highest and lowest version of the distribution protocol that the nodes speak."""

_node_in: Final = re.compile(rb"(nodestate-[0-9a-f]{8})@").search
"""Finds the name of a node of the cluster in the first message of a connection; rabbitmqctl has another name."""


class CuttableLinks:
    """A port mapper of a cluster, and a proxy in front of each of its nodes. Used instead of ``PortMapper``.

    A cut link holds all data until it is whole again, as TCP does.
    """

    def __init__(self) -> None:
        self.cookie = uuid.uuid4().hex
        """The secret that nodes must have to talk to each other."""
        self._listener = _listen()
        self.port: int = self._listener.getsockname()[1]
        """The port on which nodes ask for each other's ports."""
        self._gate = threading.Condition()
        """Guards the fields below; notified when held messages may go on."""
        self._ports: dict[str, int] = {}
        """The port of each registered node, by its name without the host."""
        self._proxies: dict[str, socket.socket] = {}
        """The listening socket of each proxy, by the name of its node."""
        self._apart: frozenset[str] = frozenset()
        """The nodes that are cut off from all others."""
        self._ending = False
        self._open: set[socket.socket] = set()

    def start(self) -> None:
        """Do nothing if it runs; start the port mapper otherwise."""
        if not self._open:
            self._open.add(self._listener)
            _in_thread(self._accept, self._listener, self._serve)

    def remove(self) -> None:
        """End the port mapper and the proxies."""
        with self._gate:
            self._ending = True
            self._gate.notify_all()
            for one in self._open:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()

    kill = remove

    def cut_off(self, *nodes: str) -> None:
        """Cut all links between these nodes (``nodestate-...@localhost``) and the others; no nodes: cut none."""
        with self._gate:
            self._apart = frozenset(node.partition("@")[0] for node in nodes)
            self._gate.notify_all()

    def _accept(self, listener: socket.socket, serve: object, *arguments: object) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self._open.add(connection)
            _in_thread(serve, connection, *arguments)

    # -- the port mapper

    def _serve(self, connection: socket.socket) -> None:
        """Answer one request of a node. A node is registered as long as its connection is open."""
        with suppress(OSError), connection:
            (size,) = struct.unpack(">H", _received(connection, 2))
            request = _received(connection, size)
            if request[0] == _REGISTER:
                (port,) = struct.unpack_from(">H", request, 1)
                (length,) = struct.unpack_from(">H", request, 9)
                self._register(connection, request[11 : 11 + length].decode(), port)
            elif request[0] == _PORT_OF:
                connection.sendall(self._port_of(request[1:].decode()))
            elif request[0] == _NAMES:
                names = "".join(f"name {name} at port {self._proxy_port(name)}\n" for name in list(self._ports))
                connection.sendall(struct.pack(">I", self.port) + names.encode())
        self._open.discard(connection)

    def _register(self, connection: socket.socket, name: str, port: int) -> None:
        with self._gate:
            self._ports[name] = port
            if name not in self._proxies:
                self._proxies[name] = _listen()
                self._open.add(self._proxies[name])
                _in_thread(self._accept, self._proxies[name], self._link, name)
        connection.sendall(struct.pack(">BBI", _REGISTERED, _FOUND, 1))
        while connection.recv(RECV_BYTES):
            pass
        with self._gate:
            if self._ports.get(name) == port:
                del self._ports[name]

    def _port_of(self, name: str) -> bytes:
        if name not in self._ports:
            return bytes([_PORT_IS, _NOT_FOUND])
        fields = struct.pack(">HBBHHH", self._proxy_port(name), _NODE_TYPE, 0, *_VERSIONS, len(name))
        return bytes([_PORT_IS, _FOUND]) + fields + name.encode() + b"\0\0"

    def _proxy_port(self, name: str) -> int:
        return int(self._proxies[name].getsockname()[1])

    # -- the links

    def _link(self, connection: socket.socket, target: str) -> None:
        """Forward one connection to a node. Its first message has the name of the node that it comes from."""
        with suppress(OSError), connection:
            first = connection.recv(RECV_BYTES)
            found = _node_in(first)
            ends = frozenset({target, found[1].decode()} if found else ())
            self._wait_until_whole(ends)
            port = self._ports.get(target)
            if port is None:
                return
            with socket.create_connection(("127.0.0.1", port), CONNECT_TIMEOUT_S) as node:
                node.settimeout(None)
                self._open.add(node)
                for one in (connection, node):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                node.sendall(first)
                back = _in_thread(self._forward, node, connection, ends)
                self._forward(connection, node, ends)
                back.join(JOIN_S)
                self._open.discard(node)
        self._open.discard(connection)

    def _forward(self, source: socket.socket, sink: socket.socket, ends: frozenset[str]) -> None:
        with suppress(OSError):
            while piece := source.recv(RECV_BYTES):
                self._wait_until_whole(ends)
                sink.sendall(piece)
        self._wait_until_whole(ends)  # the end of a connection passes no cut link either
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _wait_until_whole(self, ends: frozenset[str]) -> None:
        with self._gate:
            self._gate.wait_for(lambda: self._ending or len(ends & self._apart) in (0, len(ends)))


def _listen() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=64)


def _in_thread(target: object, *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]  # arguments differ
    thread.start()
    return thread


def _received(connection: socket.socket, size: int) -> bytes:
    """Receive exactly ``size`` bytes. Raises ConnectionError if the connection ends before."""
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise ConnectionError("ended within a request")
        data += piece
    return data
