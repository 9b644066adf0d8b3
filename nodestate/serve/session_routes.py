"""The routes ``/v1/session``: the cookie of a browser.

A page cannot give ``EventSource`` a header, so it exchanges its token for a cookie that scripts cannot read.
"""

from __future__ import annotations

from http.cookies import SimpleCookie
from typing import Annotated

import msgspec
from msgspec import Meta

from nodestate.serve.access import COOKIE, COOKIE_MAX_AGE_S, token_of
from nodestate.serve.api_route import ApiCall, ApiRoute
from nodestate.serve.responses import ApiResponse


class SessionDocument(msgspec.Struct):
    """The holder of the token of a request."""

    name: Annotated[str, Meta(description="Name of the token; empty if the service has no tokens.")]
    role: Annotated[str, Meta(description="read, schedule or operate.")]


async def begin_session(call: ApiCall[msgspec.Struct]) -> ApiResponse:
    """Set the cookie for the token of the request; without tokens, there is nothing to set."""
    if call.holder is None:
        return ApiResponse(SessionDocument("", "operate"))
    cookie = _cookie(call, token_of(call.headers), COOKIE_MAX_AGE_S)
    return ApiResponse(SessionDocument(call.holder.name, call.holder.role), headers={"Set-Cookie": cookie})


async def end_session(call: ApiCall[msgspec.Struct]) -> ApiResponse:
    """Remove the cookie."""
    return ApiResponse(SessionDocument("", ""), headers={"Set-Cookie": _cookie(call, "", 0)})


def _cookie(call: ApiCall[msgspec.Struct], value: str, max_age_s: int) -> str:
    cookies = SimpleCookie({COOKIE: value})
    attributes = {"path": "/", "max-age": str(max_age_s), "httponly": "yes", "samesite": "Strict"}
    if call.is_tls:
        attributes["secure"] = "yes"
    cookies[COOKIE].update(attributes)
    return cookies[COOKIE].OutputString()


_HEADERS = {"Set-Cookie": "The cookie nodestate_token, which counts for requests that only read."}
ROUTES = (
    ApiRoute(
        "POST",
        "/v1/session",
        "Give a browser the cookie for its token, which EventSource needs.",
        begin_session,
        SessionDocument,
        headers=_HEADERS,
    ),
    ApiRoute(
        "DELETE",
        "/v1/session",
        "Remove the cookie of a browser.",
        end_session,
        SessionDocument,
        role="open",
        headers=_HEADERS,
    ),
)
