"""Presences: messages by which agents that report the same node learn of each other.

An agent sends a presence with the node's name as its routing key, as an order is sent, so it reaches all agents that
listen for the node's orders. Agents of earlier versions take it for an order that they can't decode, and log that.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from nodestate.model.fields import Counter, NodeName, Word


class AgentRank(NamedTuple):
    """Decides which of two agents reports a node: the one with the higher rank."""

    incarnation: int
    """The incarnation: the agent that was started later has the higher one."""
    life: str
    """The agent's life token, which decides between equal incarnations."""


class Presence(msgspec.Struct, frozen=True, tag_field="kind", tag="presence", kw_only=True):
    """An agent that reports a node. Fields of later versions are ignored."""

    node: NodeName
    """The node's name."""
    incarnation: Counter
    """The incarnation of the agent's events."""
    generation: int = 0
    """The generation of the agent's last event."""
    life: Word
    """A random token of the agent's process."""
    host: str = ""
    """The name of the machine on which the agent runs."""
    left: bool = False
    """The agent reports the node no longer, because the node left."""
    signature: str | UnsetType = UNSET
    """The signature of the presence, which is its last field; absent if it is not signed."""

    @property
    def rank(self) -> AgentRank:
        """The agent's rank: of two agents that report the same node, the one with the higher rank keeps it."""
        return AgentRank(self.incarnation, self.life)


encode_presence = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Presence).decode


def decode_presence(body: bytes) -> Presence | None:
    """Decode a presence. Returns None if the bytes are none."""
    try:
        return _decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
