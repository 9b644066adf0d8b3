"""Where a consumer takes messages from."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import structlog

from nodestate.broker.delivery_tracking import Confirms, Unacked
from nodestate.broker.link import AmqpLink, VirtualLink, open_link, unavailable
from nodestate.broker.topology import ACTIVATION_TYPE, DEAD_KEY, Topology
from nodestate.config import Config
from nodestate.errors import BrokerUnavailableError, DeadLetterError
from nodestate.ports import ACTIVATION, Clock, Delivery, SystemClock

POLL_S: Final = 0.005
"""Pause between two looks into queues that can only be asked."""
RESTORE_EVERY_S: Final = 1.0
MAX_DETAIL_CHARS: Final = 1_000
MAX_LOOKS_COUNT: Final = 32
"""Queues that one ``receive`` looks into, each a round trip, to see whether they need an activation message."""
BEATS_PER_HEARTBEAT: Final = 4
FIRST_PAUSE_S: Final = 1.0
"""Pause before a consumer tries again to say something; it doubles with each failure."""
LONGEST_PAUSE_S: Final = 30.0


_FAILURES: Final[tuple[type[BaseException], ...]] = (*AmqpLink.errors, BrokerUnavailableError)


class KombuSource:
    """A ``ports.Source`` over kombu: RabbitMQ, Redis or ``memory://``.

    away --receive--> connected, in a new session: subscribes ``partitions_first``, after ``standby_s`` also
        ``partitions_standby``, and sends an activation message into each of their queues
    connected --an error, close--> away; the broker gives what was not acked to the next consumer, in order

    An activation message is published to a partition's own queue: whoever gets it is the active
    consumer. Until the first message of a partition comes, it gets another one every ``standby_s`` (unless something
    waits there already), since RabbitMQ tells nobody that he became the active one.

    Assumptions: RabbitMQ delivers a queue to one consumer at a time (single active consumer); other transports do
    not, so members must be given distinct partitions there, and standby is ignored. The connection lives only if
    ``receive`` is called more often than every ``broker_heartbeat_s``, be it with a limit of 0.
    """

    def __init__(
        self,
        config: Config,
        partitions_first: Sequence[int],
        partitions_standby: Sequence[int] = (),
        clock: Clock | None = None,
    ) -> None:
        self._config = config
        self._first = tuple(partitions_first)
        self._standby = tuple(partition for partition in partitions_standby if partition not in self._first)
        self._clock = clock or SystemClock()
        self._log = structlog.get_logger("nodestate.broker")
        self._session = 0
        self._feed: _AmqpFeed | _PolledFeed | None = None

    # -- ports.Source

    def receive(self, limit: int, timeout_s: float) -> list[Delivery]:
        """Up to ``limit`` messages; returns when that many came or ``timeout_s`` passed. In order per partition."""
        feed = self._feed or self._connect()
        with self._giving_up(feed):
            return feed.receive(limit, timeout_s)

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Let the broker forget these. Those of an older session are passed over: they come again."""
        feed = self._feed
        current = [delivery for delivery in deliveries if delivery.session == self._session]
        if feed is None or not current:
            return
        with self._giving_up(feed):
            feed.ack(current)

    def send_marker(self, partition: int, body: bytes = ACTIVATION) -> None:
        """Put a message of the consumer's own behind all that waits in a queue; not confirmed."""
        feed = self._feed or self._connect()
        with self._giving_up(feed):
            feed.send_marker(partition, body)

    def dead_letter(self, delivery: Delivery, reason: str, detail: str) -> None:
        """Publish the message to the dead-letter queue and wait until the broker has it. Not an ack.

        Headers: ``reason``, ``detail``, ``partition`` and ``at`` (seconds since 1970). Raises ``DeadLetterError`` where
        only the way there is blocked, and ``BrokerUnavailableError`` where the session is over.
        """
        feed = self._feed or self._connect()
        headers = {
            "reason": reason,
            "detail": detail[:MAX_DETAIL_CHARS],
            "partition": delivery.partition,
            "at": int(self._clock.time()),
        }
        with self._giving_up(feed):
            feed.dead_letter(delivery.body, headers)

    def close(self) -> None:
        """Close the connection; what was not acked comes again, here or elsewhere. ``receive`` connects anew."""
        feed, self._feed = self._feed, None
        if feed is not None:
            feed.close()

    # -- inside

    def _connect(self) -> _AmqpFeed | _PolledFeed:
        link = open_link(self._config, "consumer", self._config.broker_heartbeat_s, layout=True)
        self._session += 1
        feed: _AmqpFeed | _PolledFeed
        if isinstance(link, AmqpLink):
            feed = _AmqpFeed(self._config, link, self._session, self._clock)
        else:
            feed = _PolledFeed(self._config, link, self._session, self._clock)
        self._feed = feed
        with self._giving_up(feed):
            feed.start(self._first, self._standby)
        self._log.info("connected", broker=self._config.broker_safe, session=self._session, partitions=self._first)
        return feed

    @contextmanager
    def _giving_up(self, feed: _AmqpFeed | _PolledFeed) -> Iterator[None]:
        """After any error of the transport nothing is known of the connection: drop it, and what it had in hand."""
        try:
            yield
        except feed.link.errors as error:
            self._drop(feed)
            raise unavailable(self._config, error) from error
        except BrokerUnavailableError:
            self._drop(feed)
            raise

    def _drop(self, feed: _AmqpFeed | _PolledFeed) -> None:
        self._feed = None
        feed.drop()


