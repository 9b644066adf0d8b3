"""The routes of findings: the faults of the cell with their remedies, and its health as one word."""

from __future__ import annotations

import time
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from nodestate.findings import FindingDocument, HealthDocument, health_of
from nodestate.findings.health import MEDIA_TYPE
from nodestate.serve.api_route import ApiCall, ApiRoute
from nodestate.serve.cell_examination import Examination
from nodestate.serve.encoding import JSON, encode
from nodestate.serve.responses import ApiResponse

UNHEALTHY: Final = 503
"""HTTP status of a health that is ``fail``, so that a monitor need not read the document."""


class FindingsDocument(msgspec.Struct):
    """The findings of the last examination of the cell."""

    age: Annotated[float, Meta(description="Seconds since the examination ended.")]
    findings: Annotated[
        list[FindingDocument],
        Meta(description="What is wrong or needs attention, with the remedy; parts that work have the severity pass."),
    ]


async def get_findings(call: ApiCall[msgspec.Struct]) -> ApiResponse:
    """Answer with the findings that 'nodestate doctor' would print."""
    examination = await _examination(call)
    documents = [finding.document() for finding in examination.findings]
    return ApiResponse(FindingsDocument(_age(examination), documents), headers={"Age": f"{_age(examination):.0f}"})


async def get_health(call: ApiCall[msgspec.Struct]) -> ApiResponse:
    """Answer with the worst severity of all findings."""
    examination = await _examination(call)
    health = health_of(examination.findings)
    return ApiResponse(
        encoded=encode(health, JSON),
        status=UNHEALTHY if health.status == "fail" else 200,
        headers={"Age": f"{_age(examination):.0f}"},
        media_type=MEDIA_TYPE,
    )


async def _examination(call: ApiCall[msgspec.Struct]) -> Examination:
    service = call.service
    return await service.examination.latest(service.feeds.main.control_or_settings(service.config))


def _age(examination: Examination) -> float:
    return time.monotonic() - examination.ended_at


_AGE = {"Age": "Seconds since the examination of the cell ended; one examination serves many requests."}

ROUTES = (
    ApiRoute(
        "GET",
        "/v1/findings",
        "The faults of the cell, each with its remedy: the report of 'nodestate doctor'.",
        get_findings,
        FindingsDocument,
        problems=("overloaded", "stale-view"),
        headers=_AGE,
    ),
    ApiRoute(
        "GET",
        "/health",
        "The health of the cell: pass, warn or fail, which is answered with the status 503.",
        get_health,
        HealthDocument,
        problems=("overloaded", "stale-view"),
        headers=_AGE,
        media_types=(MEDIA_TYPE,),
        other_statuses=(UNHEALTHY,),
    ),
)
