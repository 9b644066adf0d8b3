"""The modes of authentication, applied to the messages of one process.

| mode | signs | unsigned message | wrong signature |
|---|---|---|---|
| off | no | accepted | not checked |
| accept | if it has a key | accepted, counted | refused |
| warn | yes | accepted, counted and logged; refused from a node that has signed before | refused |
| require | yes | refused | refused |

A process in mode ``accept`` that has no keys cannot check signatures. It accepts every message, and counts each as
unsigned.
"""

from __future__ import annotations

from typing import Final, Literal

from msgspec import UNSET, UnsetType

from nodestate.auth.key_file import Keyring
from nodestate.auth.keys import EVENTS, HANDOVERS, ORDERS
from nodestate.auth.signatures import (
    KEY_ID_CHARS,
    Mac,
    add_signature,
    is_valid,
    signed_content,
    without_signature,
)
from nodestate.config import Config
from nodestate.errors import BadEventError, ConfigError
from nodestate.model.orders import Answer, Order, encode, require_order_size
from nodestate.model.presence import Presence, encode_presence
from nodestate.ports import Clock, OrderCounts, SystemClock

MessageKind = Literal["event", "handover", "order", "answer", "presence"]
_PURPOSES: Final[dict[MessageKind, str]] = {
    "event": EVENTS,
    "handover": HANDOVERS,
    "order": ORDERS,
    "answer": ORDERS,
    "presence": ORDERS,
}
MAX_NAMED_COUNT: Final = 1_000
"""Most nodes that the log names for unsigned messages, because forged messages may name any number of nodes."""


class MessageAuth:
    """Signs and checks the messages of one kind.

    Args:
        mode: the mode: off, accept, warn or require.
        keyring: the keys of this process; None if it has none.
        kind: the kind of the messages. A signature of one kind is not valid for another one.
        remembers: whether a node that has signed once must sign from then on, in mode ``warn``.
    """

    def __init__(self, mode: str, keyring: Keyring | None, kind: MessageKind, *, remembers: bool = False) -> None:
        self.unsigned = 0
        """Number of messages that were accepted without a valid signature."""
        self._mode = mode
        """The mode."""
        self._keyring = keyring if mode != "off" else None
        """The keys; None if nothing is signed or checked."""
        self._label = f"{kind}\0".encode()
        """The kind of the messages, in the form in which the signature covers it."""
        self._kind = kind
        """The kind of the messages, for texts."""
        self._purpose = _PURPOSES[kind]
        """The purpose of the keys."""
        self._remembers = remembers
        """Whether a node that has signed once must sign from then on."""
        self._signers: set[str] = set()
        """Nodes that have signed, if they are remembered."""
        self._named: set[str] = set()
        """Nodes that the log has named; each is named once."""

    @property
    def checks(self) -> bool:
        """True if a wrong signature is refused."""
        return self._keyring is not None

    def sign(self, node: str, body: bytes) -> bytes:
        """Return an encoded message with its signature; without one if the mode does not sign, or if there is no key.

        Args:
            node: the node that the message comes from or goes to; empty for a handover message.
            body: the encoded message.
        """
        if self._keyring is None:
            return body
        key = self._keyring.signing_key(self._purpose, node)
        if key is None:
            if self._mode != "accept":
                self._log_once(
                    node,
                    "messages are not signed: keys_file has no key of this node, or its keys are revoked",
                )
            return body
        return add_signature(body, key.id, Mac(key.key), self._label)

    def check(self, node: str, body: bytes, signature: str | UnsetType) -> bytes:
        """Check an encoded message. Returns the message without its signature.

        Args:
            node: the node that the message comes from or goes to, as the message says; empty for a handover message.
            body: the encoded message.
            signature: the field ``signature`` of the decoded message.

        Raises:
            BadEventError: with the reason ``unsigned`` or ``bad-signature``, if the mode refuses the message.
        """
        if signature is UNSET:
            if self._mode != "off":
                self._accept_unsigned(node)
            return body
        content = signed_content(body, signature)
        if self._keyring is None:
            self.unsigned += self._mode != "off"
            return without_signature(content) if content is not None else body
        if content is None:
            raise self._refusal(node, "its signature is not the last field, or has another form")
        mac = self._keyring.mac(self._purpose, node, signature[:KEY_ID_CHARS])
        if mac is None:
            if self._mode == "accept" and not self._keyring.has_keys_of(node):
                self.unsigned += 1
                return without_signature(content)
            raise self._refusal(node, f"the key {signature[:KEY_ID_CHARS]} of this node is unknown or revoked")
        if not is_valid(signature, content, mac, self._label):
            raise self._refusal(node, "the signature does not match: another process wrote or changed the message")
        if self._remembers and self._mode == "warn":
            self._signers.add(node)
        return without_signature(content)

    def _accept_unsigned(self, node: str) -> None:
        """Count an unsigned message. Raises ``BadEventError`` if it must be refused."""
        if self._mode == "require":
            setting = "auth_events" if self._purpose in (EVENTS, HANDOVERS) else "auth_orders"
            detail = f"{node}: the {self._kind} has no signature; give the sender {setting} and its keys_file"
            raise BadEventError("unsigned", detail)
        if self._mode == "warn":
            revoked = self._keyring is not None and self._keyring.is_revoked(node)
            if self._remembers and (node in self._signers or revoked):
                raise BadEventError("unsigned", f"{node}: the {self._kind} has no signature, but this node has signed")
            self._log_once(node, "a message has no signature; mode require would refuse it")
        self.unsigned += 1

    def _refusal(self, node: str, detail: str) -> BadEventError:
        return BadEventError("bad-signature", f"{node}: {self._kind}: {detail}")

    def _log_once(self, node: str, text: str) -> None:
        if node not in self._named and len(self._named) < MAX_NAMED_COUNT:
            self._named.add(node)
            import structlog  # noqa: PLC0415  it would take half of the time of `import nodestate.scheduling`

            structlog.get_logger("nodestate.auth").warning(text, kind=self._kind, node=node)


