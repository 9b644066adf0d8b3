"""The limits of a service: how much it accepts from its clients, all of them together and each one."""

from __future__ import annotations

from typing import Final

import msgspec

MAX_HEAD_BYTES: Final = 64 * 1024
"""Most bytes of the head of a request, with its URL; a larger one is refused with 400."""
MAX_UNSENT_BYTES: Final = 256_000_000
"""Most bytes of responses that wait for their clients; further large responses are refused."""
LARGE_BYTES: Final = 64 * 1024
"""Size in bytes from which a response is sent in pieces of this size, each when the client has taken the last one."""
REFUSED_CONNECTIONS_COUNT: Final = 200
"""Connections above ``max_connections`` that are answered by 503; further ones are dropped."""
TLS_HANDSHAKE_TIMEOUT_S: Final = 10.0
"""Longest time for a TLS handshake."""
KEEP_ALIVE_S: Final = 15
"""Seconds after which a connection without a request is closed."""
MAX_STREAMS_COUNT: Final = 200
"""Clients of ``/v1/events`` at a time, if an operator does not set it."""


class Limits(msgspec.Struct, frozen=True):
    """The limits that an operator can set."""

    max_connections: int = 1_000
    """Connections at a time; further requests are refused with 503."""
    max_streams: int = MAX_STREAMS_COUNT
    """Clients of ``/v1/events`` at a time; further ones are refused with 503."""
    max_body_bytes: int = 1_000_000
    """Bytes of the body of a request; larger ones are refused with 413."""
    request_timeout_s: float = 10.0
    """Seconds in which a client must have sent its whole request; it is dropped after them."""
    write_timeout_s: float = 30.0
    """Seconds in which a client must take at least ``LARGE_BYTES`` of a response that waits; it is dropped otherwise.
    """
