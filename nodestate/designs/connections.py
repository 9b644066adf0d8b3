"""Connections to the stores of a cell, opened only for the designs that need them.

A driver that no design needs is not even imported: the process of a scheduler that reads memcached contains no
SQLAlchemy, and the process of one that reads the database contains no pymemcache.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from nodestate.config import Config, servers_of
from nodestate.designs import DESIGNS
from nodestate.errors import ConfigError
from nodestate.ports import ClaimStore, Clock, Store, StoreRole
from nodestate.store.breaker import LONGEST_PAUSE_S, LONGEST_PAUSE_WITH_COPIES_S, ClaimBreaker, guarded
from nodestate.store.round_trips import Stores

if TYPE_CHECKING:
    from nodestate.store.signed_values import ValueAuth


def open_stores(
    config: Config,
    clock: Clock,
    designs: Iterable[str],
    *,
    make_tables: bool = False,
    values: ValueAuth | None = None,
) -> Stores:
    """Return the stores of these designs, each server behind a circuit breaker. A store connects at its first use.

    Args:
        config: settings of the cell.
        clock: measures the pauses of the breakers.
        designs: names of the designs.
        make_tables: create the tables in a SQLite file that has none. In other databases an operator creates them.
        values: signs and checks the values in memcached; None to do so as the settings say.

    Raises:
        ConfigError: if a design needs a store that the settings do not name.
    """
    roles = {DESIGNS[name].store_role for name in designs}
    database = open_database(config, make_tables=make_tables) if StoreRole.SQL in roles else None
    stores: Sequence[Store] = (
        open_memcached(config, config.store, clock, values) if roles & {StoreRole.STORE, StoreRole.REPLICA} else ()
    )
    if StoreRole.REPLICA in roles and len(stores) < 2:
        raise ConfigError(
            "a replica needs two memcached servers: give NODESTATE_STORE=memcached://host:port,host:port, or set "
            "replicas to 1"
        )
    if StoreRole.STORE_B in roles and not config.store_b:
        raise ConfigError(
            "the designs journal_b and snapshot_b need the setting store_b: "
            "give NODESTATE_STORE_B=memcached://host:port[,host:port…]"
        )
    stores_b: Sequence[Store] = (
        open_memcached(config, config.store_b, clock, values) if StoreRole.STORE_B in roles else ()
    )
    return guarded(stores, clock, database, stores_b)


def configured(config: Config) -> list[str]:
    """Return the names of the designs for which the settings name a store outside of this process."""
    is_named = {
        StoreRole.STORE: bool(servers_of(config.store)),
        StoreRole.REPLICA: len(servers_of(config.store)) > 1,
        StoreRole.STORE_B: bool(config.store_b and servers_of(config.store_b)),
        StoreRole.SQL: bool(config.sql),
    }
    return [name for name, design in DESIGNS.items() if is_named[design.store_role]]


def open_claims(config: Config, clock: Clock, values: ValueAuth | None = None) -> list[ClaimStore]:
    """Return the servers of the setting ``store``. They store the claims, whichever design is read. Args as above."""
    longest_pause_s = LONGEST_PAUSE_S if config.replicas_count == 1 else LONGEST_PAUSE_WITH_COPIES_S
    servers = open_memcached(config, config.store, clock, values)
    return [ClaimBreaker(store, clock, longest_pause_s) for store in servers]


def open_memcached(config: Config, url: str, clock: Clock, values: ValueAuth | None = None) -> Sequence[ClaimStore]:
    """Return a connection to each memcached server that a setting names, with signed values.

    Partition p is stored on server ``p % len(servers)``.

    Args:
        config: settings of the cell.
        url: value of the setting ``store`` or ``store_b``.
        clock: tells when to look whether the file of keys has changed.
        values: signs and checks the values; None to do so as the settings say.

    Raises:
        ConfigError: if the keys of the settings cannot be used.
    """
    from nodestate.store.memcached import open_stores as connections  # noqa: PLC0415  see the module docstring
    from nodestate.store.signed_values import signed_stores, value_auth  # noqa: PLC0415  likewise

    return signed_stores(connections(config, url), values or value_auth(config, clock))


def open_database(config: Config, *, make_tables: bool = False) -> Store:
    """Return a connection to the cell's database. ``make_tables``: see ``open_stores``.

    Raises ``ConfigError`` if the settings name no database or SQLAlchemy is not installed.
    """
    if not config.sql:
        raise ConfigError(
            "the sql design needs a database: give NODESTATE_SQL=mariadb://user:password@host/nodestate, "
            "postgresql://user:password@host/nodestate or sqlite:////path/to/file.db"
        )
    try:
        from nodestate.sql.store import SqlStore  # noqa: PLC0415  see the module docstring
    except ModuleNotFoundError as error:
        raise ConfigError(f"the sql design needs SQLAlchemy ({error}): pip install 'nodestate[sql]'") from None

    return SqlStore(config.sql, timeout_s=config.sql_timeout_s, make_tables=make_tables)
