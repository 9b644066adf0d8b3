"""Envelopes of the virtual transports: the JSON around each message.

Every program with access to the server can write envelopes. A message whose envelope is malformed becomes a message
whose body is that envelope. So it reaches the decoder of the queue's messages, which refuses it as it refuses any other
bytes: in a partition's queue it becomes a dead letter.
"""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any, Final

from kombu.transport import virtual
from kombu.utils.uuid import uuid

_TEXTS: Final = ("exchange", "routing_key")


def envelope_of(body: bytes, queue: str) -> dict[str, Any]:
    """Wrap bytes in an envelope that can be decoded."""
    info = {"exchange": "", "routing_key": queue}
    properties = {"body_encoding": "base64", "delivery_tag": uuid(), "delivery_info": info}
    return {"body": b64encode(body).decode(), "headers": {}, "properties": properties}


class EnvelopeMessage(virtual.Message):
    """A message of a virtual transport, whatever its envelope is."""

    def __init__(self, payload: Any, channel: Any = None, **options: Any) -> None:
        try:
            super().__init__(payload, channel=channel, **options)  # type: ignore[no-untyped-call]  # kombu has no types
            sound = self._is_sound()
        except Exception:  # noqa: BLE001 - JSON of any writer, and kombu names no exceptions
            sound = False
        if not sound:
            body = json.dumps(payload, default=repr).encode()
            super().__init__(envelope_of(body, ""), channel=channel, **options)  # type: ignore[no-untyped-call]  # ditto

    def _is_sound(self) -> bool:
        info = self.delivery_info
        return (
            isinstance(self.body, bytes | None)
            and not self.errors
            and isinstance(self.headers, dict)
            and isinstance(self.delivery_tag, str)
            and isinstance(info, dict)
            and all(isinstance(info.get(name), str) for name in _TEXTS)
        )
