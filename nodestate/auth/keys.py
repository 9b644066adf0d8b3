"""Keys, derived from the secrets of a cell by HMAC-SHA256::

    secret --the cell's name and a purpose--> the root key of that purpose --the name of a node--> the key of the node

A node has its own keys only, so it can sign as itself only. Consumers and schedulers have the secrets, from which all
keys are derived. Each secret has an id, which every signature names. A secret is in force if processes accept
signatures by its keys. Two secrets can be in force at a time, so a cell changes to a new secret step by step.

A process that has the secrets signs with the older one, because a node may not yet have a key of the newer one. A node
signs with its newest key, because the processes with the secrets got the new secret first.
"""

from __future__ import annotations

import binascii
import hmac
import secrets
from functools import lru_cache
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta

from nodestate.auth.signatures import KEY_ID_CHARS, Mac
from nodestate.errors import KeyStepError
from nodestate.model import NodeName

SECRET_BYTES: Final = 32
SECRETS_IN_FORCE_COUNT: Final = 2
"""Most secrets that are in force at a time."""
EVENTS: Final = "events"
"""The purpose of the keys that sign the events of a node."""
ORDERS: Final = "orders"
"""The purpose of the keys that sign the orders to a node, its answers and its presences."""
HANDOVERS: Final = "handovers"
"""The purpose of the key by which a consumer signs handover messages. It belongs to no node."""
ALLOCATIONS: Final = "allocations"
"""The purpose of the key by which a scheduler makes the tags of allocations. It belongs to no node."""

KEY_ID_PATTERN: Final = rf"\A[0-9a-f]{{{KEY_ID_CHARS}}}\Z"
KeyId = Annotated[str, Meta(pattern=KEY_ID_PATTERN)]


class SigningKey(NamedTuple):
    """A key with the id of the secret that it was derived from."""

    id: str
    key: bytes


class Secret(msgspec.Struct, frozen=True, kw_only=True):
    """One secret, as the file of the cell has it."""

    id: KeyId
    secret: str
    """The secret in hexadecimal digits."""
    created_at: float
    """Seconds since 1970."""

    @classmethod
    def new(cls, now: float) -> Secret:
        """Return a random secret. ``now`` is in seconds since 1970."""
        content = secrets.token_bytes(SECRET_BYTES)
        key_id = hmac.digest(content, b"nodestate key id", "sha256").hex()[:KEY_ID_CHARS]
        return cls(id=key_id, secret=content.hex(), created_at=now)


class RevokedNode(msgspec.Struct, frozen=True, kw_only=True):
    """A node whose keys were revoked."""

    ids: tuple[KeyId, ...]
    """The ids of the secrets: the node's keys that were derived from them are refused."""
    revoked_at: float
    """Seconds since 1970."""


class CellKeys(msgspec.Struct, frozen=True, tag_field="kind", tag="cell", kw_only=True):
    """The secrets of a cell, from which the keys of all nodes are derived."""

    cell: str
    secrets: Annotated[tuple[Secret, ...], Meta(min_length=1, max_length=SECRETS_IN_FORCE_COUNT)]
    """The secrets in force, the oldest first."""
    revoked_nodes: dict[NodeName, RevokedNode] = {}
    """Nodes whose keys were revoked."""
    revoked_ids: dict[KeyId, float] = {}
    """Ids of revoked secrets, with the time in seconds since 1970. Kept for ``nodestate key status``."""

    def signing_key(self, purpose: str, node: str) -> SigningKey | None:
        """Return the oldest key that is not revoked, to sign with; None if all keys of the node are revoked."""
        for secret in self.secrets:
            key = self.key(purpose, node, secret.id)
            if key is not None:
                return SigningKey(secret.id, key)
        return None

    def keys_in_force(self, purpose: str, node: str) -> tuple[SigningKey, ...]:
        """See ``Keyring.keys_in_force``."""
        keys = ((one.id, self.key(purpose, node, one.id)) for one in self.secrets)
        return tuple(SigningKey(key_id, key) for key_id, key in keys if key is not None)

    def key(self, purpose: str, node: str, key_id: str) -> bytes | None:
        """Return the node's key of one secret; None if no secret of this id is in force, or if the key is revoked."""
        secret = next((one for one in self.secrets if one.id == key_id), None)
        revoked = self.revoked_nodes.get(node)
        if secret is None or (revoked is not None and key_id in revoked.ids):
            return None
        return _derived(secret.secret, self.cell, purpose, node)

    def has_keys_of(self, node: str) -> bool:
        """True: the keys of all nodes are derived from the secrets."""
        del node
        return True

    def is_revoked(self, node: str) -> bool:
        """Return whether keys of a node were revoked."""
        return node in self.revoked_nodes

    def with_new_secret(self, now: float) -> CellKeys:
        """Return the content of the file with one more secret. ``now`` is in seconds since 1970.

        Raises ``KeyStepError`` if ``SECRETS_IN_FORCE_COUNT`` secrets are in force already.
        """
        if len(self.secrets) == SECRETS_IN_FORCE_COUNT:
            oldest = self.secrets[0].id
            reason = (
                f"{SECRETS_IN_FORCE_COUNT} secrets are in force already, and messages may still be signed by {oldest}"
            )
            raise KeyStepError(reason, f"nodestate key revoke {oldest}")
        return msgspec.structs.replace(self, secrets=(*self.secrets, Secret.new(now)))

    def without_secret(self, key_id: str, now: float) -> CellKeys:
        """Return the content of the file without one secret, whose keys are refused by processes that have read it.

        ``now`` is in seconds since 1970. Raises ``KeyStepError`` if no other secret is in force.
        """
        left = tuple(one for one in self.secrets if one.id != key_id)
        if not left:
            raise KeyStepError(f"{key_id} is the only secret in force", "nodestate key rotate")
        return msgspec.structs.replace(self, secrets=left, revoked_ids={**self.revoked_ids, key_id: now})

    def with_revoked_node(self, node: str, now: float) -> CellKeys:
        """Return the content of the file with a node's present keys revoked. The next secret gives it new keys."""
        ids = tuple(one.id for one in self.secrets)
        return msgspec.structs.replace(
            self, revoked_nodes={**self.revoked_nodes, node: RevokedNode(ids=ids, revoked_at=now)}
        )

    def node_keys(self, nodes: tuple[str, ...]) -> NodeKeys:
        """Return the keys of some nodes, without the secrets. Revoked keys are left out.

        Raises ``KeyStepError`` if all keys of a node are revoked.
        """
        found: dict[str, tuple[NodeKey, ...]] = {}
        for node in nodes:
            keys = [(one, self.key(EVENTS, node, one.id), self.key(ORDERS, node, one.id)) for one in self.secrets]
            found[node] = tuple(
                NodeKey(id=one.id, events=event.hex(), orders=order.hex(), created_at=one.created_at)
                for one, event, order in keys
                if event is not None and order is not None
            )
            if not found[node]:
                raise KeyStepError(f"all keys of {node} are revoked", "nodestate key rotate")
        return NodeKeys(cell=self.cell, nodes=found)


