"""Signatures of messages and tags of allocations: keys of cells and nodes, modes, signing and checking.

``signatures`` adds a signature to an encoded message, and checks one. ``keys`` derives keys from the secrets of a cell.
``key_file`` reads and writes files of keys, and ``followed_file`` reads a changed file again. ``message_auth`` applies
the modes of the settings ``auth_events`` and ``auth_orders``. ``allocation_tags`` makes and checks tags: a valid tag
proves that a scheduler of the cell ordered the allocation. ``operator_keys`` has the operators' keys, which sign the
control record.
"""

from nodestate.auth.allocation_tags import NO_TAGS, TAG, AllocationTags, allocation_tags, without_tag
from nodestate.auth.message_auth import NO_AUTH, EventAuth, MessageAuth, OrderAuth, event_auth, order_auth

__all__ = [
    "NO_AUTH",
    "NO_TAGS",
    "TAG",
    "AllocationTags",
    "EventAuth",
    "MessageAuth",
    "OrderAuth",
    "allocation_tags",
    "event_auth",
    "order_auth",
    "without_tag",
]
