"""nodestate: event-sourced host state for cloud schedulers, without a database."""

from nodestate.config import Config, load
from nodestate.errors import (
    BadEventError,
    BehindError,
    BrokerUnavailableError,
    ConfigError,
    ItemTooLargeError,
    NodestateError,
    StaleViewError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
    UnconfirmedError,
)
from nodestate.model import Receipt, Version
from nodestate.reader import Reader
from nodestate.view import Node, Position, View

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022  grouped by what a user is after, not by letter
    # settings
    "Config",
    "load",
    # reading
    "Reader",
    "View",
    "Node",
    "Position",
    "Receipt",
    "Version",
    # errors
    "NodestateError",
    "ConfigError",
    "BadEventError",
    "StoreError",
    "StoreUnavailableError",
    "StoreFullError",
    "ItemTooLargeError",
    "BrokerUnavailableError",
    "UnconfirmedError",
    "StaleViewError",
    "BehindError",
]