class NodeKey(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of a node that are derived from one secret."""

    id: KeyId
    """The id of the secret."""
    events: str
    """The key of the node's events, in hexadecimal digits."""
    orders: str
    """The key of the node's orders and answers, in hexadecimal digits."""
    created_at: float
    """When the secret was created, in seconds since 1970."""


class NodeKeys(msgspec.Struct, frozen=True, tag_field="kind", tag="node", kw_only=True):
    """The keys of one node, or of the few nodes of one agent."""

    cell: str
    nodes: dict[NodeName, tuple[NodeKey, ...]]
    """By node, its keys, the oldest first."""

    def signing_key(self, purpose: str, node: str) -> SigningKey | None:
        """Return the newest key of a node for a purpose; None if this file has none."""
        for one in reversed(self.nodes.get(node, ())):
            return SigningKey(one.id, bytes.fromhex(one.events if purpose == EVENTS else one.orders))
        return None

    def keys_in_force(self, purpose: str, node: str) -> tuple[SigningKey, ...]:
        """Return all keys of a node for a purpose, the oldest first; empty if this file has none."""
        keys = ((one.id, self.key(purpose, node, one.id)) for one in self.nodes.get(node, ()))
        return tuple(SigningKey(key_id, key) for key_id, key in keys if key is not None)

    def key(self, purpose: str, node: str, key_id: str) -> bytes | None:
        """Return the node's key of one secret; None if this file does not have it."""
        for one in self.nodes.get(node, ()):
            if one.id == key_id and purpose in (EVENTS, ORDERS):
                return bytes.fromhex(one.events if purpose == EVENTS else one.orders)
        return None

    def has_keys_of(self, node: str) -> bool:
        """Return whether this file has keys of a node."""
        return bool(self.nodes.get(node))

    def is_revoked(self, node: str) -> bool:
        """False: only the file of the cell has the list of revoked nodes."""
        del node
        return False


Keys = CellKeys | NodeKeys


def require_valid_keys(keys: Keys) -> None:
    """Raise ``ValueError`` unless all secrets or keys have ``SECRET_BYTES`` bytes, and no id occurs twice."""
    if isinstance(keys, CellKeys):
        texts, id_lists = [one.secret for one in keys.secrets], [[one.id for one in keys.secrets]]
    else:
        texts = [text for own in keys.nodes.values() for one in own for text in (one.events, one.orders)]
        id_lists = [[one.id for one in own] for own in keys.nodes.values()]
    for text in texts:
        if len(binascii.unhexlify(text)) != SECRET_BYTES:
            raise ValueError(f"a secret or a key does not have {SECRET_BYTES} bytes")
    if any(len(set(ids)) < len(ids) for ids in id_lists):
        raise ValueError("two keys have the same id")


def _derived(secret: str, cell: str, purpose: str, node: str) -> bytes:
    return _root(secret, cell, purpose).digest(node.encode())


@lru_cache(maxsize=64)
def _root(secret: str, cell: str, purpose: str) -> Mac:
    """Return HMAC with the root key of a purpose. A consumer derives the keys of all its nodes from the same few."""
    return Mac(hmac.digest(bytes.fromhex(secret), f"nodestate {cell} {purpose}".encode(), "sha256"))
