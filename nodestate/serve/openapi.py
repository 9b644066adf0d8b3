"""The OpenAPI 3.1 document of the HTTP API, made from the declarations of its routes."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Final

import msgspec

from nodestate import __version__
from nodestate.serve.access import COOKIE, MISDIRECTED
from nodestate.serve.api_route import ApiRoute
from nodestate.serve.parameters import NoParameters, document_type, is_required
from nodestate.serve.problems import MEDIA_TYPE, PROBLEM_TYPES, ProblemDocument

EVERY_ROUTE: Final = ("bad-request", "too-large", "overloaded")
"""Types of problems that every route may answer with."""
_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "A word that the client chooses for this request. If the request is repeated with it, the answer is "
    "that of the first one, and nothing is done twice; kept for an hour.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._~:-]{1,200}$"},
}
_REFERENCE: Final = "#/components/schemas/{name}"


def openapi_document(routes: Iterable[ApiRoute], *, has_tokens: bool = True) -> dict[str, Any]:
    """Return the OpenAPI document of these routes. ``has_tokens``: whether the service demands tokens."""
    routes = list(routes)
    problems = list(dict.fromkeys(of_type.document for of_type in PROBLEM_TYPES.values()))
    bodies = [route.body for route in routes if route.body is not None]
    responses = [route.response for route in routes if route.response is not None]
    events = [kind for route in routes for kind in route.events.values()]
    kinds = list(dict.fromkeys([*problems, *responses, *bodies, *events]))
    references, components = msgspec.json.schema_components(kinds, ref_template=_REFERENCE)
    schema_of = dict(zip(kinds, references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of, has_tokens=has_tokens)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "nodestate",
            "version": __version__,
            "description": "The state of every compute node of a cell. Seconds and bytes are plain numbers; ages are "
            "seconds on the clock of the service. Responses are JSON, or msgpack if Accept prefers "
            "application/x-msgpack. States and hints are free by contract; all other objects are described completely.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "A token of the service's file."},
                "cookie": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": COOKIE,
                    "description": "The token as a cookie, from POST /v1/session.",
                },
            },
        },
    }


def _operation(route: ApiRoute, schema_of: dict[Any, Any], *, has_tokens: bool) -> dict[str, Any]:
    name = "".join(part.capitalize() for part in route.path.replace("{", "").replace("}", "").split("/"))
    operation: dict[str, Any] = {
        "operationId": f"{route.method.lower()}{name.replace('-', '').replace('.', '')}",
        "summary": route.summary,
        "responses": {str(route.status): _response(route, schema_of)},
    }
    if parameters := [*_parameters(route), *([_KEY] if route.is_repeatable else [])]:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema_of[route.body]}},
        }
    if route.not_modified:
        operation["responses"]["304"] = {
            "description": "The client has this view already, as its If-None-Match says.",
            "headers": {"ETag": _header("The view that the client has."), **_headers(route)},
        }
    kinds = [*EVERY_ROUTE, "unauthorized", *route.problems]
    if route.role != "open" and has_tokens:
        operation["security"] = [{"token": []}, *([{"cookie": []}] if route.method == "GET" else [])]
        operation["description"] = f"Needs a token of the role {route.role}."
    for status, kinds_of_status in _by_status(kinds).items():
        operation["responses"][status] = _problem_response(kinds_of_status, schema_of)
    for status in map(str, route.other_statuses):
        same, problems = _response(route, schema_of), operation["responses"].get(status, {})
        operation["responses"][status] = {
            **problems,
            **same,
            "content": {**same["content"], **problems.get("content", {})},
        }
    for blank in (HTTPStatus(MISDIRECTED), HTTPStatus.INTERNAL_SERVER_ERROR):
        operation["responses"][str(blank.value)] = {
            "description": f"about:blank: {blank.phrase}",
            "content": {MEDIA_TYPE: {"schema": schema_of[ProblemDocument]}},
        }
    return operation


def _by_status(kinds: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for kind in dict.fromkeys(kinds):
        statuses = ["401", "403"] if kind == "unauthorized" else [str(PROBLEM_TYPES[kind].status)]
        for status in statuses:
            found.setdefault(status, []).append(kind)
    return dict(sorted(found.items()))


def _response(route: ApiRoute, schema_of: dict[Any, Any]) -> dict[str, Any]:
    schema = schema_of[route.response] if route.response is not None else _stream_schema(route, schema_of)
    response: dict[str, Any] = {
        "description": route.summary,
        "content": {media_type: {"schema": schema} for media_type in route.media_types},
    }
    headers = _headers(route)
    if route.not_modified:
        headers["ETag"] = _header("Changes with the position, the query, and the stale and incomplete nodes.")
    return {**response, "headers": headers} if headers else response


def _stream_schema(route: ApiRoute, schema_of: dict[Any, Any]) -> dict[str, Any]:
    """Return the schema of a text, or of one event of a stream. The type of its data follows from its name."""
    text = {"type": "string"}
    if not route.events:
        return text
    return {
        "type": "object",
        "description": "One event of the stream, which has the format of server-sent events.",
        "properties": {
            "id": {**text, "description": "Send the last one as Last-Event-ID to resume."},
            "event": {**text, "description": "Name of the event.", "enum": list(route.events)},
            "data": {**text, "description": "The content.", "contentMediaType": "application/json"},
        },
        "required": ["event", "data"],
        "oneOf": [
            {"properties": {"event": {"const": name}, "data": {"contentSchema": schema_of[kind]}}}
            for name, kind in route.events.items()
        ],
    }


def _headers(route: ApiRoute) -> dict[str, Any]:
    return {name: _header(description) for name, description in route.headers.items()}


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


def _problem_response(kinds: list[str], schema_of: dict[Any, Any]) -> dict[str, Any]:
    documents = list(dict.fromkeys(PROBLEM_TYPES[kind].document for kind in kinds))
    schemas = [schema_of[document] for document in documents]
    response = {
        "description": "; ".join(f"{kind}: {PROBLEM_TYPES[kind].title}" for kind in kinds),
        "content": {MEDIA_TYPE: {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}},
    }
    assert all(issubclass(document, ProblemDocument) for document in documents)
    if any(PROBLEM_TYPES[kind].status == 503 for kind in kinds):
        return {**response, "headers": {"Retry-After": _header("Seconds after which to repeat the request.")}}
    return response


def _parameters(route: ApiRoute) -> list[dict[str, Any]]:
    if route.parameters is NoParameters:
        return []
    found = []
    for field in msgspec.structs.fields(route.parameters):
        in_path = f"{{{field.encode_name}}}" in route.path
        document = document_type(field)
        schema = _without_null(msgspec.json.schema(field.type)) if document is None else {}
        parameter: dict[str, Any] = {
            "name": field.encode_name,
            "in": "path" if in_path else "query",
            "required": in_path or is_required(field),
            "description": schema.pop("description") if document is None else document.description,
        }
        if document is None:
            parameter["schema"] = schema
        else:
            content = {"schema": {"$ref": _REFERENCE.format(name=document.kind.__name__)}}
            parameter["content"] = {"application/json": content}
        if field.default not in (None, msgspec.NODEFAULT):
            schema["default"] = field.default
        found.append(parameter)
    return found


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an optional parameter: it is left out rather than null."""
    choices = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
    return dict(choices[0]) if len(choices) == 1 else schema
