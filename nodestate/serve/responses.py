"""The responses to clients, and the bytes of them that clients have not taken."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nodestate.serve.encoding import JSON, EncodedBody, encode
from nodestate.serve.limits import LARGE_BYTES, MAX_UNSENT_BYTES
from nodestate.serve.problems import MEDIA_TYPE, ProblemError, problem

PORTIONS_PER_TURN_COUNT: Final = 8
"""Portions of a response that are sent in one turn of the event loop, which takes about half a millisecond."""


@dataclass(frozen=True)
class ApiResponse:
    """The response of a handler."""

    value: Any = None
    """The document to encode in the media type of the call."""
    encoded: bytes | EncodedBody | None = None
    """The encoded document, if the handler encoded it."""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    media_type: str = ""
    """Media type of ``encoded``; empty: that of the call."""
    asgi: Response | None = None
    """The whole response, if the handler sends it itself, as a stream does."""


class Responder:
    """Makes the responses of handlers. Belongs to the event loop."""

    def __init__(self) -> None:
        self.unsent_bytes = 0
        """Bytes of large responses that clients have not taken."""

    def respond(self, response: ApiResponse, media_type: str) -> Response:
        """Return the response of a handler.

        Raises ``ProblemError`` of the type ``overloaded`` if slow clients hold too many bytes of large responses.
        """
        if response.status in (HTTPStatus.NOT_MODIFIED, HTTPStatus.NO_CONTENT):
            return Response(status_code=response.status, headers=response.headers)
        if response.asgi is not None:
            return response.asgi
        encoded = response.encoded if response.encoded is not None else encode(response.value, media_type)
        body = encoded if isinstance(encoded, EncodedBody) else EncodedBody([encoded], len(encoded))
        headers = {"Cache-Control": "no-cache", "Vary": "Accept, Accept-Encoding", **response.headers}
        if body.content_encoding:
            headers["Content-Encoding"] = body.content_encoding
        media_type = response.media_type or media_type
        if body.size <= LARGE_BYTES:
            return Response(b"".join(body.pieces), response.status, headers, media_type)
        if self.unsent_bytes + body.size > MAX_UNSENT_BYTES:
            raise problem(
                "overloaded",
                f"clients have not taken {self.unsent_bytes:,} bytes of responses; repeat the request later, or ask "
                "for less with fields or zone",
            )
        return _LargeResponse(self, body, response.status, headers, media_type)


class _LargeResponse(Response):
    """A response that is sent in portions, each once the client has taken most of those before it."""

    def __init__(
        self, responder: Responder, body: EncodedBody, status: int, headers: dict[str, str], media_type: str
    ) -> None:
        super().__init__(None, status, {**headers, "Content-Length": str(body.size)}, media_type)
        self._responder = responder
        self._encoded = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        del scope, receive
        self._responder.unsent_bytes += self._encoded.size
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for number, portion in enumerate(self._encoded.portions(), 1):
                await send({"type": "http.response.body", "body": portion, "more_body": True})
                if number % PORTIONS_PER_TURN_COUNT == 0:  # a send to a fast client does not wait
                    await asyncio.sleep(0)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._responder.unsent_bytes -= self._encoded.size


def problem_response(error: ProblemError) -> Response:
    """Return the response for a problem."""
    headers = {"Cache-Control": "no-store", **error.headers}
    return Response(encode(error.document, JSON), error.document.status, headers, MEDIA_TYPE)