class _PartitionChannel:
    """One partition's channel and what is under way on it."""

    __slots__ = ("channel", "unacked")

    def __init__(self) -> None:
        self.channel: Any = None
        self.unacked = Unacked()


class _AmqpFeed:
    """Deliveries that RabbitMQ pushes: a channel per partition, so that a single ack covers many."""

    def __init__(self, config: Config, link: AmqpLink, session: int, clock: Clock) -> None:
        self.link = link
        self._config = config
        self._topology = Topology.of(config)
        self._session = session
        self._clock = clock
        self._lanes: dict[int, _PartitionChannel] = {}
        self._buffer: deque[Delivery] = deque()
        self._standby: tuple[int, ...] = ()
        now = clock.monotonic()
        self._standby_at = now + config.standby_s
        self._activate_at = now + config.standby_s
        self._silent: list[int] = []
        self._beat_at = now
        self._voice = _PublishConnection(config, clock)

    def start(self, first: Sequence[int], standby: Sequence[int]) -> None:
        self._standby = tuple(standby)
        for partition in first:
            self._subscribe(partition)

    def receive(self, limit: int, timeout_s: float) -> list[Delivery]:
        clock, link, buffer = self._clock, self.link, self._buffer
        now = clock.monotonic()
        deadline = now + timeout_s
        self._activate_silent(now)
        if self._standby and now >= self._standby_at:
            standby, self._standby = self._standby, ()
            for partition in standby:
                self._subscribe(partition)
        while True:
            remaining = deadline - now
            enough = len(buffer) >= limit
            # Also with enough in hand one frame is read: a connection on which nothing moves looks dead to heartbeats.
            if not link.has_input(0 if enough else max(0.0, remaining)):
                break
            link.read()
            now = clock.monotonic()
            if enough or (remaining <= 0 < timeout_s):
                break
        now = clock.monotonic()
        if now >= self._beat_at:
            link.beat()
            self._voice.beat()
            self._beat_at = now + self._config.broker_heartbeat_s / BEATS_PER_HEARTBEAT
        return [buffer.popleft() for _ in range(min(limit, len(buffer)))]

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        tags: dict[int, list[int]] = {}
        for delivery in deliveries:
            assert isinstance(delivery.tag, int)
            tags.setdefault(delivery.partition, []).append(delivery.tag)
        for partition, acked in tags.items():
            lane = self._lanes[partition]
            upto, singly = lane.unacked.ack(acked)
            if upto is not None:
                self.link.ack(lane.channel, upto, multiple=True)
            for tag in singly:
                self.link.ack(lane.channel, tag, multiple=False)

    def dead_letter(self, body: bytes, headers: dict[str, Any]) -> None:
        try:
            self._voice.dead_letter(body, headers)
        except BrokerUnavailableError as error:  # of the voice: deliveries go on
            raise DeadLetterError(self._config.broker_safe, error.cause) from error

    def send_marker(self, partition: int, body: bytes = ACTIVATION) -> None:
        self._voice.send_marker(partition, body)

    def close(self) -> None:
        self.link.close()
        self._voice.close()

    def drop(self) -> None:
        self.link.drop()
        self._voice.drop()

    def _subscribe(self, partition: int) -> None:
        lane = self._lanes[partition] = _PartitionChannel()
        session, buffer, unacked = self._session, self._buffer, lane.unacked

        def take(body: bytes, tag: int, redelivered: bool) -> None:
            unacked.received = tag
            buffer.append(Delivery(partition, body, tag, session, redelivered))

        lane.channel = self.link.consume(self._topology.queue(partition), self._config.prefetch, take)
        self.send_marker(partition)

    def _activate_silent(self, now: float) -> None:
        """Where nothing came yet another consumer may have been active, and be gone now.

        Only into an empty queue: what waits in it will tell as well, and activation messages must not pile up where nobody reads.
        """
        if now >= self._activate_at:
            self._activate_at = now + self._config.standby_s
            self._silent = [partition for partition, lane in self._lanes.items() if lane.unacked.received == 0]
        for _ in range(min(MAX_LOOKS_COUNT, len(self._silent))):
            partition = self._silent.pop()
            depth = self.link.depth(self._topology.queue(partition))
            if depth is not None and depth.ready == 0:
                self.send_marker(partition)