class EventAuth:
    """Signs and checks events and handover messages."""

    def __init__(self, mode: str = "off", keyring: Keyring | None = None) -> None:
        self.events = MessageAuth(mode, keyring, "event", remembers=True)
        """For events."""
        self.handovers = MessageAuth(mode, keyring, "handover")
        """For handover messages, which no node sends: their node is the empty text."""

    @property
    def unsigned(self) -> int:
        """Number of messages that were accepted without a valid signature."""
        return self.events.unsigned + self.handovers.unsigned


NO_AUTH: Final = EventAuth()
"""Signs nothing, and accepts all events and handover messages."""


class OrderAuth:
    """Signs and checks orders, answers and presences, all with the order key of their node.

    Counts orders and presences by node. An agent checks messages for its own nodes only, so it has at most one counter
    for each of its nodes.
    """

    def __init__(self, mode: str = "off", keyring: Keyring | None = None) -> None:
        self.orders = MessageAuth(mode, keyring, "order")
        """For orders. In mode ``warn``, one scheduler may sign before another one does."""
        self.answers = MessageAuth(mode, keyring, "answer", remembers=True)
        """For answers."""
        self._presences = MessageAuth(mode, keyring, "presence")
        """For presences."""
        self._counts: dict[str, OrderCounts] = {}
        """By node, the numbers of its orders and presences without a valid signature."""

    def encode_order(self, order: Order) -> bytes:
        """Encode and sign an order. Raises ``BadEventError`` if it is too large."""
        body = self.orders.sign(order.node, encode(order))
        require_order_size(body)
        return body

    def check_order(self, order: Order, body: bytes) -> None:
        """Raise ``BadEventError`` if the mode refuses an order. ``body`` is the encoded order."""
        self._check_counted(self.orders, order, body)

    def encode_answer(self, answer: Answer) -> bytes:
        """Encode and sign an answer."""
        return self.answers.sign(answer.node, encode(answer))

    def check_answer(self, answer: Answer, body: bytes) -> None:
        """Raise ``BadEventError`` if the mode refuses an answer. ``body`` is the encoded answer."""
        self.answers.check(answer.node, body, answer.signature)

    def encode_presence(self, presence: Presence) -> bytes:
        """Encode and sign a presence."""
        return self._presences.sign(presence.node, encode_presence(presence))

    def check_presence(self, presence: Presence, body: bytes) -> None:
        """Raise ``BadEventError`` if the mode refuses a presence. ``body`` is the encoded presence."""
        self._check_counted(self._presences, presence, body)

    def counts(self, node: str) -> OrderCounts:
        """Return how many orders and presences of a node were accepted unsigned, and how many were refused."""
        return self._counts.get(node, OrderCounts())

    def _check_counted(self, auth: MessageAuth, message: Order | Presence, body: bytes) -> None:
        before = auth.unsigned
        try:
            auth.check(message.node, body, message.signature)
        except BadEventError:
            unsigned, refused = self.counts(message.node)
            self._counts[message.node] = OrderCounts(unsigned, refused + 1)
            raise
        if auth.unsigned > before:
            unsigned, refused = self.counts(message.node)
            self._counts[message.node] = OrderCounts(unsigned + 1, refused)


def event_auth(config: Config, clock: Clock | None = None) -> EventAuth:
    """Create the ``EventAuth`` of this process from the settings. Raises ``ConfigError`` as ``open_keyring`` does."""
    return EventAuth(config.auth_events, open_keyring(config, "auth_events", config.auth_events, clock))


def order_auth(config: Config, clock: Clock | None = None) -> OrderAuth:
    """Create the ``OrderAuth`` of this process from the settings. Raises ``ConfigError`` as ``open_keyring`` does."""
    return OrderAuth(config.auth_orders, open_keyring(config, "auth_orders", config.auth_orders, clock))


def open_keyring(config: Config, setting: str, mode: str, clock: Clock | None = None) -> Keyring | None:
    """Open the file of this process's keys. Returns None if the mode is off, or if it is accept and there is no file.

    Args:
        config: settings of the cell.
        setting: the name of the setting, for the error.
        mode: the value of that setting.
        clock: monotonic time; None for the machine's clock.

    Raises:
        ConfigError: if the file cannot be used, or if the mode needs one and the settings name none.
    """
    if mode == "off" or (mode == "accept" and not config.keys_file):
        return None
    if not config.keys_file:
        command = "nodestate key init" if setting == "auth_store" else "nodestate key init' or 'nodestate key node"
        raise ConfigError(
            f"{setting} is {mode}, so this process needs keys: set keys_file to the file that '{command}' wrote"
        )
    return Keyring(config.keys_file, config.cell, clock or SystemClock())
