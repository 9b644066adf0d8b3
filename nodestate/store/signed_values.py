"""Signatures of stored values: a store that signs each value that it writes, and checks each value that it reads.

A signed value has a header before the value as it would stand unsigned::

    b"N" + format version 3 + id of the secret (4 bytes) + code (16 bytes) + value

The header without the code is its *mark*. The code is keyed BLAKE2b over the name of the item (its memcached key) and
the value, so a value that is copied to another name is refused. The signing key is derived from the secret for the
purpose ``store``, so a process that can check values can also sign them.

While two secrets are in force, a value has two headers, and is valid if the code of either one is valid. The header of
the older secret stands first, and its code covers the other header. So no value is refused while a cell changes its
secret.

| mode | signs | unsigned value | wrong signature |
|---|---|---|---|
| off | no | accepted | not checked |
| accept | if it has keys | accepted, counted | refused |
| warn | yes | accepted, counted, logged | refused |
| require | yes | refused | refused |

A refused value counts as missing, as a damaged value does (docs/adr/0042). A reader gets an item with its CAS id and,
instead of the value, a text that no codec accepts. So the writer can replace it.

An item is ``outdated`` if this process would write it with other headers. If the item that names a partition's epoch is
outdated, the owner of the partition writes all of its values again, and that item last.
"""

from __future__ import annotations

import hashlib
import hmac
import operator
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from nodestate.config import Config
from nodestate.errors import ConfigError, ItemTooLargeError
from nodestate.ports import ClaimStore, Clock, Item, Key, Put, Write, WriteResult
from nodestate.store.wire import BAD_SIGNATURE, UNSIGNED, refused_value

if TYPE_CHECKING:
    from nodestate.auth.key_file import Keyring

STORE: Final = "store"
"""The purpose of the signing keys; ``nodestate.auth.keys`` has the other purposes. These keys belong to no node."""
SIGNED: Final = b"N\x03"
"""Begins a signed value. No other value begins with these bytes."""
KEY_ID_BYTES: Final = 4
CODE_BYTES: Final = 16
MARK_BYTES: Final = len(SIGNED) + KEY_ID_BYTES
HEADER_BYTES: Final = MARK_BYTES + CODE_BYTES
"""Bytes that one header adds to a value."""
HEADERS_COUNT: Final = 2
"""Most headers of a value: one for each secret in force."""
LOGGED_COUNT: Final = 1_000
"""Most unsigned values that one process logs, in mode ``warn``."""
LACKING: Final = "lacking"
"""The reason in ``ValueCounts.examples`` for a valid value that lacks the code of a secret in force."""


_value_of = operator.attrgetter("value")
_is_signed = operator.methodcaller("startswith", SIGNED)


class ValueCounts:
    """Counters of the values that a process has read. Safe for several threads."""

    def __init__(self) -> None:
        self.signed = 0
        """Number of values with a valid signature."""
        self.lacking = 0
        """Of the ``signed`` values, the number that lack the code of a secret in force.

        They are refused as soon as the other secret is revoked.
        """
        self.unsigned = 0
        """Number of values that were accepted without a valid signature."""
        self.refused = 0
        """Number of values that were refused: unsigned, or wrongly signed."""
        self.examples: dict[str, str] = {}
        """By reason (``unsigned``, ``bad-signature`` or ``lacking``), the memcached key of the first such value."""
        self._lock = threading.Lock()
        """Held while a counter or an example changes."""

    def add_signed(self, count: int) -> None:
        """Count values that have the codes of all secrets in force."""
        with self._lock:
            self.signed += count

    def add_lacking(self, key: str) -> None:
        """Count a value with a valid signature that lacks the code of a secret in force."""
        with self._lock:
            self.signed += 1
            self.lacking += 1
            self.examples.setdefault(LACKING, key)

    def add_unsigned(self, key: str, count: int = 1) -> None:
        """Count values that were accepted without a valid signature. ``key``: the memcached key of one of them."""
        with self._lock:
            self.unsigned += count
            self.examples.setdefault(UNSIGNED, key)

    def add_refused(self, key: str, reason: str) -> None:
        """Count a refused value."""
        with self._lock:
            self.refused += 1
            self.examples.setdefault(reason, key)


VALUES: Final = ValueCounts()
"""Counters of this process."""


