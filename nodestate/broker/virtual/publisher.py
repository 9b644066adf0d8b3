"""An agent's session over a virtual transport."""

from __future__ import annotations

from nodestate.broker.sessions import OnBody, OnDone, OnNodeBody
from nodestate.broker.topology import Topology
from nodestate.broker.virtual.connection import VirtualConnection
from nodestate.broker.virtual.queues import VirtualOwnQueue, takes_bucket
from nodestate.config import Config
from nodestate.ports import Clock


class VirtualPublisherSession:
    """A ``PublisherSession`` over a virtual transport: an event is confirmed when ``publish`` returns."""

    unconfirmed = 0
    alarm = ""

    def __init__(self, config: Config, connection: VirtualConnection, clock: Clock) -> None:
        self.connection = connection
        """The connection that all goes over."""
        self._clock = clock
        """The clock for deadlines and pauses."""
        self._topology = Topology.of(config)
        """The names of the cell's exchanges."""
        self._exchange = self._topology.exchange
        """The exchange for events."""
        self._has_own_queue = False
        """True if ``pump`` can bring anything."""

    @property
    def errors(self) -> tuple[type[BaseException], ...]:
        """See ``TransportSession``."""
        return self.connection.errors

    def is_stale(self) -> bool:
        """See ``PublisherSession``."""
        return False

    def publish(self, bucket: int, body: bytes, on_done: OnDone) -> None:
        """Publish an event into the queue of its partition in each layout.

        It is sent straight to the queues, not to the exchange: a message that a consumer gives back goes to where it
        was published, and must not get into the other layouts again.
        """
        bindings = self.connection.bindings(self._exchange)
        queues = [queue for key, _, queue in bindings if takes_bucket(key, bucket)]
        if not bindings:
            raise ConnectionError(f"exchange {self._exchange} has no queues")  # the next session declares them
        for queue in queues:
            self.connection.send("", queue, body)
        on_done(bool(queues))

    def control_queue(self, on_body: OnBody) -> VirtualOwnQueue:
        """See ``PublisherSession``."""
        self._has_own_queue = True
        return VirtualOwnQueue(self.connection, lambda body, _: on_body(body), fanout=self._topology.control)

    def order_queue(self, on_order: OnNodeBody) -> VirtualOwnQueue:
        """See ``PublisherSession``."""
        self._has_own_queue = True
        return VirtualOwnQueue(self.connection, on_order, orders=self._topology.orders)

    def announce(self, node: str, body: bytes) -> None:
        """See ``PublisherSession``."""
        self.connection.send(self._topology.orders, node, body)

    def answer(
        self,
        queue: str,
        node: str,  # noqa: ARG002 - virtual transports have no users
        body: bytes,
    ) -> None:
        """See ``PublisherSession``. The answer goes straight to the queue."""
        self.connection.send("", queue, body)

    def pump(self, timeout_s: float) -> bool:
        """See ``PublisherSession``. Sleeps for ``timeout_s`` if the session has no queue of its own."""
        if self._has_own_queue:
            return self.connection.pump(timeout_s)
        self._clock.sleep(timeout_s)
        return False

    def close(self) -> None:
        """See ``TransportSession``."""
        self.connection.close()

    def drop(self) -> None:
        """See ``TransportSession``."""
        self.connection.drop()
