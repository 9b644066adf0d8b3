"""AMQP messages and the channels that they are published on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import amqp
from amqp import spec

from nodestate.broker.rabbitmq.connection import RabbitConnection
from nodestate.broker.rabbitmq.frames import InboundMessage, routing_key
from nodestate.broker.sessions import OnBody
from nodestate.broker.topology import ACTIVATION_TYPE, CONTENT_TYPE

TRANSIENT: Final = 1
"""Delivery mode of a message that need not survive a restart of the broker."""
PERSISTENT: Final = 2
"""Delivery mode of a message that the broker writes to disk."""

OnReturned = Callable[[InboundMessage], None]
"""Called with a message that the broker returned."""
OnSettled = Callable[[int, bool, bool], None]
"""Called with the broker's answer to publishes: ``(tag, multiple, ok)``."""


class _PreparedMessage(amqp.Message):  # type: ignore[misc]  # amqp has no types
    """A message whose properties are encoded once, for many bodies."""

    def __init__(self, *, encoded: bytes = b"", **properties: Any) -> None:
        super().__init__(b"", **properties)
        self._encoded: bytes = encoded or super()._serialize_properties()
        """The properties as they stand in each message's header frame."""

    def _serialize_properties(self) -> bytes:
        return self._encoded


def event_message(user: str = "") -> Any:
    """A persistent message for ``publish``, to be used for many bodies.

    Args:
        user: the user id of the message, which must be the login; empty for none.
    """
    properties: dict[str, Any] = {"user_id": user} if user else {}
    return _PreparedMessage(content_type=CONTENT_TYPE, delivery_mode=PERSISTENT, **properties)


def order_message(expires_s: float) -> Any:
    """A transient message for ``publish``, to be used for many bodies.

    RabbitMQ drops each of them after it has waited in a queue for ``expires_s`` seconds.
    """
    expiration = str(max(1, int(expires_s * 1000)))
    return _PreparedMessage(content_type=CONTENT_TYPE, delivery_mode=TRANSIENT, expiration=expiration)


def dead_letter_message(headers: Mapping[str, Any]) -> Any:
    """A persistent message with headers, for one ``publish``."""
    return amqp.Message(content_type=CONTENT_TYPE, delivery_mode=PERSISTENT, application_headers=dict(headers))


def confirming_channel(connection: RabbitConnection, on_settled: OnSettled, on_returned: OnBody) -> Any:
    """Open a channel on which the broker answers each ``publish`` with a call of ``on_settled``.

    Before that, ``on_returned`` gets the body of a message that no queue takes: its queue was deleted.
    """
    channel = connection.channel()
    channel.confirm_select()
    channel.events["basic_ack"].add(lambda tag, multiple: on_settled(tag, multiple, True))
    channel.events["basic_nack"].add(lambda tag, multiple: on_settled(tag, multiple, False))
    channel.events["basic_return"].add(lambda _error, _exchange, _key, message: on_returned(message.body or b""))
    return channel


def returning_channel(connection: RabbitConnection, on_returned: OnReturned) -> Any:
    """Open a channel without confirms.

    The broker returns a message that no queue takes; ``on_returned`` gets it.
    """
    channel = connection.channel()
    channel.events["basic_return"].add(lambda _error, _exchange, _key, message: on_returned(message))
    return channel


def publish(channel: Any, exchange: str, key: str, body: bytes, message: Any) -> None:
    """Publish on a channel of one of the two kinds above, without waiting.

    Calls the frame writer directly. ``basic_publish`` would look for input first, which is half of its cost; the
    callers here look for input when that pays.
    """
    message.body = body
    channel.send_method(spec.Basic.Publish, "Bssbb", (0, exchange, key, True, False), message)


def publish_again(channel: Any, exchange: str, message: InboundMessage) -> None:
    """Publish a message that the broker returned to another exchange, with the same key, body and properties."""
    publish(channel, exchange, routing_key(message), message.body, _PreparedMessage(encoded=message.encoded_properties))


def send(connection: RabbitConnection, exchange: str, key: str, body: bytes) -> None:
    """Publish a transient message that may get lost, unconfirmed."""
    message = amqp.Message(body, content_type=CONTENT_TYPE, delivery_mode=TRANSIENT)
    connection.control.send_method(spec.Basic.Publish, "Bssbb", (0, exchange, key, False, False), message)


def send_marker(channel: Any, queue: str, body: bytes, delivery_mode: int = TRANSIENT) -> None:
    """Publish a marker message straight to a queue, unconfirmed; it may get lost."""
    message = amqp.Message(body, content_type=CONTENT_TYPE, delivery_mode=delivery_mode, type=ACTIVATION_TYPE)
    channel.send_method(spec.Basic.Publish, "Bssbb", (0, "", queue, False, False), message)
