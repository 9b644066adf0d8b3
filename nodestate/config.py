"""Settings: one frozen Config, passed down. This is the only reader of the environment."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from nodestate.errors import ConfigError
from nodestate.model.partitioning import BUCKETS_COUNT
from nodestate.ports import MAX_TTL_S

ENV_PREFIX = "NODESTATE_"
DEFAULT_FILES = ("nodestate.toml", "/etc/nodestate/nodestate.toml")

Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]

DESIGN_NAMES: Final = ("journal", "snapshot", "sql", "journal_b", "snapshot_b")
LEASE_RENEWALS_COUNT: Final = 5
"""Renewals that may be late or lost before a head runs out."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All settings of a cell and of the processes in it. Names here are those of the TOML file and,
    in capitals behind ``NODESTATE_``, of the environment.
    """

    broker: str = "memory://"
    """URL of the message broker as kombu takes it: amqp://user:password@host:5672//, memory://, redis://…"""
    store: str = "memory://"
    """memcached://host:port,host:port (partitions map to servers by their place in this list), or memory://."""
    store_b: str = ""
    """Other memcached servers that the cell is being moved to or came from, where the designs journal_b and snapshot_b live."""
    sql: str = ""
    """SQLAlchemy URL of the database design; empty where it is not used."""
    cell: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,24}\Z")] = "cell1"
    """One independent deployment: its own keys, exchange and queues."""
    partitions: Annotated[int, Meta(ge=1, le=BUCKETS_COUNT)] = 8
    """How many partitions, the unit of ordering and ownership, a cell begins with; its control record says how many it has."""
    designs: Annotated[tuple[str, ...], Meta(min_length=1)] = ("journal", "snapshot")
    """What consumers write: journal, snapshot, sql, journal_b, snapshot_b; several by comma."""
    read_design: str = "snapshot"
    """What readers read where they are not told."""
    state_dir: str = ""
    """Where agents keep what must survive them (incarnations). Empty: ~/.local/state/nodestate, as root /var/lib."""

    queue_type: Annotated[str, Meta(pattern=r"\A(classic|quorum)\Z")] = "classic"
    """RabbitMQ queue type; quorum survives the loss of a broker node."""
    prefetch: Annotated[int, Meta(ge=1, le=65535)] = 2000
    """Unacked messages a consumer holds at most, per partition."""
    batch_events: Annotated[int, Meta(ge=1, le=100_000)] = 2000
    """A batch is written at this many events …"""
    flush_s: Positive = 0.05
    """… or this many seconds after its first, whichever comes first."""
    confirm_window: Count = 1000
    """Unconfirmed publishes an agent has under way at most."""
    broker_heartbeat_s: Annotated[int, Meta(ge=1)] = 4
    """AMQP heartbeat: a frozen peer is given up after two to three of these."""
    broker_timeout_s: Positive = 5.0
    """How long a connect or a synchronous call of the broker may take."""

    renew_s: Positive = 1.0
    """How often an owner confirms its partitions also when nothing happens."""
    standby_s: Positive = 3.0
    """How long a consumer's member waits before it queues up for the partitions of other members."""
    claim_ttl_s: Annotated[float, Meta(ge=5, le=3600)] = 30.0
    """How long a scheduler's claim on a node counts, if its agent says nothing."""
    answer_timeout_s: Positive = 5.0
    """How long a scheduler waits for an agent's answer before it tries another node."""
    heartbeat_s: Positive = 10.0
    """How often an agent gives a sign of life."""
    resync_jitter_s: Annotated[float, Meta(ge=0)] = 5.0
    """Agents spread their answers to a resync over this many seconds."""
    store_timeout_s: Positive = 1.0
    """How long a memcached server may take for a reply."""
    sql_timeout_s: Positive = 10.0
    """How long a database may take for a statement."""
    lease_s: Annotated[float, Meta(ge=10, le=MAX_TTL_S)] = 86_400.0
    """Time to live of what an owner renews; a partition without an owner for so long is forgotten."""

    @property
    def settle_s(self) -> float:
        """How long an owner that began with nothing listens before it vouches for its partition: a resync and
        two heartbeats of every living node fall into it.
        """
        return self.resync_jitter_s + 2 * self.heartbeat_s

    @property
    def store_servers(self) -> tuple[str, ...]:
        """The servers of ``store``."""
        return servers_of(self.store)

    @property
    def broker_safe(self) -> str:
        """The broker's URL without its password, for messages."""
        parts = urlsplit(self.broker)
        return self.broker.replace(f":{parts.password}@", ":***@") if parts.password else self.broker


