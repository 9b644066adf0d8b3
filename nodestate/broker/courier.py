"""A scheduler's way to the agents, and the way of their answers back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog

from nodestate.auth import order_auth
from nodestate.broker.connector import SessionHolder, open_session
from nodestate.broker.sessions import CellSession, OrderSession
from nodestate.broker.users import check_sender
from nodestate.config import Config
from nodestate.errors import BadEventError
from nodestate.model.orders import Answer, Order, decode_answer, no_agent
from nodestate.ports import Clock, SystemClock

MAX_ANSWERS_COUNT: Final = 1_000
"""Answers that one call reads at most."""


class KombuCourier:
    """A ``ports.Courier`` over kombu: one connection, with a queue of its own for the answers.

    away --reply_to, send, answers--> connected
    connected --an error, close--> away; answers on their way are lost

    RabbitMQ returns an order for a node that no agent listens for, and drops one that has waited in a queue for longer
    than ``expires_s``. Virtual transports (``memory://``, Redis) do neither: there the agent refuses an overdue order,
    and the courier looks up which agents listen, once for each ``send``. An agent that died still has its queue in
    Redis, and in RabbitMQ until its heartbeats are missed: orders for it get no answer, and their sender watches the
    deadline.

    The connection has no heartbeat, as schedulers may be idle for hours. Instead ``reply_to`` and ``answers`` ask the
    broker a question if it was silent for ``broker_timeout_s``. ``reply_to`` replaces a connection that broke or gives
    no answer.
    """

    def __init__(self, config: Config, clock: Clock | None = None) -> None:
        self._config = config
        """The cell's settings."""
        self._clock = clock or SystemClock()
        """The clock for timeouts."""
        self._auth = order_auth(config, self._clock)
        """Signs orders, and checks answers."""
        self._sessions: SessionHolder[OrderSession] = SessionHolder(config, self._open_connection, self._prepare)
        """The session, while connected."""
        self._answers: list[Answer] = []
        """Answers that arrived and are not yet returned."""
        self.bad_answers = 0
        """Number of answers that could not be decoded, came from another node's agent, or have no valid signature."""
        self._refusal = ""
        """Why the last one was refused."""

    @property
    def reply_to(self) -> str:
        """The queue that answers come back to. Raises ``BrokerUnavailableError``."""
        session = self._sessions.current
        if session is not None and session.is_stale():
            self._sessions.drop()
        return self._sessions.get().reply_to

    def send(self, orders: Sequence[Order], expires_s: float) -> None:
        """Send orders to their nodes' agents.

        Raises ``BadEventError`` before the first is sent if one is too large, and ``BrokerUnavailableError`` if some
        may have been sent.
        """
        bodies = [self._auth.encode_order(order) for order in orders]
        with self._sessions.use() as session:
            session.send(orders, bodies, expires_s)

    def answers(self, timeout_s: float) -> list[Answer]:
        """Answers that arrived since the last call; waits up to ``timeout_s`` for the first."""
        deadline = self._clock.monotonic() + timeout_s
        with self._sessions.use() as session:
            while len(self._answers) < MAX_ANSWERS_COUNT and session.pump(
                0 if self._answers else max(0.0, deadline - self._clock.monotonic())
            ):
                pass
        answers, self._answers = self._answers, []
        return answers

    def refused_answers(self) -> tuple[int, str]:
        """See ``ports.Courier``."""
        return self.bad_answers, self._refusal

    def close(self) -> None:
        """Close the connection; answers on their way are lost. Using the courier again reconnects."""
        self._answers = []
        self._sessions.close()

    def _open_connection(self) -> CellSession:
        return open_session(self._config, "courier")

    def _prepare(self, connection: CellSession) -> OrderSession:
        return connection.orders(self._on_answer, self._on_unroutable, self._clock)

    def _on_answer(self, body: bytes, node: str) -> None:
        try:
            answer = decode_answer(body)
            check_sender(answer.node, node, "an answer")
            self._auth.check_answer(answer, body)
        except BadEventError as error:
            self.bad_answers += 1
            self._refusal = str(error)
            structlog.get_logger("nodestate.broker").warning("an answer to an order is refused", reason=str(error))
        else:
            self._answers.append(answer)

    def _on_unroutable(self, body: bytes) -> None:
        self._answers.append(no_agent(body))
