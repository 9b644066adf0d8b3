"""Addresses on which a process accepts connections."""

from __future__ import annotations

import socket

from nodestate.config import MAX_PORT
from nodestate.errors import ConfigError


def bound_socket(option: str, address: str, backlog: int, *, also: str = "") -> socket.socket:
    """Return a socket that listens for TCP connections.

    Args:
        option: name of the option that gave the address, for errors.
        address: ``host:port``, or ``[host]:port`` for IPv6. Port 0: any free one.
        backlog: number of connections that wait to be accepted.
        also: other forms of the address that the option takes, for errors.

    Raises:
        ConfigError: if the address is wrong or taken.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > MAX_PORT:
        raise ConfigError(f"{option} can't be {address!r}: give host:port, such as 127.0.0.1:8790{also}")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{option} {address}: {getattr(error, 'strerror', None) or error}") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(where)
        bound.listen(backlog)
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"{option} {address}: {error.strerror or error}; give another port, or 0 for any free one"
        ) from None
    return bound


def address_text(bound: socket.socket) -> str:
    """Return the address of a listening socket as ``host:port``, with an IPv6 address in brackets."""
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