class _PublishConnection:
    """What a consumer says itself, on a connection of its own: marker messages and dead letters.

    away --send_marker, dead_letter--> connected --an error--> away, for a pause that doubles
    connected --blocked by the broker--> silent --unblocked--> connected

    A RabbitMQ that is short of memory or disk reads nothing more from connections that publish, acks neither. On the
    connection of its deliveries a single marker message would keep a consumer from draining the very queue that fills the broker.
    Nothing here may cost the deliveries more than ``broker_timeout_s`` now and then.
    """

    def __init__(self, config: Config, clock: Clock) -> None:
        self._config = config
        self._topology = Topology.of(config)
        self._clock = clock
        self._log = structlog.get_logger("nodestate.broker")
        self._link: AmqpLink | None = None
        self._channel: Any = None
        self._confirms = Confirms()
        self._pause_s = 0.0
        self._again_at = clock.monotonic()

    def send_marker(self, partition: int, body: bytes) -> None:
        """May get lost, as a marker message may; so an outage is no error here, and shows where messages are received."""
        with suppress(BrokerUnavailableError), self._losing():
            link = self._connected()
            if not link.blocked:
                link.send("", self._topology.queue(partition), body, ACTIVATION_TYPE)

    def dead_letter(self, body: bytes, headers: dict[str, Any]) -> None:
        """Publish, and wait for the confirm. Raises ``BrokerUnavailableError``; at once where the broker is blocked."""
        with self._losing():
            link = self._connected()
            if not link.blocked:
                self._post(link, body, link.letter(body, headers))
                return
        raise BrokerUnavailableError(self._config.broker_safe, f"it takes no messages: {link.blocked}")

    def beat(self) -> None:
        """Keep the connection; call twice per heartbeat or more often."""
        link = self._link
        if link is not None:
            with suppress(BrokerUnavailableError), self._losing():
                link.take_in()
                link.beat()

    def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.drop()

    def _connected(self) -> AmqpLink:
        if self._link is None:
            if self._clock.monotonic() < self._again_at:
                raise BrokerUnavailableError(self._config.broker_safe, "it did not answer a moment ago")
            link = open_link(self._config, "consumer's voice", self._config.broker_heartbeat_s)
            assert isinstance(link, AmqpLink), "where deliveries are pushed, this is the same kind of broker"
            self._link, self._confirms = link, Confirms()
            # Now, as a connection is blocked only once it published: opening a channel would then wait for no answer.
            self._channel = link.confirming(self._confirms.settle)
        self._link.take_in()
        return self._link

    def _post(self, link: AmqpLink, body: bytes, letter: Any) -> None:
        answers: list[bool] = []
        link.post(self._channel, self._topology.dead, DEAD_KEY, body, letter)
        self._confirms.sent(answers.append)
        deadline = self._clock.monotonic() + self._config.broker_timeout_s
        while not answers:
            if link.blocked or not link.has_input(max(0.0, deadline - self._clock.monotonic())):
                raise TimeoutError(f"the dead-letter queue did not confirm {link.blocked}".rstrip())
            link.read()
        if not answers[0]:
            raise BrokerUnavailableError(self._config.broker_safe, "the dead-letter queue refused a message")

    @contextmanager
    def _losing(self) -> Iterator[None]:
        away = self._link is None and self._clock.monotonic() < self._again_at
        try:
            yield
        except _FAILURES as error:
            self.drop()
            if not away:
                self._pause_s = min(max(FIRST_PAUSE_S, 2 * self._pause_s), LONGEST_PAUSE_S)
                self._again_at = self._clock.monotonic() + self._pause_s
                self._log.warning("a consumer can't say anything", why=str(error), again_in_s=self._pause_s)
            if isinstance(error, BrokerUnavailableError):
                raise
            raise unavailable(self._config, error) from error
        self._pause_s = 0.0


