"""The OpenAPI document: complete, typed, and made from the declarations that requests are checked by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nodestate.serve.app import ROUTES
from nodestate.serve.openapi import openapi_document
from nodestate.serve.problems import PROBLEM_TYPES

FREE = {"NodeDocument.state", "NodeDetail.state"}
"""Objects that are free by contract; the description of each says so."""


def objects(schema: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each schema of an object within a schema, with its path."""
    if isinstance(schema, list):
        for inner in schema:
            yield from objects(inner, path)
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield path, schema
        for name, inner in schema.get("properties", {}).items():
            yield from objects(inner, f"{path}.{name}")
        for key in ("anyOf", "items", "additionalProperties"):
            yield from objects(schema.get(key), path)


def test_no_object_is_untyped_but_those_that_are_free_by_contract() -> None:
    components = openapi_document(ROUTES)["components"]["schemas"]
    untyped = {
        path: schema
        for name, component in components.items()
        for path, schema in objects(component, name)
        if not schema.get("properties") and not schema.get("additionalProperties")
    }
    assert untyped.keys() == FREE
    assert all("Free by contract" in schema["description"] for schema in untyped.values())


def test_each_field_and_parameter_is_described() -> None:
    """A description states the unit of a number: a bare number would mean nothing to a program in another language."""
    document = openapi_document(ROUTES)
    for name, component in document["components"]["schemas"].items():
        for field, schema in component["properties"].items():
            described = "description" in schema or any("description" in one for one in schema.get("anyOf", ()))
            assert described, f"{name}.{field}"
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                assert parameter["description"].endswith("."), f"{path} {parameter['name']}"


def test_problems_are_those_of_the_contract() -> None:
    """DESIGN.md section 11 freezes the words: programs compare them."""
    assert list(PROBLEM_TYPES) == [
        *("stale-view", "behind", "bad-request", "no-host", "not-found", "conflict"),
        *("unauthorized", "too-large", "overloaded"),
    ]


def test_each_route_has_an_operation_with_a_name_of_its_own() -> None:
    paths = openapi_document(ROUTES)["paths"]
    assert {(route.method.lower(), route.path) for route in ROUTES} == {
        (method, path) for path, operations in paths.items() for method in operations
    }
    names = [operation["operationId"] for operations in paths.values() for operation in operations.values()]
    assert len(set(names)) == len(names)
