"""Users of RabbitMQ that agents log in with, one for each node.

| user | rights | its events |
|---|---|---|
| ``node-NAME`` | of the node NAME alone | must be of the node NAME |
| ``nodes-ANY`` | of the nodes of one agent | of any node |
| any other | of the whole cell | of any node |

The exchanges of earlier versions are not used by agents whose user has one of the first two names: these users have no
rights there.
"""

from __future__ import annotations

from typing import Final

from nodestate.errors import BadEventError

NODE_PREFIX: Final = "node-"
NODES_PREFIX: Final = "nodes-"


def check_sender(named: str, node: str, kind: str) -> None:
    """Raise ``BadEventError`` if a message names another node than the one for which its sender has rights.

    Args:
        named: the node that the message names.
        node: the node for which the broker accepted the message, by its user or its routing key; empty if unknown.
        kind: the kind of the message, for the error.
    """
    if node and named != node:
        raise BadEventError("wrong-user", f"{kind} of node {named!r} came from the agent of node {node!r}")


def node_of(user: str) -> str:
    """Return the node whose agent has this user; empty if the user is not of the form ``node-NAME``."""
    return user[len(NODE_PREFIX) :] if user.startswith(NODE_PREFIX) else ""


def has_rights_of_nodes_only(user: str) -> bool:
    """Return whether a user, by its name, is one of an agent that has rights only for its own nodes."""
    return user.startswith((NODE_PREFIX, NODES_PREFIX))
