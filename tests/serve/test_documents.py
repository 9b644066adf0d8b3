"""Bodies that break their format: the problem names the field, and shows the expected shape if one is missing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from nodestate.serve.app import ROUTES
from nodestate.serve.documents import decoded
from nodestate.serve.problems import BadRequestProblem, ProblemError
from nodestate.serve.request_documents import RequestsBody

SHAPE = '{"requests":[{"resources":{"VCPU":2,"MEMORY_MB":4096}}]}'


def refused(content: bytes, kind: Any = RequestsBody) -> tuple[str, str]:
    """The field and the detail of the problem of a body."""
    with pytest.raises(ProblemError) as error:
        decoded(content, kind)
    assert isinstance(error.value.document, BadRequestProblem)
    return error.value.document.field, error.value.document.detail


@pytest.mark.parametrize(
    ("content", "field", "detail"),
    [
        (b"{}", "requests", f"the field is missing; expected an object such as {SHAPE}"),
        (b"", "body", f"Input data was truncated; expected an object such as {SHAPE}"),
        (b"[]", "body", f"Expected `object`, got `array`; expected an object such as {SHAPE}"),
        (
            b'{"requests": [{"resources": {}}, {"zone": "az1"}]}',
            "requests[1].resources",
            'the field is missing; expected an object such as {"resources":{"VCPU":2,"MEMORY_MB":4096}}',
        ),
        (
            b'{"requests": [{"resources": {}, "group": {"name": "web"}}]}',
            "requests[0].group.policy",
            'the field is missing; expected an object such as {"name":"name","policy":"affinity"}',
        ),
        (b'{"requests": 3}', "requests", "Expected `array`, got `int`"),
        (b'{"requests": [{"resources": {"VCPU": "x"}}]}', "requests[0].resources[...]", "Expected `int`, got `str`"),
        (b'{"request": []}', "body", "Object contains unknown field `request`"),
    ],
)
def test_a_wrong_body_names_the_field_and_shows_the_shape(content: bytes, field: str, detail: str) -> None:
    assert refused(content) == (field, f"{field}: {detail}")


def test_each_body_without_its_required_fields_shows_a_shape_that_is_accepted() -> None:
    bodies = {route.body for route in ROUTES if route.body is not None}
    shown = 0
    for kind in bodies:
        if all(not field.required for field in msgspec.inspect.type_info(kind).fields):  # type: ignore[attr-defined]
            continue
        shown += 1
        _, detail = refused(b"{}", kind)
        shape = detail.partition(" such as ")[2]
        assert isinstance(decoded(shape.encode(), kind), kind)
    assert shown == 7
