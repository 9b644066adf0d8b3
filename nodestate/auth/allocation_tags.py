"""Tags of allocations: the proof that a scheduler of the cell ordered an allocation.

A node reports its allocations, each with the hints of its order. A hostile node can report an instance that is on
another node, and give it a later order id or any group: schedulers would then end or move the true instance. So a
scheduler adds a tag to the hints of each order to build. The agent keeps the tag with the other hints, and reports it
as long as the allocation exists::

    order to build --tagged by its scheduler--> allocation with the tag --reported--> its tag is checked
    migration, resize, update --tagged again: another node, order id or hints--> allocation with another tag

A tag has one code for each secret in force: the id of the secret and the code, as ``signatures`` describes them. A code
covers the node, the instance, and the allocation: resources, group and all other hints. It also covers the cell, whose
name is a part of the key's derivation. No node has the key. A tag is valid if one of its codes is valid under a secret
in force. So a scheduler that does not have the newest secret so far, and a scheduler that no longer has the oldest one,
accept the same tags.

The setting ``auth_orders`` has the mode:

| mode | makes tags | an allocation without a valid tag |
|---|---|---|
| off | no | is believed; tags are not checked |
| accept | if the process has the secrets | is believed, counted |
| warn | yes | is believed, counted and logged |
| require | yes | is not believed |

The resources of an allocation count as used on its node in every mode. An allocation that is not believed is a member
of no group, and no other instance is ended or moved because of it.

A wrong tag is treated as a missing one, because a node could as well leave the tag out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from nodestate.auth.key_file import Keyring
from nodestate.auth.keys import ALLOCATIONS, SECRETS_IN_FORCE_COUNT
from nodestate.auth.message_auth import MAX_NAMED_COUNT, open_keyring
from nodestate.auth.signatures import KEY_ID_CHARS, SIGNATURE_CHARS, Mac, is_valid, signature_of
from nodestate.config import Config
from nodestate.errors import ConfigError
from nodestate.ports import Clock

TAG: Final = "tag"
"""The name of the hint that has the tag."""
_LABEL: Final = b"allocation\0"
"""The kind of the content. Each code covers it, so no other signature passes for a code of a tag."""
_NO_NODE: Final = ""
"""Stands for the node's name in the derivation of the key, which belongs to no node."""

_encode = msgspec.msgpack.Encoder(order="sorted").encode


class AllocationTags:
    """Makes and checks the tags of allocations.

    Args:
        mode: the mode: off, accept, warn or require.
        keyring: the secrets of the cell; None if this process has none.
    """

    def __init__(self, mode: str = "off", keyring: Keyring | None = None) -> None:
        self.untagged = 0
        """Number of checks that found no valid tag. An allocation counts again at each check."""
        self._mode = mode
        """The mode."""
        self._keyring = keyring if mode != "off" else None
        """The secrets of the cell; None if no tag is made or checked."""
        self._named: set[str] = set()
        """Nodes that the log has named; each is named once."""

    @property
    def checks(self) -> bool:
        """True unless the mode is off."""
        return self._mode != "off"

    @property
    def requires(self) -> bool:
        """True if allocations without a valid tag are not believed."""
        return self._mode == "require"

    @property
    def keys_version(self) -> int:
        """A number that changes with the keys. Tags must be checked again then."""
        return self._keyring.readings_count if self._keyring is not None else 0

    @property
    def ids_in_force(self) -> tuple[str, ...]:
        """The ids of the secrets for which a new tag has a code, the oldest first; empty if no tag can be made."""
        keys = self._keyring.keys_in_force(ALLOCATIONS, _NO_NODE) if self._keyring is not None else ()
        return tuple(key.id for key in keys)

    def tagged(
        self, node: str, instance: str, resources: Mapping[str, int], group: str | None, hints: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the hints of an order with a new tag, which replaces an earlier one. Without a key, there is no tag.

        Args:
            node: the node that is to carry out the order.
            instance: the instance's id.
            resources: the amounts by resource class, as the agent is to store them.
            group: the instance's group; None if it has none.
            hints: the hints, as the agent is to store them.
        """
        plain = without_tag(hints)
        if self._keyring is None:
            return plain
        content = _encode([node, instance, resources, group, plain])
        keys = self._keyring.keys_in_force(ALLOCATIONS, _NO_NODE)
        tag = "".join(signature_of(content, one.id, Mac(one.key), _LABEL) for one in keys)
        return {**plain, TAG: tag} if tag else plain

    def valid_ids(self, node: str, instance: str, allocation: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the ids of the secrets in force under which an allocation's tag is valid; empty if the tag is invalid.

        Args:
            node: the node that reports the allocation.
            instance: the instance's id.
            allocation: the allocation, as a map of the node's state, with its hints and tag. Its values may be of any
                type, because a node can report anything.
        """
        hints = allocation.get("hints")
        if self._keyring is None or not isinstance(hints, dict) or not isinstance(tag := hints.get(TAG), str):
            return ()
        codes = [tag[at : at + SIGNATURE_CHARS] for at in range(0, len(tag), SIGNATURE_CHARS)]
        if len(tag) % SIGNATURE_CHARS or len(codes) > SECRETS_IN_FORCE_COUNT:
            return ()
        try:
            content = _encode(
                [node, instance, allocation.get("resources"), allocation.get("group"), without_tag(hints)]
            )
        except (TypeError, ValueError, RecursionError):  # a damaged value in the store
            return ()
        found = []
        for code in codes:
            mac = self._keyring.mac(ALLOCATIONS, _NO_NODE, code[:KEY_ID_CHARS])
            if mac is not None and is_valid(code, content, mac, _LABEL):
                found.append(code[:KEY_ID_CHARS])
        return tuple(found)

    def is_believed(self, node: str, instance: str, allocation: Mapping[str, Any]) -> bool:
        """Return whether an allocation is believed, and count it if it has no valid tag. Args: see ``valid_ids``."""
        if self._mode == "off" or self.valid_ids(node, instance, allocation):
            return True
        self.untagged += 1
        if self._mode == "warn" and node not in self._named and len(self._named) < MAX_NAMED_COUNT:
            self._named.add(node)
            import structlog  # noqa: PLC0415  it would take half of the time of `import nodestate.scheduling`

            structlog.get_logger("nodestate.auth").warning(
                "an allocation has no valid tag of a scheduler; mode require would not believe it",
                node=node,
                instance=instance,
            )
        return self._mode != "require"


def without_tag(hints: Mapping[str, Any]) -> dict[str, Any]:
    """Return hints without their tag."""
    return {name: hint for name, hint in hints.items() if name != TAG}


NO_TAGS: Final = AllocationTags()
"""Makes no tags, and believes all allocations."""


def allocation_tags(config: Config, clock: Clock | None = None) -> AllocationTags:
    """Create the ``AllocationTags`` of this process, in the mode of the setting ``auth_orders``.

    Raises ``ConfigError`` if the file of keys cannot be used. In the modes ``warn`` and ``require``, also raises it if
    the file has keys of nodes only.
    """
    tags = AllocationTags(config.auth_orders, open_keyring(config, "auth_orders", config.auth_orders, clock))
    if config.auth_orders in ("warn", "require") and not tags.ids_in_force:
        raise ConfigError(
            f"auth_orders is {config.auth_orders}, so a scheduler needs the secrets of the cell, and keys_file "
            f"{config.keys_file} has keys of nodes only; give the file that 'nodestate key init' wrote"
        )
    return tags
