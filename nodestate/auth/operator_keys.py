"""The operators' Ed25519 keys, which sign the control record of a cell.

Operators have the private keys in one file; all processes that follow the control record have the public keys in
another one. With a public key, a process can check a signature and cannot make one. Two keys can be in force at a time,
so a cell changes to a new key step by step.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import msgspec
from msgspec import Meta

from nodestate.auth.followed_file import FollowedFile
from nodestate.auth.key_file import MAX_FILE_BYTES
from nodestate.auth.keys import KeyId
from nodestate.auth.signatures import KEY_ID_CHARS
from nodestate.errors import ConfigError, KeyStepError
from nodestate.ports import Clock
from nodestate.setting_files import open_key_file, require_not_writable, require_secret

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

KEYS_IN_FORCE_COUNT: Final = 2
"""Most key pairs that are in force at a time."""
PRIVATE_SETTING: Final = "operator_key_file"
"""The setting that names the file of the private keys."""
PUBLIC_SETTING: Final = "control_keys_file"
"""The setting that names the file of the public keys."""

_Key = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class OperatorKey(msgspec.Struct, frozen=True, kw_only=True):
    """One private key."""

    id: KeyId
    private_key: _Key
    """In hexadecimal digits."""
    created_at: float
    """Seconds since 1970."""


class OperatorKeys(msgspec.Struct, frozen=True, tag_field="kind", tag="operator", kw_only=True):
    """The private keys of a cell's operators."""

    cell: str
    keys: Annotated[tuple[OperatorKey, ...], Meta(min_length=1, max_length=KEYS_IN_FORCE_COUNT)]
    """The keys in force, the oldest first. The newest one signs."""


class ControlKey(msgspec.Struct, frozen=True, kw_only=True):
    """One public key."""

    id: KeyId
    public_key: _Key
    """In hexadecimal digits."""
    created_at: float
    """Seconds since 1970."""


class ControlKeys(msgspec.Struct, frozen=True, tag_field="kind", tag="control", kw_only=True):
    """The public keys of a cell's operators."""

    cell: str
    keys: Annotated[tuple[ControlKey, ...], Meta(min_length=1, max_length=KEYS_IN_FORCE_COUNT)]
    """The keys in force, the oldest first."""
    revoked_ids: dict[KeyId, float] = {}
    """Ids of revoked keys, with the time in seconds since 1970."""


KeyPairs = tuple[OperatorKeys, ControlKeys]
"""The contents of both files, the private keys first."""
_K = TypeVar("_K", OperatorKeys, ControlKeys)


def new_key_pair(now: float) -> tuple[OperatorKey, ControlKey]:
    """Return a random key pair. ``now`` is in seconds since 1970. Raises ``ConfigError`` without ``cryptography``."""
    _require_package()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415  see _require_package

    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    key_id = hashlib.sha256(b"nodestate key id" + public).hexdigest()[:KEY_ID_CHARS]
    return (
        OperatorKey(id=key_id, private_key=private.private_bytes_raw().hex(), created_at=now),
        ControlKey(id=key_id, public_key=public.hex(), created_at=now),
    )


def with_new_pair(pairs: KeyPairs, now: float) -> KeyPairs:
    """Return the contents of both files with one more key pair. ``now`` is in seconds since 1970.

    Raises ``KeyStepError`` if ``KEYS_IN_FORCE_COUNT`` keys are in force already.
    """
    private, public = pairs
    if max(len(private.keys), len(public.keys)) == KEYS_IN_FORCE_COUNT:
        private_ids, public_ids = ([one.id for one in keys.keys] for keys in pairs)
        half = next(
            (key_id for key_id in (*public_ids, *private_ids) if key_id not in {*private_ids} & {*public_ids}), ""
        )
        if half:
            reason = f"the key {half} is in one of the two files only, as after an interrupted command"
        else:
            reason = f"{KEYS_IN_FORCE_COUNT} operators' keys are in force already, and {public_ids[0]} is the older one"
        raise KeyStepError(reason, f"nodestate key revoke --operator {half or public_ids[0]}")
    new_private, new_public = new_key_pair(now)
    return (
        msgspec.structs.replace(private, keys=(*private.keys, new_private)),
        msgspec.structs.replace(public, keys=(*public.keys, new_public)),
    )


def without_pair(pairs: KeyPairs, key_id: str, now: float) -> KeyPairs:
    """Return the contents of both files without one key pair, and with its id among the revoked ids.

    Processes that have read the new file of public keys refuse the signatures of this pair. An interrupted command may
    have left the key in one of the files only; it is then removed from that file.

    Args:
        pairs: the contents of both files.
        key_id: the id of the key pair.
        now: the present time, in seconds since 1970.

    Raises:
        KeyStepError: if a file would have no key left.
        ConfigError: if neither file has a key of this id.
    """
    private, public = pairs
    if all(one.id != key_id for keys in pairs for one in keys.keys):
        raise ConfigError(f"{key_id!r} is no operators' key in force; give one of {_ids(public)}")
    left = tuple(one for one in private.keys if one.id != key_id)
    public_left = tuple(one for one in public.keys if one.id != key_id)
    if not left or not public_left:
        raise KeyStepError(f"{key_id} is the only operators' key in force", "nodestate key rotate --operator")
    return (
        msgspec.structs.replace(private, keys=left),
        msgspec.structs.replace(public, keys=public_left, revoked_ids={**public.revoked_ids, key_id: now}),
    )


