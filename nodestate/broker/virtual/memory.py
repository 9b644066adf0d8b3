"""``memory://``: kombu's memory transport, corrected for publishers and consumers in several threads."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from queue import Queue
from typing import Any, Final

from kombu.transport import memory

from nodestate.broker.virtual.envelopes import EnvelopeMessage

MEMORY_LOCK: Final = threading.RLock()
"""Protects the tables of exchanges and queues, which all connections of the process share."""


def _locked(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, called with ``MEMORY_LOCK`` held."""

    @functools.wraps(method)
    def locked(*args: Any, **kwargs: Any) -> Any:
        with MEMORY_LOCK:
            return method(*args, **kwargs)

    return locked


class _MemoryChannel(memory.Channel):
    """kombu's memory channel with two corrections.

    A publisher and a consumer may use it in different threads. When a consumer closes, its unacked messages go back to
    the front of their queue, in order.
    """

    Message = EnvelopeMessage
    do_restore = True

    def _new_queue(self, queue: str, **_: Any) -> None:
        self._queue_for(queue)

    def _queue_for(self, queue: str) -> Any:
        with MEMORY_LOCK:
            if queue not in self.queues:
                self.queues[queue] = Queue()
            return self.queues[queue]

    def _restore(self, message: Any) -> None:
        # kombu restores the newest message first, so each goes in front of the one before it.
        payload = message.serializable()
        payload["properties"]["delivery_info"]["redelivered"] = True
        about = message.delivery_info
        for name in self._lookup(about["exchange"], about["routing_key"]):
            waiting = self._queue_for(name)
            with waiting.mutex:
                waiting.queue.appendleft(payload)

    _lookup = _locked(memory.Channel._lookup)  # noqa: SLF001 - a hook of subclasses
    exchange_declare = _locked(memory.Channel.exchange_declare)
    queue_bind = _locked(memory.Channel.queue_bind)
    queue_unbind = _locked(memory.Channel.queue_unbind)
    queue_delete = _locked(memory.Channel.queue_delete)
    close = _locked(memory.Channel.close)


class MemoryTransport(memory.Transport):
    """A kombu transport. Its queues belong to the process and outlive every connection."""

    Channel = _MemoryChannel