def servers_of(url: str) -> tuple[str, ...]:
    """host:port of each memcached server, in the order that maps partitions to them; empty for memory://."""
    parts = urlsplit(url)
    if parts.scheme == "memory":
        return ()
    if parts.scheme != "memcached" or not parts.netloc:
        raise ConfigError(f"store {url!r}: want memcached://host:port[,host:port…] or memory://")
    return tuple(server if ":" in server else f"{server}:11211" for server in parts.netloc.split(","))


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    file: str | Path | None = None,
) -> Config:
    """Settings by flag, then environment, then TOML file (``file``, or NODESTATE_CONFIG, or the first default
    file that exists). Raises ``ConfigError`` naming the setting and where it came from.
    """
    environ = os.environ if environ is None else environ
    path = file or environ.get(ENV_PREFIX + "CONFIG")
    if path is None:
        path = next((name for name in DEFAULT_FILES if Path(name).is_file()), None)
    settings: dict[str, Any] = {}
    sources: dict[str, str] = {}

    def take(name: str, value: Any, source: str) -> None:
        if name not in Config.__struct_fields__:
            raise ConfigError(
                f"{source}: there is no setting {name!r}; there are {', '.join(Config.__struct_fields__)}"
            )
        if isinstance(value, str) and name == "designs":
            value = [part.strip() for part in value.split(",") if part.strip()]
        settings[name], sources[name] = value, source

    if path is not None:
        try:
            content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"settings file {path}: {error}") from None
        for name, value in content.items():
            take(name, value, str(path))
    for variable, value in environ.items():
        if variable.startswith(ENV_PREFIX) and variable != ENV_PREFIX + "CONFIG":
            take(variable.removeprefix(ENV_PREFIX).lower(), value, variable)
    for name, value in (flags or {}).items():
        if value is not None:
            take(name, value, f"--{name.replace('_', '-')}")
    try:
        config = msgspec.convert(settings, Config, strict=False)
    except msgspec.ValidationError as error:
        name = str(error).rpartition("`$.")[2].rstrip("`").partition("[")[0]
        raise ConfigError(f"{sources.get(name, 'settings')}: {error}") from None
    unknown = [name for name in (*config.designs, config.read_design) if name not in DESIGN_NAMES]
    if unknown:
        raise ConfigError(
            f"{sources.get('designs', 'settings')}: no design {unknown[0]!r}; there are {', '.join(DESIGN_NAMES)}"
        )
    if config.lease_s < LEASE_RENEWALS_COUNT * config.renew_s:
        raise ConfigError(
            f"{sources.get('lease_s') or sources.get('renew_s')}: lease_s {config.lease_s:g} must be at least "
            f"{LEASE_RENEWALS_COUNT} times renew_s {config.renew_s:g}, or partitions run out between two renewals"
        )
    if config.answer_timeout_s > config.claim_ttl_s / 2:
        raise ConfigError(
            f"{sources.get('answer_timeout_s') or sources.get('claim_ttl_s')}: answer_timeout_s {config.answer_timeout_s:g} must be at most half of "
            f"claim_ttl_s {config.claim_ttl_s:g}, or claims expire before the orders that they are for"
        )
    _ = config.store_servers
    if config.store_b:
        _ = servers_of(config.store_b)
    return config