class ValueAuth:
    """Signs and checks stored values.

    Args:
        mode: the mode: off, accept, warn or require.
        keyring: the keys of this process; None if it has none.
        counts: counts the values that are read.
    """

    def __init__(self, mode: str = "off", keyring: Keyring | None = None, counts: ValueCounts = VALUES) -> None:
        self.counts = counts
        """Counts the values that are read."""
        self._mode = mode
        """The mode."""
        self._keyring = keyring if mode != "off" else None
        """The keys; None if nothing is signed or checked."""
        self._readings_count = 0
        """``Keyring.readings_count`` at the time when the marks and the bases were made."""
        self._marks: tuple[bytes, ...] = ()
        """The marks of the headers that this process writes, the one of the oldest secret first."""
        self._bases: dict[bytes, hashlib.blake2b] = {}
        """By mark, BLAKE2b that has read the signing key. To copy it takes half of the time of making another one."""
        self._logged: set[str] = set()
        """Memcached keys of unsigned values that were logged."""

    @property
    def key_ids(self) -> list[str]:
        """The ids of the secrets in force, the oldest first; empty if this process has no keys."""
        if self._keyring is not None:
            self._follow(self._keyring)
        return [mark[len(SIGNED) :].hex() for mark in self._marks]

    def signed(self, writes: Sequence[Write]) -> Sequence[Write]:
        """Return the same writes with signed values, if this process signs."""
        if self._keyring is None:
            return writes
        self._follow(self._keyring)
        covered = [write.key.encode() + b"\0" for write in writes]
        values = [write.value for write in writes]
        for mark in reversed(self._marks):  # the code of the oldest secret covers the other header
            copy_of_base = self._bases[mark].copy
            for at, value in enumerate(values):
                code = copy_of_base()  # as in _code, without a call for each value
                code.update(covered[at])
                code.update(value)
                values[at] = b"".join((mark, code.digest(), value))
        return [
            write if write.put is Put.DELETE else Write(write.put, write.key, value, *write[3:])
            for write, value in zip(writes, values, strict=True)
        ]

    def checked(self, items: dict[Key, Item]) -> dict[Key, Item]:
        """Check items that were read, and change them in place: to unsigned values, or to ``refused_value``."""
        if self._keyring is None:
            return self._unchecked(items)
        self._follow(self._keyring)
        others: list[Key] = []
        if len(self._marks) == 1:  # nearly always: this loop takes half of the time of the general one
            [mark] = self._marks
            copy_of_base, same = self._bases[mark].copy, hmac.compare_digest
            for key, item in items.items():
                value = item.value
                if value.startswith(mark):
                    content = value[HEADER_BYTES:]
                    code = copy_of_base()  # as in _code, without a call for each item
                    code.update(f"{key}\0".encode())
                    code.update(content)
                    if same(code.digest(), value[MARK_BYTES:HEADER_BYTES]) and not content.startswith(SIGNED):
                        items[key] = Item(content, item.cas, item.ttl_s)
                        continue
                others.append(key)
            self.counts.add_signed(len(items) - len(others))
        else:
            others += items
        for key in others:
            items[key] = self._checked(str(key), items[key])
        return items

    def _unchecked(self, items: dict[Key, Item]) -> dict[Key, Item]:
        """Remove the headers without a check, because this process has no keys."""
        if self._mode != "off" and items:
            self.counts.add_unsigned(str(next(iter(items))), len(items))
        if any(map(_is_signed, map(_value_of, items.values()))):
            for key, item in items.items():
                headers, content = _split(item.value)
                if headers:
                    items[key] = Item(content, item.cas, item.ttl_s, outdated=True)
        return items

    def _checked(self, key: str, item: Item) -> Item:
        """Return one item as ``checked`` changes it, whatever headers it has."""
        headers, content = _split(item.value)
        if not headers:
            return self._without_signature(key, item)
        valid = self._valid_marks(key, headers, item.value)
        if not valid:
            return self._refused(key, item, BAD_SIGNATURE)
        if valid.issuperset(self._marks):
            self.counts.add_signed(1)
        else:
            self.counts.add_lacking(key)
        marks = tuple(header[:MARK_BYTES] for header in headers)
        return Item(content, item.cas, item.ttl_s, outdated=marks != self._marks or not valid.issuperset(marks))

    def _valid_marks(self, key: str, headers: Sequence[bytes], value: bytes) -> frozenset[bytes]:
        """Return the marks of the first header with a valid code and of the headers after it, which it covers."""
        for at, header in enumerate(headers):
            value = value[HEADER_BYTES:]
            base = self._bases.get(header[:MARK_BYTES])
            if base is not None and hmac.compare_digest(_code(base, key, value), header[MARK_BYTES:]):
                return frozenset(one[:MARK_BYTES] for one in headers[at:])
        return frozenset()

    def _without_signature(self, key: str, item: Item) -> Item:
        if self._mode == "require":
            return self._refused(key, item, UNSIGNED)
        self.counts.add_unsigned(key)
        if self._mode == "warn" and key not in self._logged and len(self._logged) < LOGGED_COUNT:
            self._logged.add(key)
            import structlog  # noqa: PLC0415  as in nodestate.auth, which a process without keys does not load

            structlog.get_logger("nodestate.auth").warning(
                "a stored value has no signature; mode require would refuse it", key=key
            )
        return Item(item.value, item.cas, item.ttl_s, outdated=True)

    def _refused(self, key: str, item: Item, reason: str) -> Item:
        self.counts.add_refused(key, reason)
        return Item(refused_value(reason), item.cas, item.ttl_s, outdated=True)

    def _follow(self, keyring: Keyring) -> None:
        """Use the keys that the file has now, because it may have changed."""
        readings_count = keyring.readings_count
        if readings_count == self._readings_count:
            return
        self._readings_count = readings_count
        keys = keyring.keys_in_force(STORE, "")
        if keys:  # none: it is a file of a node's keys now
            self._marks = tuple(SIGNED + bytes.fromhex(one.id) for one in keys)
            made = (hashlib.blake2b(key=one.key, digest_size=CODE_BYTES) for one in keys)
            self._bases = dict(zip(self._marks, made, strict=True))


