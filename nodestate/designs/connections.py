"""Connections to where a cell's designs live, opened as far as they are needed.

What a design does not need is not even imported: a scheduler that reads memcached has no SQL in its process, and the
other way round.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nodestate.config import Config, servers_of
from nodestate.designs import DESIGNS
from nodestate.errors import ConfigError
from nodestate.ports import ClaimStore, Clock, Store, StoreRole
from nodestate.store.breaker import ClaimBreaker, guarded
from nodestate.store.round_trips import Stores


def open_stores(config: Config, clock: Clock, designs: Iterable[str], *, make_tables: bool = False) -> Stores:
    """What these designs live on, each server behind a breaker. Nothing is connected yet.

    ``make_tables``: in a SQLite file that has none, as it has no operator who would. Raises ``ConfigError`` where the
    settings name no database and a design needs one.
    """
    wheres = {DESIGNS[name].store_role for name in designs}
    database = open_database(config, make_tables=make_tables) if StoreRole.SQL in wheres else None
    stores: Sequence[Store] = open_memcached(config, config.store) if StoreRole.STORE in wheres else ()
    if StoreRole.STORE_B in wheres and not config.store_b:
        raise ConfigError("a design of store_b needs it: give NODESTATE_STORE_B=memcached://host:port[,host:port…]")
    stores_b: Sequence[Store] = open_memcached(config, config.store_b) if StoreRole.STORE_B in wheres else ()
    return guarded(stores, clock, database, stores_b)


def configured(config: Config) -> list[str]:
    """The designs that the settings name a place for, outside of this process."""
    places = {
        StoreRole.STORE: bool(servers_of(config.store)),
        StoreRole.STORE_B: bool(config.store_b and servers_of(config.store_b)),
        StoreRole.SQL: bool(config.sql),
    }
    return [name for name, design in DESIGNS.items() if places[design.store_role]]


def open_claims(config: Config, clock: Clock) -> list[ClaimStore]:
    """The servers that keep claims: those of the setting ``store``, whatever design is read."""
    return [ClaimBreaker(store, clock) for store in open_memcached(config, config.store)]


def open_memcached(config: Config, url: str) -> Sequence[ClaimStore]:
    """A connection to each server of a setting; partition p lives on the one at ``p % len(servers)``."""
    from nodestate.store.memcached import open_stores as connections  # noqa: PLC0415  see above

    return connections(config, url)


def open_database(config: Config, *, make_tables: bool = False) -> Store:
    """A connection to the cell's database."""
    if not config.sql:
        raise ConfigError(
            "the sql design needs a database: give NODESTATE_SQL=mariadb://user:password@host/nodestate, "
            "postgresql://user:password@host/nodestate or sqlite:////path/to/file.db"
        )
    try:
        from nodestate.sql.store import SqlStore  # noqa: PLC0415  see above
    except ModuleNotFoundError as error:
        raise ConfigError(f"the sql design needs SQLAlchemy ({error}): pip install 'nodestate[sql]'") from None

    return SqlStore(config.sql, timeout_s=config.sql_timeout_s, make_tables=make_tables)
