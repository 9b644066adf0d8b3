"""The type of arguments and options that name a node: a shell completes them from the view of the cell."""

from __future__ import annotations

from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from nodestate.errors import NodestateError

COMPLETION_TIMEOUT_S: Final = 0.5
"""Longest time that a shell waits for a server, in seconds."""


class NodeName(click.ParamType[str]):
    """The name of a node."""

    name = "node"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the nodes of the cell whose names begin with ``incomplete``; none if the store cannot be read."""
        del param
        names = _names_of_nodes(ctx.params)
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


NODE: Final = NodeName()
"""``type=NODE`` of an argument or an option."""


def _names_of_nodes(options: dict[str, Any]) -> list[str]:
    """Return the names of all nodes in a view of any age.

    Args:
        options: The values of the options before the word that is completed, by name.
    """
    from msgspec import structs  # noqa: PLC0415  the help of commands needs neither these nor numpy

    from nodestate.config import load  # noqa: PLC0415  as above
    from nodestate.designs.reader import Reader  # noqa: PLC0415  as above

    flags = {name: options.get(name) for name in ("broker", "store", "cell", "partitions")}
    try:
        config = load(flags, file=options.get("settings_file"))
        short = min(config.store_timeout_s, COMPLETION_TIMEOUT_S)
        config = structs.replace(config, store_timeout_s=short, sql_timeout_s=COMPLETION_TIMEOUT_S)
        with Reader(config) as reader:
            return sorted(reader.read(max_age=0, on_stale="flag").nodes)
    except NodestateError:
        return []