def _code(base: hashlib.blake2b, key: str, content: bytes) -> bytes:
    made = base.copy()
    made.update(key.encode() + b"\0")
    made.update(content)
    return made.digest()


def _split(value: bytes) -> tuple[list[bytes], bytes]:
    """Return the headers of a stored value, and the value without them."""
    headers: list[bytes] = []
    while value.startswith(SIGNED) and len(headers) < HEADERS_COUNT:
        headers.append(value[:HEADER_BYTES])
        value = value[HEADER_BYTES:]
    return headers, value


def value_auth(config: Config, clock: Clock, counts: ValueCounts = VALUES) -> ValueAuth:
    """Create the ``ValueAuth`` of this process from the settings.

    Raises ``ConfigError`` if the mode needs the secrets of the cell, and the settings do not name their file.
    """
    if config.auth_store == "off":
        return ValueAuth(counts=counts)
    from nodestate.auth.message_auth import open_keyring  # noqa: PLC0415  it would take half of the time of a reader

    keyring = open_keyring(config, "auth_store", config.auth_store, clock)
    if keyring is not None and not keyring.keys_in_force(STORE, ""):
        if config.auth_store != "accept":
            raise ConfigError(
                f"auth_store is {config.auth_store}, and keys_file {config.keys_file} has keys of nodes only: give the "
                "file that 'nodestate key init' wrote"
            )
        keyring = None
    return ValueAuth(config.auth_store, keyring, counts)


class SignedStore:
    """A ``ports.ClaimStore`` that signs the values that it writes, and checks the values that it reads.

    Its callers give and get unsigned values. ``fetch`` does not raise an error for a value that it refuses: it returns
    a text that no codec accepts, so the caller treats the value as damaged.

    Args:
        inner: the store that holds the signed values: a memcached server, or a double of it in tests.
        auth: signs and checks the values.
    """

    def __init__(self, inner: ClaimStore, auth: ValueAuth) -> None:
        self._inner = inner
        """The store that holds the signed values."""
        self._auth = auth
        """Signs and checks them."""

    @property
    def name(self) -> str:
        """See ``ports.Store``."""
        return self._inner.name

    @property
    def max_value_bytes(self) -> int:
        """See ``ports.Store``. The same in all modes, so that each value still fits after a change of the mode."""
        return self._inner.max_value_bytes - HEADERS_COUNT * HEADER_BYTES

    def fetch(self, keys: Sequence[Key], *, values_only: bool = False) -> dict[Key, Item]:
        """See ``ports.Store``."""
        return self._auth.checked(self._inner.fetch(keys, values_only=values_only))

    def write(self, writes: Sequence[Write]) -> list[WriteResult]:
        """See ``ports.Store``."""
        signed = self._auth.signed(writes)
        try:
            return self._inner.write(signed)
        except ItemTooLargeError as error:
            added = HEADER_BYTES * len(self._auth.key_ids)
            raise ItemTooLargeError(
                error.server, error.key, error.size_bytes - added, error.limit_bytes - added
            ) from None

    def server_time(self) -> float:
        """See ``ports.ClaimStore``."""
        return self._inner.server_time()

    def server_time_at(self, moment: float) -> float | None:
        """See ``ports.Store``."""
        return self._inner.server_time_at(moment)

    def close(self) -> None:
        """See ``ports.Store``."""
        self._inner.close()


def signed_stores(stores: Iterable[ClaimStore], auth: ValueAuth) -> list[ClaimStore]:
    """Return each store as a ``SignedStore``."""
    return [SignedStore(store, auth) for store in stores]
