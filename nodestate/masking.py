"""Passwords are masked in every text that leaves the process: messages, logs, ``repr``, tracebacks and JSON.

``safe_url`` masks the value of a setting. ``safe_text`` masks a text that another library or a user wrote. Both hide
too much rather than too little: a URL need not be valid, and a password may contain any character.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote

MASK: Final = "***"
MIN_SECRET_CHARS: Final = 4
"""Shorter passwords are not searched for in texts of other libraries, because they would match by chance."""

_NEXT_URL: Final = re.compile(r"[;,]\s*(?=[A-Za-z][A-Za-z0-9+.-]*://)")
"""Separates the URLs of a list for failover."""
_QUERY_VALUE: Final = re.compile(r"([?&;])([^=&;?]+)=([^&]*(?:&(?![^&=;?]+=)[^&]*)*)")
"""A parameter. Text after ``&`` that is no other parameter belongs to the value, because it may be half a password."""
_SECRET_NAME: Final = re.compile(r"(?i)pass|pwd|secret|token|credential|auth|key\Z")
_SERVERS: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]*\]?|[^:\[\]]*)(?::\d{0,5})?")
"""A host and its port, without a user."""
_LOGIN_IN_TEXT: Final = re.compile(r"(?<=://)([^\s/@:'\"]*):[^\s'\"]*@")
_QUERY_IN_TEXT: Final = re.compile(
    r"(?i)([?&;][^\s=&;?'\"]*(?:password|passwd|pwd|secret|token)[^\s=&;?'\"]*=)[^\s&'\"]+"
)
_DELIMITERS: Final = re.compile(r"[@/?#:;,&=\s]+")


def safe_url(url: str) -> str:
    """Return a URL, or several separated by ``;`` or ``,``, without passwords."""
    return _masked(url)[0]


def safe_text(text: str, *urls: str, passwords: Iterable[str] = ()) -> str:
    """Return a text without the passwords of the URLs that it contains.

    Args:
        text: such as the error of another library.
        urls: settings. Their passwords, and parts of the passwords, are masked in the whole text. A password that is
            also the user or the host of its URL is no secret, and stays.
        passwords: settings that are passwords. They are masked in the whole text.
    """
    for secret in _secrets_of(urls, passwords):
        text = text.replace(secret, MASK)
    if "://" in text:
        text = _LOGIN_IN_TEXT.sub(rf"\1:{MASK}@", _QUERY_IN_TEXT.sub(rf"\1{MASK}", text))
    return text


def _secrets_of(urls: tuple[str, ...], passwords: Iterable[str]) -> list[str]:
    """The passwords of these URLs, decoded and not, and their parts: a library may take a part for a host or a port."""
    found = {password for password in passwords if len(password) >= MIN_SECRET_CHARS}
    for url in urls:
        shown, secrets = _masked(url)
        for secret in secrets:
            for whole in (secret, unquote(secret)):
                # In a list, the text before the password was masked with it.
                ends = [whole[match.end() :] for match in re.finditer(":", whole)]
                parts = {whole, *ends, *_DELIMITERS.split(whole)}
                found |= {part for part in parts if len(part) >= MIN_SECRET_CHARS and part not in shown}
    return sorted(found, key=len, reverse=True)


def _masked(url: str) -> tuple[str, list[str]]:
    """Return the masked URL, and each secret that was masked."""
    secrets: list[str] = []
    parts = _NEXT_URL.split(url)
    if "@" in url and any("@" not in part and _without_password(part, []) != part for part in parts):
        return _without_password(url, secrets), secrets  # a part of a password looks like the next URL
    shown = [_without_password(part, secrets) for part in parts]
    separators = _NEXT_URL.findall(url)
    return "".join(part + mark for part, mark in zip(shown, [*separators, ""], strict=True)), secrets


def _without_password(url: str, secrets: list[str]) -> str:
    def without_value(match: re.Match[str]) -> str:
        mark, name, value = match.groups()
        if not value or not _SECRET_NAME.search(unquote(name)):
            return match[0]
        secrets.append(value)
        return f"{mark}{name}={MASK}"

    url = _QUERY_VALUE.sub(without_value, url)
    scheme, mark, rest = url.partition("://") if "://" in url else ("", "", url)
    login, at, place = rest.rpartition("@")
    if at:
        user, colon, password = login.partition(":")
        if not colon:
            return url
        secrets.append(password)
        return f"{scheme}{mark}{user}:{MASK}@{place}"
    # No user: but text after a colon that is no port may be a password whose @ was forgotten or encoded.
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if mark and not all(_SERVERS.fullmatch(server) for server in authority.split(",")):
        user, _, password = rest.partition(":")
        secrets.append(password)
        return f"{scheme}{mark}{user}:{MASK}"
    return url