def read_operator_keys(path: str, cell: str) -> OperatorKeys:
    """Read the file of the private keys. Raises ``ConfigError`` as ``read_control_keys``, and if others can read it."""
    return _read(path, cell, OperatorKeys, PRIVATE_SETTING)


def read_control_keys(path: str, cell: str) -> ControlKeys:
    """Read the file of the public keys.

    Raises ``ConfigError`` if it cannot be read, is damaged, is of another cell, or can be written by other users.
    """
    return _read(path, cell, ControlKeys, PUBLIC_SETTING)


def _read(path: str, cell: str, kind: type[_K], setting: str) -> _K:
    try:
        with open_key_file(path, setting) as file:
            status = os.fstat(file.fileno())
            if kind is OperatorKeys:
                require_secret(status, path, f"setting {setting}")
            else:
                require_not_writable(status, path, f"setting {setting}")
            keys = msgspec.json.decode(file.read(MAX_FILE_BYTES), type=kind)
    except OSError as error:
        raise ConfigError(
            f"{setting} {path}: {error.strerror or error}; create it with 'nodestate key init --operator', or copy it "
            "from the machine of an operator"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError):  # the text may contain a secret
        raise ConfigError(f"{setting} {path} is no such file of keys; restore it from a copy") from None
    if keys.cell != cell:
        raise ConfigError(
            f"{setting} {path} has keys of cell {keys.cell!r}, and this process belongs to cell {cell!r}; give the "
            "file of this cell"
        )
    if len({one.id for one in keys.keys}) < len(keys.keys):
        raise ConfigError(f"{setting} {path} has two keys of one id; restore it from a copy")
    return keys


class ControlSigner:
    """Signs with the newest private key of a file. Raises ``ConfigError`` if the file or the package is missing."""

    def __init__(self, path: str, cell: str) -> None:
        _require_package()
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415  see _require_package

        key = read_operator_keys(path, cell).keys[-1]
        self.key_id = key.id
        """The id of the key."""
        self._key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(key.private_key))
        """The key."""

    def signature(self, content: bytes) -> str:
        """Return the signature of some content: the id of the key, then 64 bytes as 128 hexadecimal digits."""
        return self.key_id + self._key.sign(content).hex()


class ControlKeyring:
    """The public keys of one file. A changed file is read again, see ``FollowedFile``.

    Args:
        path: the file.
        cell: the name of the cell that the keys must belong to.
        clock: monotonic time.

    Raises:
        ConfigError: if the file cannot be used, or the package is missing.
    """

    def __init__(self, path: str, cell: str, clock: Clock) -> None:
        _require_package()
        self.path = path
        """The file."""
        self._file = FollowedFile(path, lambda: read_control_keys(path, cell), clock)
        """The file and the keys that were read last."""
        self._use(self._file.content)

    def follow_file(self) -> bool:
        """Read the file if it has changed. Returns True if it was read, so that other keys may be in force now."""
        if not self._file.follow():
            return False
        self._use(self._file.content)
        return True

    def has_key(self, key_id: str) -> bool:
        """Return whether the public key of this id is in force."""
        return key_id in self._public

    def fault_of(self, signature: str, content: bytes) -> str:
        """Return why a signature is not valid for some content; empty if it is valid."""
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  see _require_package

        key_id = signature[:KEY_ID_CHARS]
        if key_id in self._revoked:
            return f"it is signed with the key {key_id!a}, which is revoked"
        key = self._public.get(key_id)
        if key is None:
            return f"it is signed with the key {key_id!a:.20}, which {self.path} does not have"
        try:
            key.verify(bytes.fromhex(signature[KEY_ID_CHARS:]), content)
        except (InvalidSignature, ValueError):
            return "its signature does not match: it was changed, or belongs to another cell"
        return ""

    def _use(self, keys: ControlKeys) -> None:
        """Check signatures with these keys from now on."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415  see _require_package

        self._public: dict[str, Ed25519PublicKey] = {
            one.id: Ed25519PublicKey.from_public_bytes(bytes.fromhex(one.public_key)) for one in keys.keys
        }
        """By id, the keys in force."""
        self._revoked = frozenset(keys.revoked_ids)
        """The ids of revoked keys."""


def _ids(keys: ControlKeys) -> str:
    return ", ".join(one.id for one in keys.keys)


def _require_package() -> None:
    """Raise ``ConfigError`` if the package ``cryptography`` is missing.

    The package is an extra, and takes 30 ms to import. So only processes that sign or check control records import it.
    """
    try:
        import cryptography.hazmat.primitives.asymmetric.ed25519  # noqa: F401, PLC0415  it is an extra
    except ImportError as error:
        raise ConfigError(
            f"signatures of the control record (setting auth_control) need the package cryptography ({error}): pip "
            "install 'nodestate[ed25519]'"
        ) from None
