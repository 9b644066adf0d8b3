"""Users of RabbitMQ that agents log in with, one for each node.

| user | rights | its events |
|---|---|---|
| ``node-NAME`` | of the node NAME alone | must be of the node NAME |
| ``nodes-ANY`` | of the nodes of one agent | of any node |
| any other | of the whole cell | of any node |

Agents with one of the first two names use no exchange of earlier versions, as they have no rights there.
"""

from __future__ import annotations

from typing import Final

from nodestate.errors import BadEventError

NODE_PREFIX: Final = "node-"
NODES_PREFIX: Final = "nodes-"


def check_sender(named: str, node: str, kind: str) -> None:
    """Raise ``BadEventError`` if a message names another node than the one for which the broker let it pass.

    Args:
        named: the node that the message names.
        node: the node for which the broker let it pass; empty if that is not known.
        kind: the kind of the message, for the error.
    """
    if node and named != node:
        raise BadEventError("wrong-user", f"{kind} of node {named!r} came from the agent of node {node!r}")


def node_of(user: str) -> str:
    """The node that a user belongs to; empty if the user belongs to no single node."""
    return user[len(NODE_PREFIX) :] if user.startswith(NODE_PREFIX) else ""


def has_rights_of_nodes_only(user: str) -> bool:
    """True if a user belongs to one agent, and has the rights of its nodes only."""
    return user.startswith((NODE_PREFIX, NODES_PREFIX))