class _PolledFeed:
    """Messages that a virtual transport gives when asked."""

    def __init__(self, config: Config, link: VirtualLink, session: int, clock: Clock) -> None:
        self.link = link
        self._config = config
        self._topology = Topology.of(config)
        self._session = session
        self._clock = clock
        self._turns: deque[int] = deque()
        self._outstanding: dict[int, int] = {}
        self._restore_at = clock.monotonic()

    def start(self, first: Sequence[int], standby: Sequence[int]) -> None:
        if standby:
            structlog.get_logger("nodestate.broker").info(
                "no standby: this transport gives a queue to several consumers at a time",
                broker=self._config.broker_safe,
                partitions=standby,
            )
        for partition in first:
            self._turns.append(partition)
            self._outstanding[partition] = 0
            self.send_marker(partition)

    def receive(self, limit: int, timeout_s: float) -> list[Delivery]:
        now = self._clock.monotonic()
        deadline = now + timeout_s
        if now >= self._restore_at:
            self.link.restore_overdue()
            self._restore_at = now + RESTORE_EVERY_S
        deliveries: list[Delivery] = []
        while len(deliveries) < limit:
            before = len(deliveries)
            self._look_into_each(limit, deliveries)
            if len(deliveries) > before:
                continue
            remaining = deadline - self._clock.monotonic()
            if remaining <= 0:
                break
            self._clock.sleep(min(POLL_S, remaining))
        return deliveries

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self.link.ack(delivery.tag)
            self._outstanding[delivery.partition] -= 1

    def dead_letter(self, body: bytes, headers: dict[str, Any]) -> None:
        self.link.send(self._topology.dead, DEAD_KEY, body, headers=headers)

    def send_marker(self, partition: int, body: bytes = ACTIVATION) -> None:
        self.link.send("", self._topology.queue(partition), body, ACTIVATION_TYPE)

    def close(self) -> None:
        self.link.close()

    def drop(self) -> None:
        self.link.drop()

    def _look_into_each(self, limit: int, deliveries: list[Delivery]) -> None:
        """One message of each partition; the next look begins where this one stopped."""
        for _ in range(len(self._turns)):
            if len(deliveries) >= limit:
                return
            partition = self._turns[0]
            self._turns.rotate(-1)
            if self._outstanding[partition] >= self._config.prefetch:
                continue
            message = self.link.fetch(self._topology.queue(partition))
            if message is None:
                continue
            self._outstanding[partition] += 1
            deliveries.append(Delivery(partition, message.body, message.tag, self._session, message.redelivered))
