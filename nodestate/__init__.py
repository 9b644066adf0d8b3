"""nodestate: event-sourced host state for cloud schedulers, without a database."""

from typing import TYPE_CHECKING, Any

from nodestate.config import Config, load
from nodestate.designs.reader import Reader
from nodestate.errors import (
    BadEventError,
    BadRequestError,
    BehindError,
    BrokerUnavailableError,
    ConfigError,
    ItemTooLargeError,
    NodestateError,
    NotFoundError,
    PolicyError,
    StaleViewError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
    UnconfirmedError,
)
from nodestate.model import Receipt, Version
from nodestate.view.view import Node, Position, View

if TYPE_CHECKING:
    from nodestate.agent.publisher import Publisher

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
    # publishing
    "Publisher",
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
    "BadRequestError",
    "NotFoundError",
    "PolicyError",
]


def __getattr__(name: str) -> Any:
    """Import what needs a broker only when it is used: a scheduler that reads imports nothing of kombu."""
    if name == "Publisher":
        from nodestate.agent.publisher import Publisher  # noqa: PLC0415  see above

        return Publisher
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
