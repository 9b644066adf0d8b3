"""Requests that schemathesis generates from /openapi.json: no server error, and no response outside the document."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from harness.profile import by_profile
from nodestate.serve import event_routes
from nodestate.serve.access import Access
from nodestate.serve.app import ROUTES
from nodestate.serve.parameters import BoundParameters
from nodestate.serve.tokens import TokenFile
from tests.serve.deciding_cell import DecidingCell
from tests.serve.running_service import RunningService

EXAMPLES_COUNT = by_profile(fast=2, thorough=300)
"""Requests of each operation that are right, and as many that break its description."""


TOKEN = "t" * 32


@pytest.fixture(scope="module")
def deciding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DecidingCell]:
    """A cell with three nodes, an instance and a reservation, whose agents act whenever they are asked."""
    folder = tmp_path_factory.mktemp("generated")
    tokens = folder / "tokens"
    tokens.touch(0o600)
    tokens.write_text(f"operate tester {TOKEN}\n", encoding="utf-8")
    roomy = {"status": "up", "inventory": {"VCPU": {"total": 1_000_000}}}  # for all instances of the test
    deciding = DecidingCell(
        {f"n{number}": roomy for number in range(3)},
        state_dir=folder,
        access=Access(TokenFile(str(tokens))),
        debug=False,
        open_inspector=lambda designs: deciding.open_inspector(designs),  # noqa: PLW0108 - it is made in this call
        examine=lambda _config, _control: [],
    )
    deciding.running.client.headers["Authorization"] = f"Bearer {TOKEN}"
    with pytest.MonkeyPatch.context() as patch, deciding:
        patch.setattr(event_routes, "MAX_STREAM_S", 0.0)  # a stream ends after its first events
        patch.setattr(BoundParameters, "wait_s", 0.01)
        booted = {"requests": [{"instances": ["i0"], "resources": {"VCPU": 1}}]}
        deciding.done(deciding.post("/v1/boots", booted))
        yield deciding


NUMBERS = itertools.count()
KEPT = {"resources", "forbidden_traits", "different_host", "ignore_nodes", "alternates", "tolerations"}
"""Fields of a request for instances that leave it a node in most cases, and contradict no other field."""


def aim(case: Any, deciding: DecidingCell) -> None:
    """Let a request name things that exist: generated names never do, so most requests would be refused early."""
    case.query = {name: value for name, value in (case.query or {}).items() if not name.endswith("max_age")}
    if "Idempotency-Key" in (case.headers or {}):
        case.headers["Idempotency-Key"] = f"key-{next(NUMBERS)}"
    if "name" in case.path_parameters:
        case.path_parameters["name"] = "n0"
    if "/instances/" in case.path:
        case.path_parameters["id"] = "i0"
    if "/reservations/" in case.path:
        held = {"members": [{"resources": {"VCPU": 1}}], "hold_s": 600}
        case.path_parameters["id"] = deciding.post("/v1/reservations", held).json().get("id", "none")
        case.body.pop("owner", None)
    for document in list(_objects(case.body)):
        document.pop("to", None)  # a node
        if "request" in document:  # of what-if
            document["without"] = ["n1"]
        if "members" in document or "requests" in document:
            document.pop("group", None)
        if "resources" in document:
            for field in document.keys() - KEPT:
                del document[field]
            document["resources"] = {"VCPU": 1}
        for field, value in document.items():
            if isinstance(value, float) and value.is_integer():
                document[field] = int(value)


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield all objects in a document."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(inner)


def operations(running: RunningService) -> Iterator[Any]:
    import schemathesis  # noqa: PLC0415 - the import takes a second

    schema = schemathesis.openapi.from_url(f"{running.listener.url}/openapi.json")
    for found in schema.get_all_operations():
        yield found.ok()


def test_each_response_to_generated_requests_is_as_the_document_says(deciding: DecidingCell) -> None:
    from schemathesis import GenerationMode  # noqa: PLC0415 - as above
    from schemathesis.checks import not_a_server_error  # noqa: PLC0415 - as above
    from schemathesis.specs.openapi.checks import positive_data_acceptance  # noqa: PLC0415 - as above

    tried = set()
    answered = set()
    for operation in operations(deciding.running):
        can_be_wrong = operation.body or operation.query or operation.path_parameters
        for mode in GenerationMode if can_be_wrong else [GenerationMode.POSITIVE]:

            @settings(
                max_examples=EXAMPLES_COUNT, deadline=None, suppress_health_check=list(HealthCheck), database=None
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def respond(case: Any) -> None:
                if case.meta.generation.mode is GenerationMode.POSITIVE and next(NUMBERS) % 2:
                    aim(case, deciding)
                answer = case.call(headers={"Authorization": f"Bearer {TOKEN}"})
                assert answer.status_code != 500, "a server error"
                if answer.status_code < 300:
                    answered.add((case.operation.method.upper(), case.operation.path))
                # 503 is a refusal. Requests for instances have rules that a schema cannot express: some fields exclude
                # each other.
                has_request = case.operation.body or "request" in {one.name for one in case.operation.query}
                excluded = [not_a_server_error, *([positive_data_acceptance] if has_request else [])]
                case.validate_response(answer, excluded_checks=excluded)

            respond()
        tried.add((operation.method.upper(), operation.path))
    assert tried == {(route.method, route.path) for route in ROUTES}
    deciding_routes = {(route.method, route.path) for route in ROUTES if route.decides or route.is_repeatable}
    assert deciding_routes <= answered, "no request of a deciding route succeeded"
