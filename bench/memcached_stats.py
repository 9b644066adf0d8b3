"""The statistics of a memcached, asked over a socket of its own."""

from __future__ import annotations

import socket
from typing import NamedTuple

from bench.baseline import RECV_BYTES, TIMEOUT_S


class MemcachedSizes(NamedTuple):
    """Bytes that a memcached holds."""

    items: int
    """Items with their headers."""
    chunks: int
    """Chunks in which these items lie."""
    pages: int
    """Pages that contain the chunks."""


def memcached_sizes(address: str) -> MemcachedSizes:
    """Ask the memcached at ``host:port`` how many bytes it holds."""
    slabs = memcached_stats(address, "slabs")
    sizes = {name.partition(":")[0]: value for name, value in slabs.items() if name.endswith(":chunk_size")}
    chunks = sum(size * slabs[f"{number}:used_chunks"] for number, size in sizes.items())
    return MemcachedSizes(memcached_stats(address)["bytes"], chunks, slabs["total_malloced"])


def memcached_stats(address: str, topic: str = "") -> dict[str, int]:
    """Return the statistics of the memcached at ``host:port`` that are whole numbers, by name."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), TIMEOUT_S) as connection:
        connection.sendall(f"stats {topic}".rstrip().encode() + b"\r\n")
        reply = b""
        while not reply.endswith(b"END\r\n"):
            received = connection.recv(RECV_BYTES)
            if not received:
                raise ConnectionResetError("memcached closed the connection")
            reply += received
    words = [line.split() for line in reply.decode().splitlines()[:-1]]
    return {name: int(value) for _, name, value in words if value.isdigit()}
