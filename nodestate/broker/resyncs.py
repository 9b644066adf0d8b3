"""Resync requests, which ask all agents of a cell for full reports, and the census, which asks for their versions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection

import msgspec
import structlog

from nodestate.broker.connector import SessionHolder, one_off_session, open_session
from nodestate.broker.sessions import CellSession
from nodestate.broker.topology import Topology
from nodestate.broker.users import check_sender
from nodestate.config import Config
from nodestate.errors import BadEventError, BrokerUnavailableError
from nodestate.model import NEVER, Event, Version, parse_event
from nodestate.ports import Clock, Resync, SystemClock

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Resync).decode


def encode_resync(resync: Resync) -> bytes:
    """A resync request as it goes on the wire: a msgpack map of its fields."""
    return _encode(resync)


def decode_resync(body: bytes) -> Resync:
    """Decode a resync request. Ignores fields of later versions. Raises ``BadEventError``."""
    try:
        return _decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadEventError("undecodable", f"resync request: {error}") from None


class KombuResyncSender:
    """A ``ports.ResyncSender`` over kombu: one connection, opened at the first call.

    Calls are rare, so the connection has no heartbeat and may have broken since the last call. A call that finds it so
    opens another connection and tries once more.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        """The cell's settings."""
        self._sessions: SessionHolder[CellSession] = SessionHolder(
            config, lambda: open_session(config, "resync"), lambda connection: connection
        )
        """The session, while connected."""

    def request_resync(self, resync: Resync) -> None:
        """Broadcast a request to the agents that are connected now. Raises ``BrokerUnavailableError``."""
        connected = self._sessions.current is not None
        try:
            self._send(resync)
        except BrokerUnavailableError:
            if not connected or self._sessions.current is not None:  # a new connection, or one that still works
                raise
            self._send(resync)

    def close(self) -> None:
        """Close the connection. Using the sender again reconnects."""
        self._sessions.close()

    def _send(self, resync: Resync) -> None:
        with self._sessions.use() as session:
            session.send_checked(Topology.of(self._config).control, "", encode_resync(resync))


def collect_census(
    config: Config,
    resync: Resync,
    seconds: float,
    clock: Clock | None = None,
    *,
    awaited: Collection[str] = (),
    on_event: Callable[[Event, bytes], object] | None = None,
) -> dict[str, Version]:
    """Ask agents for their versions and wait ``seconds`` for answers: the newest version of each node that answered.

    With ``awaited``, returns as soon as all of these nodes have answered.

    ``resync`` says which nodes are asked and over how many seconds agents spread their answers; its ``census`` is
    filled in here. ``on_event`` gets each answer, decoded and encoded. Nodes that never reported do not answer. Raises
    ``BrokerUnavailableError``.
    """
    clock = clock or SystemClock()
    versions: dict[str, Version] = {}

    def on_answer(body: bytes, node: str) -> None:
        try:
            event = parse_event(body)
            check_sender(event.node, node, "a version")
        except BadEventError as error:
            structlog.get_logger("nodestate.broker").warning("an answer to a census is refused", reason=str(error))
            return
        if on_event is not None:
            on_event(event, body)
        versions[event.node] = max(versions.get(event.node, NEVER), event.version)

    with one_off_session(config, "census") as session:
        queue = session.answer_queue(on_answer)
        request = encode_resync(dataclasses.replace(resync, census=queue.name))
        session.send_checked(Topology.of(config).control, "", request)
        deadline = clock.monotonic() + seconds
        names = set(awaited)
        while (remaining := deadline - clock.monotonic()) > 0 and not (names and names <= versions.keys()):
            session.pump(remaining)
    return versions
