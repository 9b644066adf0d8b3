"""A double of any server with TLS."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading

from harness.certificates import Certificate
from harness.waiting import PATIENCE_S


class TlsListener:
    """A server with a certificate, which keeps the bytes that its client sends after the handshake.

    Args:
        certificate: the server's certificate.
        before: the number of bytes that a client sends before TLS begins, and the answer to them.
    """

    def __init__(self, certificate: Certificate, before: tuple[int, bytes] = (0, b"")) -> None:
        self._before = before
        self.received = b""
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate.cert, certificate.key)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listening.accept()
        connection.settimeout(PATIENCE_S)
        size, answer = self._before
        if size:
            connection.recv(size, socket.MSG_WAITALL)
            connection.sendall(answer)
        with contextlib.suppress(OSError), self._context.wrap_socket(connection, server_side=True) as encrypted:
            while piece := encrypted.recv(4096):
                self.received += piece
        connection.close()

    def close(self) -> None:
        self._thread.join(PATIENCE_S)
        self._listening.close()
