"""Access to the HTTP API: from which pages of browsers, and with which token.

A browser sends requests for any page that it shows. A page of a foreign site must not read the cell through the browser
of an operator, neither by a name that it lets point to this service (``Host``), nor with the operator's cookie
(``Origin``).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Final

from starlette.datastructures import Headers

from nodestate.errors import ConfigError
from nodestate.serve.problems import ProblemError, blank, problem
from nodestate.serve.tokens import Role, TokenFile, TokenHolder

COOKIE: Final = "nodestate_token"
"""Name of the cookie that holds the token of a browser."""
COOKIE_MAX_AGE_S: Final = 12 * 3600
"""Seconds after which a browser forgets its cookie."""
MISDIRECTED: Final = 421
"""HTTP status for a request that names another host."""
_BEARER: Final = re.compile(r"(?i)bearer +(\S+) *")
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")


class Access:
    """The checks of each request before its route sees it.

    Args:
        tokens: the tokens; None: every request that passes the other checks has all roles.
        hosts: names by which clients may call the service, besides IP addresses, ``localhost`` and the name of this
            machine.
    """

    def __init__(self, tokens: TokenFile | None = None, hosts: Sequence[str] = ()) -> None:
        self._tokens = tokens
        self._hosts = {"localhost", socket.gethostname().lower(), *(host.lower() for host in hosts)}

    @property
    def has_tokens(self) -> bool:
        """True if requests need tokens."""
        return self._tokens is not None

    def require_direct(self, scheme: str, headers: Headers) -> None:
        """Raise ``ProblemError`` if a request names a foreign host, or comes from a page of another site."""
        host = headers.get("host", "")
        if host and not self._is_known(host):
            raise blank(
                MISDIRECTED,
                f"this service does not know the host {host[:200]!a}: call it by its address, or start it with "
                "--allow-host NAME",
            )
        origin = headers.get("origin")
        if origin is not None and origin.lower() != f"{scheme}://{host.lower()}":
            raise problem("unauthorized", f"requests of pages from {origin[:200]!a} are refused", status=403)

    def _is_known(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].lower().removeprefix("[").removesuffix("]")
        return name.removesuffix(".") in self._hosts or _is_address(name)

    def require_role(self, role: Role, method: str, headers: Headers) -> TokenHolder | None:
        """Return the holder of the request's token; None if the service has no tokens or the route is open.

        A cookie counts for requests that only read: a browser adds it by itself, also for a page of another site.

        Raises:
            ProblemError: unauthorized, if there is no token or an unknown one, or its role is too low.
        """
        if role == "open" or self._tokens is None:
            return None
        token = _bearer_of(headers) or (_cookie_of(headers) if method in ("GET", "HEAD") else "")
        holder = self._tokens.holder_of(token) if token else None
        if holder is None:
            detail = "its token is unknown" if token else "it has no token: send 'Authorization: Bearer TOKEN'"
            raise problem("unauthorized", f"the request is refused: {detail}", headers={"WWW-Authenticate": "Bearer"})
        if not holder.may(role):
            raise problem(
                "unauthorized", f"this needs the role {role}; the token of {holder.name} has {holder.role}", status=403
            )
        return holder

    def permits(self, role: Role, method: str, headers: Headers) -> bool:
        """True if the headers of a request still have a token of this role, as ``require_role`` says."""
        try:
            self.require_role(role, method, headers)
        except ProblemError:
            return False
        return True


def token_of(headers: Headers) -> str:
    """Return the token in the header ``Authorization``; empty if there is none."""
    return _bearer_of(headers)


def require_safe(*, is_loopback: bool, has_tokens: bool, has_tls: bool, insecure: bool) -> str:
    """Decide whether a service may start, and return a warning to log; empty if all is well.

    Raises ``ConfigError`` if other machines could use the service without a token, and the operator has not asked for
    that.
    """
    if is_loopback or (has_tokens and has_tls):
        return ""
    if has_tokens:
        return "tokens can be read on the way to this service: give --tls-cert and --tls-key"
    if not insecure:
        raise ConfigError(
            "--listen names an address that other machines can reach, and there are no tokens: give --tokens FILE "
            "(and --tls-cert, --tls-key), listen on 127.0.0.1 or unix:PATH, or give --insecure to let every machine "
            "use the service"
        )
    return "every machine that reaches this service can use it, in every role"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _bearer_of(headers: Headers) -> str:
    match = _BEARER.fullmatch(headers.get("authorization", ""))
    return match[1] if match is not None else ""


def _cookie_of(headers: Headers) -> str:
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel is not None else ""
