"""Opening sessions, and replacing lost ones: written once, for all transports.

A transport's exceptions end here. ``SessionHolder`` and ``one_off_session`` turn them into ``BrokerUnavailableError``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final, Generic, TypeVar
from urllib.parse import urlsplit

from nodestate.broker.rabbitmq.session import RabbitSession
from nodestate.broker.sessions import CellSession, TransportSession, unavailable
from nodestate.broker.topology import Topology
from nodestate.broker.urls import url_answered, url_failed, urls_in_sequence
from nodestate.broker.virtual.session import VirtualSession
from nodestate.config import Config
from nodestate.errors import BrokerUnavailableError, ConfigError
from nodestate.masking import safe_url

S = TypeVar("S", bound=TransportSession)

RABBITMQ_SCHEMES: Final = frozenset({"amqp", "pyamqp", "amqps"})


def open_session(
    config: Config,
    role: str,
    heartbeat_s: float = 0,
    *,
    declare: bool = True,
    layout: bool = False,
    mark_began: bool = True,
) -> CellSession:
    """Connect to the first of the broker's URLs that answers, and declare the cell there; see ``urls``.

    ``role`` is part of the connection's name at RabbitMQ. With ``heartbeat_s`` 0 the connection has no heartbeat. The
    queues of the settings' layout are declared if ``layout`` is True, and in any case if the cell is new. For
    ``mark_began`` see ``QueueAdmin.declare``. If ``declare`` is False, nothing is declared.

    Raises ``BrokerUnavailableError``, or ``ConfigError`` if the settings are wrong and no retry would help.
    """
    failure: BrokerUnavailableError | None = None
    for url in urls_in_sequence(config.broker):
        try:
            session = _connect(config, url, role, heartbeat_s)
            if declare:
                _declare(config, session, layout=layout, mark_began=mark_began)
        except BrokerUnavailableError as error:
            failure = error
            continue
        url_answered(config.broker, url)
        return session
    assert failure is not None
    raise failure


@contextmanager
def one_off_session(config: Config, role: str, *, declare: bool = True, layout: bool = False) -> Iterator[CellSession]:
    """Open a session for the calls of one ``with`` block, and close it after them.

    Arguments as for ``open_session``.
    """
    session = open_session(config, role, declare=declare, layout=layout)
    try:
        with translated_errors(config, session.errors):
            yield session
    except BrokerUnavailableError:
        url_failed(config.broker, session.url)
        raise
    finally:
        session.close()


@contextmanager
def translated_errors(config: Config, errors: tuple[type[BaseException], ...]) -> Iterator[None]:
    """Raise ``BrokerUnavailableError`` in place of the transport's own ``errors``."""
    try:
        yield
    except errors as error:
        raise unavailable(config, error) from error


class SessionHolder(Generic[S]):
    """Opens a session when it is first needed, keeps it, and drops it at its first error.

    away --get, use--> connected --an error within ``use``, drop--> away; the next session begins with the next URL
    connected --close--> away

    A failed call is not repeated here: the caller decides when to call again. ``prepare`` makes the session of the job
    from a new connection; an error within it drops the connection like any other.
    """

    def __init__(
        self, config: Config, open_connection: Callable[[], CellSession], prepare: Callable[[CellSession], S]
    ) -> None:
        self._config = config
        """The settings; errors name its broker."""
        self._open_connection = open_connection
        """Connects to the broker. Raises ``BrokerUnavailableError`` or ``ConfigError``."""
        self._prepare = prepare
        """Makes the session of the job from a new connection."""
        self._session: S | None = None
        """The session, None while away."""
        self._url = ""
        """The URL of the last session."""

    @property
    def current(self) -> S | None:
        """The session, if one is open."""
        return self._session

    def get(self) -> S:
        """The session; opens one if there is none. Raises ``BrokerUnavailableError`` or ``ConfigError``."""
        if self._session is None:
            connection = self._open_connection()
            self._url = connection.url
            try:
                with translated_errors(self._config, connection.errors):
                    session = self._prepare(connection)
            except BaseException:
                url_failed(self._config.broker, self._url)
                connection.drop()
                raise
            self._session = session
        return self._session

    @contextmanager
    def use(self) -> Iterator[S]:
        """Call the session within the ``with`` block; opens one first if there is none.

        After an error of the transport the state of the connection is unknown, so the session is dropped, and
        ``BrokerUnavailableError`` is raised.
        """
        session = self.get()
        try:
            yield session
        except session.errors as error:
            raise self.lost(error) from error

    def lost(self, error: BaseException) -> BrokerUnavailableError:
        """Drop the session after an error of its transport. Returns the exception to raise in place of that error."""
        self.drop()
        return unavailable(self._config, error)

    def drop(self) -> None:
        """Drop the session, if one is open, because it broke or the broker does not answer in it."""
        session, self._session = self._session, None
        if session is not None:
            url_failed(self._config.broker, self._url)
            session.drop()

    def close(self) -> None:
        """Close the session properly, if one is open. ``get`` and ``use`` open another one."""
        session, self._session = self._session, None
        if session is not None:
            session.close()


def _declare(config: Config, session: CellSession, *, layout: bool, mark_began: bool) -> None:
    """Declare the cell; drop the session after an error."""
    try:
        with translated_errors(config, session.errors):
            session.queues.declare(Topology.of(config), layout=layout, mark_began=mark_began)
    except BaseException:
        session.drop()
        raise


def _connect(config: Config, url: str, role: str, heartbeat_s: float) -> CellSession:
    try:
        scheme = urlsplit(url).scheme
        if "://" not in url:
            raise ValueError("no scheme")  # noqa: TRY301 - reported like everything else that is wrong with a URL
        if query := urlsplit(url).query:
            # A password with a question mark is taken for parameters, and must not be shown.
            names = "" if "@" in query else f" ({', '.join(part.partition('=')[0] for part in query.split('&'))})"
            raise ConfigError(
                f"setting broker, {config.broker_safe!r}, has parameters after a question mark{names}, and none are "
                "known: the settings broker_ca, broker_cert, broker_key, broker_heartbeat_s and broker_timeout_s are "
                "for these, and a question mark within a password is %3F"
            )
        if scheme in RABBITMQ_SCHEMES:
            return RabbitSession.connect(config, url, role, heartbeat_s, partial(open_session, config))
        return VirtualSession.connect(config, url)
    except (KeyError, ValueError) as error:
        # With a password, the text of the error may contain a part of it.
        cause = "" if "@" in url or safe_url(url) != url else f": {error}"
        raise ConfigError(
            f"setting broker, {config.broker_safe!r}, is not a usable URL{cause}; "
            "give amqp://user:password@host:5672//, redis://host:6379 or memory://, with special characters of the "
            "password as %xx"
        ) from None
    except ImportError as error:
        raise ConfigError(
            f"setting broker, {config.broker_safe!r}, needs a package: {error}; try pip install nodestate[redis]"
        ) from error
