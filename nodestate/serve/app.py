"""The ASGI application: checks each request by the declaration of its route, and encodes the response."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from nodestate.errors import NodestateError
from nodestate.serve import (
    capacity_routes,
    cell_routes,
    decision_routes,
    event_routes,
    finding_routes,
    metrics_routes,
    node_order_routes,
    node_routes,
    operation_routes,
    reservation_routes,
    selection_routes,
    session_routes,
    view_routes,
)
from nodestate.serve.access import Access
from nodestate.serve.api_route import ApiCall, ApiRoute
from nodestate.serve.documents import decoded
from nodestate.serve.encoding import JSON, encode, preferred_media_type
from nodestate.serve.guarded_protocol import ABORT
from nodestate.serve.limits import Limits
from nodestate.serve.openapi import openapi_document
from nodestate.serve.parameters import parameters_of
from nodestate.serve.problems import ProblemError, blank, problem, problem_of
from nodestate.serve.responses import ApiResponse, problem_response
from nodestate.serve.service import Service

_log: Final = structlog.get_logger("nodestate.serve.app")

ROUTES: Final[tuple[ApiRoute, ...]] = (
    *view_routes.ROUTES,
    *node_routes.ROUTES,
    *event_routes.ROUTES,
    *cell_routes.ROUTES,
    *finding_routes.ROUTES,
    *metrics_routes.ROUTES,
    *selection_routes.ROUTES,
    *decision_routes.ROUTES,
    *operation_routes.ROUTES,
    *node_order_routes.ROUTES,
    *reservation_routes.ROUTES,
    *capacity_routes.ROUTES,
    *session_routes.ROUTES,
)
"""All routes but that of the OpenAPI document, which describes them."""


def create_app(
    service: Service, access: Access | None = None, limits: Limits | None = None, *, debug: bool = False
) -> ASGIApp:
    """Return the application. It starts the service when the server starts, and stops it when the server stops.

    Args:
        service: the parts behind the routes.
        access: the checks of hosts and tokens; None: without tokens.
        limits: the limits of requests.
        debug: raise the errors of handlers that have no problem; for tests.
    """
    access, limits = access or Access(), limits or Limits()

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    document = encode(openapi_document(ROUTES, has_tokens=access.has_tokens), JSON)

    async def get_openapi(_request: Request) -> Response:
        return Response(document, media_type=JSON)

    by_path: dict[str, dict[str, ApiRoute]] = {}
    for route in ROUTES:
        by_path.setdefault(route.path, {})[route.method] = route
    routes = [
        Route(path, _endpoint(service, access, limits, of_path), methods=list(of_path))
        for path, of_path in by_path.items()
    ]
    routes.append(Route("/openapi.json", get_openapi, methods=["GET"]))
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={HTTPException: _on_http_error, **({} if debug else {Exception: _on_error})},
    )

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            try:
                _require_one_length(headers)
                access.require_direct(scope["scheme"], headers)
            except ProblemError as error:
                await problem_response(error)(scope, receive, send)
                return
        await app(scope, receive, send)

    return checked


def _endpoint(
    service: Service, access: Access, limits: Limits, routes: dict[str, ApiRoute]
) -> Callable[[Request], Awaitable[Response]]:
    """Return the function for one path. ``routes``: its routes by method."""

    async def endpoint(request: Request) -> Response:
        route = routes["GET" if request.method == "HEAD" else request.method]
        try:
            call = await _call_of(service, access, limits, route, request)
            if request.method == "HEAD" and route.events:  # the stream would not end
                return Response(media_type=route.media_types[0])
            work = route.handler(call)
            answer = await (work if route.method == "POST" else _while_connected(request, work))
            return service.responder.respond(answer, call.media_type)
        except (NodestateError, ProblemError) as error:
            return problem_response(problem_of(error))

    return endpoint


async def _while_connected(request: Request, work: Coroutine[Any, Any, ApiResponse]) -> ApiResponse:
    """Return the result of the work of a request. Cancel the work if the client leaves before.

    A client may ask for an answer that comes after a minute, close its connection, and ask again. If its work went on,
    no limit of connections would limit the requests that wait.
    """
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_wait_until_left(request.receive))
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise blank(400, "the client closed the connection before the answer")
        return task.result()
    finally:
        left.cancel()
        task.cancel()


async def _wait_until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _call_of(service: Service, access: Access, limits: Limits, route: ApiRoute, request: Request) -> ApiCall[Any]:
    """Check a request and return it as a call. Raises ``ProblemError`` if it is refused."""
    arrived_at = time.monotonic()
    holder = access.require_role(route.role, request.method, request.headers)
    body = await _body_of(request, limits.max_body_bytes)
    parameters = parameters_of(route.parameters, request.path_params, request.query_params.multi_items())
    return ApiCall(
        service,
        parameters,
        decoded(body, route.body) if route.body is not None else None,
        request.headers,
        preferred_media_type(request.headers.get("accept", "")),
        arrived_at,
        holder,
        request.url.path,
        is_tls=request.url.scheme == "https",
        abort=request.scope.get(ABORT, lambda: None),
        is_permitted=lambda: access.permits(route.role, request.method, request.headers),
    )


async def _body_of(request: Request, max_bytes: int) -> bytes:
    body = bytearray()
    declared = request.headers.get("content-length", "0")
    size = int(declared) if declared.isdecimal() else 0
    try:
        if size <= max_bytes:
            async for chunk in request.stream():
                body += chunk
                size = max(size, len(body))
                if size > max_bytes:
                    break
    except ClientDisconnect:
        raise blank(400, "the client closed the connection before the end of its request") from None
    if size > max_bytes:
        raise problem(
            "too-large",
            f"the body has more than {max_bytes:,} bytes, the most that this service accepts (--max-body-bytes)",
            headers={"Connection": "close"},
        )
    return bytes(body)


def _require_one_length(headers: Headers) -> None:
    """Raise ``ProblemError`` if a request has two lengths.

    A proxy on the way may have chosen the other one, and take the rest for a request of another client.
    """
    if "transfer-encoding" in headers and "content-length" in headers:
        raise blank(400, "give Content-Length or Transfer-Encoding, not both", {"Connection": "close"})


async def _on_http_error(_request: Request, error: Exception) -> Response:
    """Answer requests for which there is no route."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return problem_response(problem("not-found", "there is no such path; /openapi.json describes all paths"))
    headers = dict(error.headers or {})
    return problem_response(blank(error.status_code, f"{error.detail}; /openapi.json describes all paths", headers))


async def _on_error(request: Request, error: Exception) -> Response:
    """Answer a request whose handler failed; the log has the traceback."""
    _log.error("a request failed", path=request.url.path, exc_info=error)
    return problem_response(blank(500, "the service failed to answer: its log has the cause"))
