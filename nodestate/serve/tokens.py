"""Tokens: the permissions of the clients of the HTTP API.

The file has a line ``ROLE NAME TOKEN`` for each token; empty lines and lines that begin with ``#`` are ignored. Roles
rise from ``read`` over ``schedule`` to ``operate``, and each includes those before it. The file is read again when it
changes, so a token can be added or withdrawn while the service runs.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

import structlog

from nodestate.errors import ConfigError
from nodestate.setting_files import MAX_SECRET_BYTES, open_key_file, require_secret

Role = Literal["open", "read", "schedule", "operate"]
"""``open``: no token is needed. The other roles rise in this order, and each includes those before it."""
ROLES: Final[tuple[str, ...]] = get_args(Role)
SOURCE: Final = "--tokens"
CHECK_S: Final = 1.0
"""Seconds after which the service looks whether the file has changed."""
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]{32,200}")
_NAME: Final = re.compile(r"[A-Za-z0-9._@-]{1,64}")

_log: Final = structlog.get_logger("nodestate.serve.tokens")


class TokenHolder(NamedTuple):
    """The holder of a token."""

    name: str
    role: Role

    def may(self, role: Role) -> bool:
        """True if the holder has this role, or a higher one."""
        return ROLES.index(self.role) >= ROLES.index(role)


class TokenFile:
    """The tokens in a file. Raises ``ConfigError`` if the file cannot be used."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        # Holders by the SHA-256 of their tokens: a look-up by hash takes no longer for a token that is nearly right.
        self._holders, self._version = self._read()
        self._checked_at = time.monotonic()
        # Why the file could not be read at the last look; empty if it could.
        self._reason = ""

    def holder_of(self, token: str) -> TokenHolder | None:
        """Return the holder of a token; None if the file does not have it."""
        self._read_again_if_changed()
        return self._holders.get(_hash_of(token))

    def _read(self) -> tuple[dict[bytes, TokenHolder], tuple[int, int]]:
        try:
            with open_key_file(self._path, SOURCE) as file:
                status = os.fstat(file.fileno())
                require_secret(status, self._path, SOURCE)
                content = file.read(MAX_SECRET_BYTES + 1)
            text = content.decode()
        except OSError as error:
            raise ConfigError(f"{SOURCE}: the file {self._path} can't be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{SOURCE}: the file {self._path} is not UTF-8") from None
        if len(content) > MAX_SECRET_BYTES:
            raise ConfigError(f"{SOURCE}: the file {self._path} has more than {MAX_SECRET_BYTES:,} bytes")
        holders: dict[bytes, TokenHolder] = {}
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            holder, token = self._parsed(number, words)
            if _hash_of(token) in holders:
                raise ConfigError(f"{SOURCE}: line {number} of {self._path} has the token of a line before it")
            holders[_hash_of(token)] = holder
        if not holders:
            raise ConfigError(f"{SOURCE}: the file {self._path} has no token: add a line 'ROLE NAME TOKEN'")
        return holders, (status.st_mtime_ns, status.st_ino)

    def _parsed(self, number: int, words: list[str]) -> tuple[TokenHolder, str]:
        where = f"{SOURCE}: line {number} of {self._path}"
        if len(words) != 3:
            raise ConfigError(f"{where} has {len(words)} words: give ROLE NAME TOKEN")
        role, name, token = words
        if role not in ROLES[1:]:
            raise ConfigError(f"{where}: there is no role {role!r}; give one of {', '.join(ROLES[1:])}")
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{where}: {name!r} is no name: give 1 to 64 letters, digits and . _ @ -")
        if not _TOKEN.fullmatch(token):
            raise ConfigError(
                f"{where}: the token of {name} must have 32 to 200 letters, digits and . _ ~ + / = -; "
                "'openssl rand -hex 32' prints one"
            )
        return TokenHolder(name, role), token  # type: ignore[arg-type]  # it is one of ROLES

    def _read_again_if_changed(self) -> None:
        now = time.monotonic()
        if now - self._checked_at < CHECK_S:
            return
        self._checked_at = now
        try:
            status = self._path.stat()
            if (status.st_mtime_ns, status.st_ino) != self._version:
                self._holders, self._version = self._read()
                _log.info("tokens read again", file=str(self._path), count=len(self._holders))
            self._reason = ""
        except (OSError, ConfigError) as error:
            if str(error) != self._reason:  # it is looked at once a second
                _log.error("the tokens before the change stay in force", file=str(self._path), why=str(error))
            self._reason = str(error)


def _hash_of(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
