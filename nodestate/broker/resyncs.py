"""The way back: resync requests to all agents of a cell, and a census of what they say of themselves."""

from __future__ import annotations

import dataclasses
from typing import Final

import msgspec
import structlog

from nodestate.broker.link import AmqpLink, VirtualLink, open_link, unavailable
from nodestate.broker.topology import Topology
from nodestate.config import Config
from nodestate.errors import BadEventError, BrokerUnavailableError
from nodestate.model import NEVER, Version, parse_event
from nodestate.ports import Clock, Resync, SystemClock

POLL_S: Final = 0.02

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Resync).decode


def encode_resync(resync: Resync) -> bytes:
    """A resync request as it goes on the wire: a msgpack map of its fields."""
    return _encode(resync)


def decode_resync(body: bytes) -> Resync:
    """The reverse; fields of a later version are passed over. Raises ``msgspec.DecodeError``."""
    return _decode(body)


class KombuResyncSender:
    """A ``ports.ResyncSender`` over kombu: a connection of its own, made at the first call.

    It has no heartbeat, as calls are rare: a connection that went stale between two is made anew, once per call.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._link: AmqpLink | VirtualLink | None = None

    def request_resync(self, resync: Resync) -> None:
        """Send it; delivered to the agents that are connected now. Raises ``BrokerUnavailableError``."""
        kept = self._link is not None
        try:
            self._send(resync)
        except self._errors() as error:
            self._drop()
            if not kept:
                raise unavailable(self._config, error) from error
            try:
                self._send(resync)
            except self._errors() as again:
                self._drop()
                raise unavailable(self._config, again) from again

    def close(self) -> None:
        """Close the connection. Using the sender again reconnects."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _errors(self) -> tuple[type[BaseException], ...]:
        return self._link.errors if self._link is not None else ()

    def _send(self, resync: Resync) -> None:
        if self._link is None:
            self._link = open_link(self._config, "resync")
        if isinstance(self._link, AmqpLink):
            self._link.take_in()
            if self._link.blocked:  # it would not answer until it has memory and disk again
                raise BrokerUnavailableError(self._config.broker_safe, f"it takes no messages: {self._link.blocked}")
        self._link.send(Topology.of(self._config).control, "", encode_resync(resync))
        # A round trip, as an unconfirmed publish into a dead connection succeeds.
        self._link.depth(Topology.of(self._config).dead)

    def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.drop()


def collect_census(config: Config, resync: Resync, seconds: float, clock: Clock | None = None) -> dict[str, Version]:
    """Ask agents for their versions, and listen for ``seconds``: the newest version of each node that answered.

    ``resync`` says who is asked and over how long answers are spread; its ``census`` is filled in here. Nodes that
    never reported do not answer. Raises ``BrokerUnavailableError``.
    """
    clock = clock or SystemClock()
    link = open_link(config, "census")
    answers: list[bytes] = []
    try:
        box = link.listen(answers.append) if isinstance(link, AmqpLink) else link.open_box()
        link.send(Topology.of(config).control, "", encode_resync(dataclasses.replace(resync, census=box)))
        deadline = clock.monotonic() + seconds
        while (remaining := deadline - clock.monotonic()) > 0:
            if isinstance(link, AmqpLink):
                if link.has_input(remaining):
                    link.read()
            elif (message := link.fetch(box)) is not None:
                link.ack(message.tag)
                answers.append(message.body)
            else:
                clock.sleep(min(POLL_S, remaining))
    except link.errors as error:
        raise unavailable(config, error) from error
    finally:
        link.close()
    versions: dict[str, Version] = {}
    for body in answers:
        try:
            event = parse_event(body)
        except BadEventError as error:
            structlog.get_logger("nodestate.broker").warning("census answer not understood", why=str(error))
            continue
        versions[event.node] = max(versions.get(event.node, NEVER), event.version)
    return versions
