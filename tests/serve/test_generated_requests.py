"""Requests that schemathesis generates from /openapi.json: no server error, and no response outside the document."""

from __future__ import annotations

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
from tests.machines.simulated_cell import SimulatedCell
from tests.serve.running_service import RunningService

EXAMPLES_COUNT = by_profile(fast=2, thorough=300)
"""Requests of each operation that are right, and as many that break its description."""


TOKEN = "t" * 32


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    tokens = tmp_path_factory.mktemp("generated") / "tokens"
    tokens.touch(0o600)
    tokens.write_text(f"operate tester {TOKEN}\n", encoding="utf-8")
    world = SimulatedCell(designs=("snapshot",))
    world.start_member([0, 1], [])
    for number in range(3):
        world.start_agent(f"node-{number}", {"usage": {"VCPU": 1}, "inventory": {"VCPU": {"total": 4}}, "zone": "az1"})
    world.run_well(60)
    with (
        pytest.MonkeyPatch.context() as patch,
        RunningService.over(world, access=Access(TokenFile(str(tokens))), debug=False) as running,
    ):
        patch.setattr(event_routes, "MAX_STREAM_S", 0.0)  # a stream ends after its first events
        patch.setattr(BoundParameters, "wait_s", 0.01)
        yield running


def operations(running: RunningService) -> Iterator[Any]:
    import schemathesis  # noqa: PLC0415 - the import takes a second

    schema = schemathesis.openapi.from_url(f"{running.listener.url}/openapi.json")
    for found in schema.get_all_operations():
        yield found.ok()


def test_each_response_to_generated_requests_is_as_the_document_says(running: RunningService) -> None:
    from schemathesis import GenerationMode  # noqa: PLC0415 - as above
    from schemathesis.checks import not_a_server_error  # noqa: PLC0415 - as above
    from schemathesis.specs.openapi.checks import positive_data_acceptance  # noqa: PLC0415 - as above

    tried = set()
    for operation in operations(running):
        can_be_wrong = operation.body or operation.query or operation.path_parameters
        for mode in GenerationMode if can_be_wrong else [GenerationMode.POSITIVE]:

            @settings(
                max_examples=EXAMPLES_COUNT, deadline=None, suppress_health_check=list(HealthCheck), database=None
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def respond(case: Any) -> None:
                answer = case.call(headers={"Authorization": f"Bearer {TOKEN}"})
                assert answer.status_code != 500, "a server error"
                # 503 is a refusal. A body has rules that a schema cannot express, such as known resource classes.
                excluded = [not_a_server_error, *([positive_data_acceptance] if case.operation.body else [])]
                case.validate_response(answer, excluded_checks=excluded)

            respond()
        tried.add((operation.method.upper(), operation.path))
    assert tried == {(route.method, route.path) for route in ROUTES}
