"""Forks: a child process must neither use nor close the connections of its parent.

After a fork both processes have the same sockets, so each would read replies to requests of the other. Closing is
harmful as well: drivers say goodbye on a connection that they close, which ends it for the parent too. So in the child
every such file descriptor is replaced, before other code runs, by a socket whose other end is closed. An adapter then
finds a connection that its server closed, and opens another one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol
from weakref import WeakMethod, WeakSet


class SocketOwner(Protocol):
    """An object whose connections a forked child process must not share."""

    def descriptors(self) -> Iterable[int]:
        """The file descriptors of its connections that are open now."""


_owners: Final[WeakSet[SocketOwner]] = WeakSet()
_callbacks: Final[list[WeakMethod[Callable[[], None]]]] = []


def sever_in_children(owner: SocketOwner) -> None:
    """From now on, replace the owner's connections by closed ones in every forked child, as long as the owner lives."""
    _owners.add(owner)


def call_in_children(method: Callable[[], None]) -> None:
    """From now on, call a bound method in every forked child, as long as its object lives.

    All connections have been replaced by then.
    """
    _callbacks[:] = [known for known in _callbacks if known() is not None]
    reference = WeakMethod(method)
    if reference not in _callbacks:
        _callbacks.append(reference)


def _after_fork() -> None:
    _sever([descriptor for owner in list(_owners) for descriptor in owner.descriptors()])
    for known in _callbacks.copy():  # a method may add others
        method: Any = known()
        if method is not None:
            method()


def _sever(descriptors: Iterable[int]) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours:
        for descriptor in descriptors:
            os.dup2(ours.fileno(), descriptor, inheritable=False)


os.register_at_fork(after_in_child=_after_fork)
