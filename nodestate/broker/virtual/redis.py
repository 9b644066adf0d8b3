"""Redis: kombu's transport, corrected for messages that it cannot decode."""

from __future__ import annotations

from queue import Empty
from typing import Any, Final

import structlog
from kombu.transport import redis
from kombu.utils.json import loads

from nodestate.broker.virtual.envelopes import EnvelopeMessage, envelope_of

_MALFORMED: Final = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError)
"""Exceptions of kombu's decoders. None of them is an error of the connection."""


def _log_ignored(error: BaseException) -> None:
    structlog.get_logger("nodestate.broker").warning(
        "a message with a malformed envelope is ignored", reason=str(error)
    )


class _RedisQoS(redis.QoS):
    """Messages that are fetched and not acked. One that cannot be decoded is not put back."""

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        try:
            super().restore_by_tag(tag, client, leftmost)  # type: ignore[no-untyped-call]  # kombu has no types
        except _MALFORMED as error:
            _log_ignored(error)
            self._remove_from_indices(tag).execute()  # type: ignore[no-untyped-call]  # ditto


class _RedisChannel(redis.Channel):
    """kombu's Redis channel, which no message stops."""

    Message = EnvelopeMessage
    QoS = _RedisQoS

    def _get(self, queue: str, timeout: float | None = None) -> Any:  # noqa: ARG002 - the signature of kombu
        """Fetch the next message. One that is no JSON becomes a message of these bytes."""
        with self.conn_or_acquire() as client:
            item = client.rpop(self._q_for_pri(queue, 0))  # type: ignore[no-untyped-call]  # ditto
        if not item:
            raise Empty
        try:
            return loads(item.decode())
        except _MALFORMED:
            return envelope_of(item, queue)

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]  # ditto
        except _MALFORMED as error:
            _log_ignored(error)
            return True

    def _receive_one(self, subscriber: Any) -> Any:
        try:
            return super()._receive_one(subscriber)  # type: ignore[no-untyped-call]  # ditto
        except _MALFORMED as error:
            _log_ignored(error)
            return True


class RedisTransport(redis.Transport):
    """A kombu transport for Redis."""

    Channel = _RedisChannel
