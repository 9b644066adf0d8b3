"""Signatures of messages: keys of cells and nodes, modes, signing and checking.

``signatures`` adds a signature to an encoded message and compares it. ``keys`` derives keys from the secrets of a cell.
``key_file`` reads and writes files of keys. ``message_auth`` applies the modes of the settings ``auth_events`` and
``auth_orders``.
"""

from nodestate.auth.message_auth import NO_AUTH, EventAuth, MessageAuth, OrderAuth, event_auth, order_auth

__all__ = ["NO_AUTH", "EventAuth", "MessageAuth", "OrderAuth", "event_auth", "order_auth"]
