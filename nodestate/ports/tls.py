"""TLS of a client: the files that the settings name, the context of a connection, and its errors in words."""

from __future__ import annotations

import ssl
from typing import Final, NamedTuple

_WRONG_NAME: Final = frozenset({62, 64})
"""OpenSSL's codes for a certificate with another host name or another IP address."""
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"})
"""OpenSSL's reasons if the server's first bytes are not TLS."""


class TlsFiles(NamedTuple):
    """The PEM files for connections to one kind of server, as the settings name them."""

    setting: str
    """Beginning of the settings' names: ``broker`` or ``store``."""
    ca: str = ""
    """Certificates of the authorities that may sign the server's certificate. Empty: the system's authorities."""
    cert: str = ""
    """Certificate that the client presents. Empty: none."""
    key: str = ""
    """Private key of ``cert``. Empty: it is in the same file."""


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """Return a context that verifies the server's certificate and its name.

    Raises ``OSError``, with the setting and the file in its text, if a file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=files.ca or None)
    except OSError as error:
        raise OSError(
            f"setting {files.setting}_ca, {files.ca!r}, is no file with certificates in PEM ({_reason(error)})"
        ) from None
    if files.cert:
        try:
            context.load_cert_chain(files.cert, files.key or None, password=_no_password)
        except OSError as error:
            keys = f"{files.setting}_key, {files.key!r}" if files.key else "its key in the same file"
            raise OSError(
                f"setting {files.setting}_cert, {files.cert!r}, with {keys}, is no certificate in PEM with its private "
                f"key without a password ({_reason(error)})"
            ) from None
    return context


def _no_password() -> str:
    """Without this function, OpenSSL would ask for the password of a key at the terminal."""
    return ""


def _reason(error: OSError) -> str:
    reason = getattr(error, "reason", None) or error.strerror or str(error)
    return str(reason).replace("_", " ").lower()


def tls_cause(error: ssl.SSLError, files: TlsFiles, host: str) -> str:
    """Explain why a TLS connection to ``host`` failed, and which setting to change."""
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _WRONG_NAME:
            return (
                f"the certificate of {host} is for another name: name the server in the setting {files.setting} as its "
                "certificate does, or give the server a certificate with this name"
            )
        if error.verify_code == _EXPIRED:
            return f"the certificate of {host} has expired: give the server a new one"
        if error.verify_code == _NOT_YET_VALID:
            return f"the certificate of {host} is not valid yet: compare the clocks of this machine and the server"
        known = f"those in {files.setting}_ca, {files.ca!r}" if files.ca else "the system's authorities"
        return (
            f"the certificate of {host} is not signed by {known} ({error.verify_message}): give the file with its "
            f"authority's certificate as {files.setting}_ca"
        )
    if "ALERT" in reason and any(part in reason for part in ("CERTIFICATE", "UNKNOWN_CA", "HANDSHAKE_FAILURE")):
        said = reason.rpartition("ALERT_")[2].replace("_", " ").lower()
        if not files.cert:
            return (
                f"{host} accepts no client without a certificate ({said}): give {files.setting}_cert and "
                f"{files.setting}_key"
            )
        return (
            f"{host} does not accept the certificate in {files.setting}_cert, {files.cert!r} ({said}): give one that "
            "its authority signed"
        )
    if isinstance(error, ssl.SSLEOFError):
        return (
            f"{host} ended the connection. If it does so at each connect, it accepts only clients with a certificate "
            f"that its authority signed: give {files.setting}_cert and {files.setting}_key"
        )
    if reason in _NO_TLS:
        return f"{host} does not answer in TLS: give its TLS port in the setting {files.setting}, or a URL without TLS"
    return f"TLS with {host} failed: {_reason(error)}"
