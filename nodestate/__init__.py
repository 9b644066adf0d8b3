"""nodestate: event-sourced host state for cloud schedulers, without a database."""

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from nodestate.agent.publisher import Publisher
    from nodestate.config import Config, load
    from nodestate.designs.multi_cell_reader import MultiCellReader
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
    from nodestate.view.multi_cell_view import CellNode, MultiCellView
    from nodestate.view.view import Node, Position, View

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
    # reading several cells
    "MultiCellReader",
    "MultiCellView",
    "CellNode",
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


_HOMES: Final = {
    "Config": "nodestate.config",
    "load": "nodestate.config",
    "Reader": "nodestate.designs.reader",
    "View": "nodestate.view.view",
    "MultiCellReader": "nodestate.designs.multi_cell_reader",
    "MultiCellView": "nodestate.view.multi_cell_view",
    "CellNode": "nodestate.view.multi_cell_view",
    "Node": "nodestate.view.view",
    "Position": "nodestate.view.view",
    "Receipt": "nodestate.model",
    "Version": "nodestate.model",
    "Publisher": "nodestate.agent.publisher",
}
"""Module of each public name; names that are not listed are errors, of ``nodestate.errors``."""


def __getattr__(name: str) -> Any:
    """Import a public name on its first use, so that a reader does not pay for kombu nor a command's help for numpy."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES.get(name, "nodestate.errors")), name)
    globals()[name] = value
    return value
