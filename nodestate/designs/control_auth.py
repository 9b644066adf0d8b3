"""The modes of the setting ``auth_control``, applied to the control records that one process reads and writes.

| mode | signs | unsigned record | wrong signature |
|---|---|---|---|
| off | no | accepted | not checked |
| accept | if it has an operators' private key | accepted, counted | refused |
| warn | yes | accepted, counted and logged; refused once a signed one was accepted | refused |
| require | yes | refused | refused |

Only operators' commands sign. Consumers write a signed record again byte for byte. A process in mode ``accept`` that
has no public keys cannot check signatures. It accepts every record, and counts each as unsigned.

The signature covers the key under which the record is stored, which contains the cell's name. It also covers all bytes
of the record, including fields of later versions. While it is computed, ``BLANK`` stands in its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nodestate.config import Config
from nodestate.designs.control import CONTROL, SIGNATURE_CHARS, Control
from nodestate.errors import ConfigError
from nodestate.ports import Clock
from nodestate.store.damage import LOGGED_COUNT
from nodestate.store.wire import ENVELOPE_BYTES, seal

if TYPE_CHECKING:
    from nodestate.auth.operator_keys import ControlKeyring, ControlSigner

BLANK: Final = "0" * SIGNATURE_CHARS
"""Stands in the place of the signature while it is computed."""
MAX_JUDGED_COUNT: Final = 64
"""Most stored values whose verdict is remembered, so that a value is checked once and not at each refresh."""


class ControlAuth:
    """Signs and checks control records.

    Args:
        mode: the mode: off, accept, warn or require.
        keyring: the public keys; None if this process has none.
        signer: the operators' private key, which signs; None if this process has none.
    """

    def __init__(
        self, mode: str = "off", keyring: ControlKeyring | None = None, signer: ControlSigner | None = None
    ) -> None:
        self.mode = mode
        """The mode."""
        self.unsigned = 0
        """Number of different records that were accepted without a valid signature."""
        self.refused = 0
        """Number of different records that were refused."""
        self._keyring = keyring
        """The public keys; None if there are none."""
        self._signer = signer
        """The private key; None if there is none."""
        self._has_accepted_signed = False
        """True after a record with a valid signature was read."""
        self._judged: dict[bytes, str] = {}
        """By stored value, the verdict: why the record is refused; empty if it is accepted."""

    def refusal(self, key: str, control: Control, value: bytes) -> str:
        """Return why the mode refuses a stored record; empty if it is accepted.

        Args:
            key: the key under which the record is stored.
            control: the record.
            value: the stored value from which it was decoded.
        """
        if self.mode == "off":
            return ""
        if self._keyring is not None and self._keyring.follow_file():
            self._judged.clear()
        known = self._judged.get(value)
        if known is None or (not control.signature and not known):  # in mode warn, the verdict may have changed
            reason = self._judge(key, control, value)
            if known != reason:
                self._note(control, value, reason)
            known = reason
        return known

    def seal(self, key: str, control: Control) -> bytes:
        """Encode a record as a stored value, signed if this process can sign. ``key``: as ``refusal`` has it."""
        if self._signer is None:
            return CONTROL.pack(control)
        payload = CONTROL.payload(control.with_signature(BLANK))
        signature = self._signer.signature(_label(key) + payload)
        return seal(payload.removesuffix(BLANK.encode()) + signature.encode())

    def require_signer(self) -> None:
        """Raise ``ConfigError`` if other processes would refuse a control record that this process writes.

        There are two such cases. Either the mode is ``warn`` or ``require``, and this process has no private key. Or
        ``control_keys_file`` does not have the public key that belongs to the private key.
        """
        if self._signer is None:
            if self.mode in {"warn", "require"}:
                raise ConfigError(
                    f"auth_control is {self.mode}, so a change of the control record must be signed: set "
                    "operator_key_file to the file that 'nodestate key init --operator' wrote"
                )
        elif self._keyring is not None and not self._keyring.has_key(self._signer.key_id):
            raise ConfigError(
                f"the key {self._signer.key_id} of operator_key_file is not in control_keys_file {self._keyring.path}: "
                "all processes would refuse the change. Copy the file that 'nodestate key init --operator' or "
                "'nodestate key rotate --operator' wrote"
            )

    @property
    def signs(self) -> bool:
        """True if this process has an operators' private key."""
        return self._signer is not None

    def without_checks(self) -> ControlAuth:
        """Return a ``ControlAuth`` that signs as this one does, and accepts every record."""
        return ControlAuth("off", None, self._signer)

    def _judge(self, key: str, control: Control, value: bytes) -> str:
        """Return the verdict on a record that is not in ``_judged``. Args as ``refusal`` has them."""
        if not control.signature:
            if self.mode == "require":
                return "it is not signed, and auth_control is require"
            if self.mode == "warn" and self._has_accepted_signed:
                return "it is not signed, although an earlier one was"
            return ""
        if self._keyring is None:
            return ""
        payload, signature = value[ENVELOPE_BYTES:], control.signature
        content = payload.replace(signature.encode(), BLANK.encode())
        if len(signature) != SIGNATURE_CHARS or payload.count(signature.encode()) != 1:
            return "its signature has another form"
        reason = self._keyring.fault_of(signature, _label(key) + content)
        self._has_accepted_signed |= not reason
        return reason

    def _note(self, control: Control, value: bytes, reason: str) -> None:
        """Remember a new verdict, count it and log it."""
        if len(self._judged) >= MAX_JUDGED_COUNT:
            self._judged.clear()
        self._judged[value] = reason
        is_unsigned = not reason and (not control.signature or self._keyring is None)
        self.refused += bool(reason)
        self.unsigned += is_unsigned
        if (not reason and not (is_unsigned and self.mode == "warn")) or self.refused > LOGGED_COUNT:
            return
        import structlog  # noqa: PLC0415  it would take half of the time of `import nodestate`

        log = structlog.get_logger("nodestate.auth")
        if reason:
            log.warning(
                "a control record is refused", version=control.version, reason=reason, remedy="nodestate doctor"
            )
        else:
            log.warning(
                "the control record is not signed; mode require would refuse it",
                version=control.version,
                remedy="nodestate design sign",
            )


def _label(key: str) -> bytes:
    return f"nodestate control record\0{key}\0".encode()


def control_auth(config: Config, clock: Clock, *, signs: bool = False) -> ControlAuth:
    """Create the ``ControlAuth`` of this process from the settings.

    Args:
        config: settings of the cell.
        clock: monotonic time.
        signs: whether the process is an operator's command, which signs the records that it writes.

    Raises:
        ConfigError: if a file of keys cannot be used, if the mode needs public keys and the settings name no file, or
            if the package ``cryptography`` is missing.
    """
    mode = config.auth_control
    if mode == "off":
        return ControlAuth()
    if not config.control_keys_file and mode != "accept":
        raise ConfigError(
            f"auth_control is {mode}, so this process needs the operators' public keys: set control_keys_file to the "
            "file that 'nodestate key init --operator' wrote"
        )
    from nodestate.auth.operator_keys import ControlKeyring, ControlSigner  # noqa: PLC0415  it imports structlog

    keyring = ControlKeyring(config.control_keys_file, config.cell, clock) if config.control_keys_file else None
    signer = ControlSigner(config.operator_key_file, config.cell) if signs and config.operator_key_file else None
    return ControlAuth(mode, keyring, signer)
