"""The ASGI application: checks each request by the declaration of its route, and encodes the response."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from nodestate.errors import NodestateError
from nodestate.serve import cell_routes, node_routes, view_routes
from nodestate.serve.api_route import ApiCall, ApiResponse, ApiRoute
from nodestate.serve.encoding import JSON, encode, preferred_media_type
from nodestate.serve.openapi import openapi_document
from nodestate.serve.parameters import parameters_of
from nodestate.serve.problems import MEDIA_TYPE, ProblemError, bad_request, blank, problem, problem_of
from nodestate.serve.service import Service

MAX_BODY_BYTES: Final = 1_000_000
"""Largest body of a request."""

_log: Final = structlog.get_logger("nodestate.serve.app")

ROUTES: Final[tuple[ApiRoute, ...]] = (*view_routes.ROUTES, *node_routes.ROUTES, *cell_routes.ROUTES)
"""All routes but that of the OpenAPI document, which describes them."""


def create_app(service: Service, *, debug: bool = False) -> Starlette:
    """Return the application. It starts the service when the server starts, and stops it when the server stops.

    ``debug``: raise the errors of handlers that have no problem; for tests.
    """

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    document = encode(openapi_document(ROUTES), JSON)

    async def get_openapi(_request: Request) -> Response:
        return Response(document, media_type=JSON)

    routes = [Route(route.path, _endpoint(service, route), methods=[route.method]) for route in ROUTES]
    routes.append(Route("/openapi.json", get_openapi, methods=["GET"]))
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={HTTPException: _on_http_error, **({} if debug else {Exception: _on_error})},
    )


def _endpoint(service: Service, route: ApiRoute) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            call = await _call_of(service, route, request)
            return _encoded(await route.handler(call), call.media_type)
        except (NodestateError, ProblemError) as error:
            return _problem_response(problem_of(error))

    return endpoint


async def _call_of(service: Service, route: ApiRoute, request: Request) -> ApiCall[Any]:
    """Check a request and return it as a call. Raises ``ProblemError`` if it is refused."""
    arrived_at = time.monotonic()
    body = await _body_of(request)
    parameters = parameters_of(route.parameters, request.path_params, request.query_params.multi_items())
    return ApiCall(
        service,
        parameters,
        _decoded(body, route.body) if route.body is not None else None,
        dict(request.headers),
        preferred_media_type(request.headers.get("accept", "")),
        arrived_at,
        request.client.host if request.client else "",
    )


async def _body_of(request: Request) -> bytes:
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise problem(
                    "too-large",
                    f"the body has more than {MAX_BODY_BYTES:,} bytes, the most that this service accepts",
                    headers={"Connection": "close"},
                )
    except ClientDisconnect:
        raise blank(400, "the client closed the connection before the end of its request") from None
    return bytes(body)


def _decoded(body: bytes, kind: type[msgspec.Struct]) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason, _, path = str(error).partition(" - at `$")
        raise bad_request(path.strip("`.") or "body", reason) from None


def _encoded(response: ApiResponse, media_type: str) -> Response:
    if response.status == 304:
        return Response(status_code=304, headers=response.headers)
    body = response.encoded if response.encoded is not None else encode(response.value, media_type)
    headers = {"Cache-Control": "no-cache", "Vary": "Accept", **response.headers}
    return Response(body, response.status, headers, media_type=response.media_type or media_type)


def _problem_response(error: ProblemError) -> Response:
    return Response(
        encode(error.document, JSON), error.document.status, {"Cache-Control": "no-store", **error.headers}, MEDIA_TYPE
    )


async def _on_http_error(_request: Request, error: Exception) -> Response:
    """Answer requests for which there is no route."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _problem_response(problem("not-found", "there is no such path; /openapi.json describes all paths"))
    headers = dict(error.headers or {})
    return _problem_response(blank(error.status_code, f"{error.detail}; /openapi.json describes all paths", headers))


async def _on_error(request: Request, error: Exception) -> Response:
    """Answer a request whose handler failed; the log has the traceback."""
    _log.error("a request failed", path=request.url.path, exc_info=error)
    return _problem_response(blank(500, "the service failed to answer: its log has the cause"))
