"""The connections of the server: uvicorn's protocol with limits, so that no client can keep others from being served.

A client that does not send its request, or does not take its response, is dropped and never waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from nodestate.serve.encoding import JSON, encode
from nodestate.serve.limits import KEEP_ALIVE_S, LARGE_BYTES, MAX_HEAD_BYTES, REFUSED_CONNECTIONS_COUNT, Limits
from nodestate.serve.problems import MEDIA_TYPE, bad_request, problem

ABORT: Final = "nodestate.abort"
"""Key of the scope with the function that drops the client at once."""


class _GuardedTransport:
    """The transport of a connection as uvicorn uses it: it is closed by the protocol, which decides how."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None], is_closing: Callable[[], bool]) -> None:
        self._transport = transport
        self.close = close
        self.is_closing = is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def guarded_protocol(limits: Limits) -> type[H11Protocol]:
    """Return the class of connections with these limits."""

    class GuardedProtocol(H11Protocol):
        """One connection."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            # Drops the client if its request does not arrive; None while none is expected.
            self._request_timer: asyncio.TimerHandle | None = None
            # Drops the client if it does not take its response; None while it takes it.
            self._write_timer: asyncio.TimerHandle | None = None
            # True once the last answer was sent before the end of its request; further bytes are dropped.
            self._is_refused = False
            # Closes the connection even if bytes of the client are unread.
            self._close_now: Callable[[], None] = lambda: None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a narrower type
            super().connection_made(transport)
            guarded = _GuardedTransport(transport, self._close, lambda: self._is_refused or transport.is_closing())
            self.transport = guarded  # type: ignore[assignment]  # it has all methods of a transport
            self._close_now = transport.close
            count = len(self.connections)
            if count > limits.max_connections + REFUSED_CONNECTIONS_COUNT:
                transport.abort()
                return
            app: ASGIApp = self.app if count <= limits.max_connections else _refuse
            self.app = _with_abort(app, transport.abort)
            self._expect_request()

        def data_received(self, data: bytes) -> None:
            if not self._is_refused:
                super().data_received(data)

        def handle_events(self) -> None:
            """Act on received bytes; called when bytes come, and after each response."""
            super().handle_events()
            if self._is_refused:
                return
            state = self.conn.their_state
            if state is h11.SEND_BODY or (state is h11.IDLE and self.conn.trailing_data[0]):  # a rest is to come
                if self._request_timer is None:
                    self._expect_request()
                return
            if self._request_timer is not None:
                self._request_timer.cancel()
                self._request_timer = None
            if state is h11.IDLE and self.timeout_keep_alive_task is None:  # a body came after its response
                self.timeout_keep_alive_task = self.loop.call_later(KEEP_ALIVE_S, self.timeout_keep_alive_handler)

        def _close(self) -> None:
            """Close the connection after its last answer."""
            is_sending = self.conn.their_state is h11.SEND_BODY
            if is_sending and not self._is_refused and not self.transport.is_closing():
                self._end_after_the_client()
            else:
                self._close_now()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            for timer in (self._request_timer, self._write_timer):
                if timer is not None:
                    timer.cancel()

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._write_timer is None:
                self._expect_progress()

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._write_timer is not None:
                self._write_timer.cancel()
                self._write_timer = None

        def send_400_response(self, msg: str) -> None:
            """Answer bytes that are no HTTP request."""
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
                self.transport.abort()
                return
            error = bad_request("head", f"{msg} It breaks HTTP/1.1, or has more than {MAX_HEAD_BYTES:,} bytes")
            body = encode(error.document, JSON)
            headers = [
                (b"content-type", MEDIA_TYPE.encode()),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            for event in (
                h11.Response(status_code=error.document.status, headers=headers, reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
            self._end_after_the_client()

        def _end_after_the_client(self) -> None:
            """Close the connection once the client has, or after the time for a request.

            If it were closed while bytes of the client are unread, the client could lose the answer: the system would
            reset the connection. So further bytes are read and dropped.
            """
            self._is_refused = True
            if self.transport.can_write_eof():  # TLS has no such end: the client sees the end of the answer
                with suppress(OSError):  # the client has left
                    self.transport.write_eof()
            self.flow.resume_reading()
            if self._request_timer is not None:
                self._request_timer.cancel()
            self._expect_request()

        def _expect_request(self) -> None:
            self._request_timer = self.loop.call_later(limits.request_timeout_s, self.transport.abort)

        def _expect_progress(self) -> None:
            unsent = self.transport.get_write_buffer_size()

            def check() -> None:
                if self.transport.get_write_buffer_size() > unsent - LARGE_BYTES:
                    self.transport.abort()
                else:
                    self._expect_progress()

            self._write_timer = self.loop.call_later(limits.write_timeout_s, check)

    return GuardedProtocol


def _with_abort(app: ASGIApp, abort: Callable[[], None]) -> ASGIApp:
    async def with_abort(scope: Scope, receive: Receive, send: Send) -> None:
        scope[ABORT] = abort
        await app(scope, receive, send)

    return with_abort


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request above the limit of connections."""
    del scope, receive
    error = problem("overloaded", "the service has as many connections as it accepts (--max-connections)")
    body = encode(error.document, JSON)
    headers = {
        **error.headers,
        "Content-Type": MEDIA_TYPE,
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    await send(
        {
            "type": "http.response.start",
            "status": error.document.status,
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})
