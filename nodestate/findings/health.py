"""The health of a cell, computed from its findings, in the form of ``application/health+json``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from nodestate.findings.finding import Finding, Severity

MEDIA_TYPE: Final = "application/health+json"
_RANK: Final[dict[Severity, int]] = {"pass": 0, "warn": 1, "fail": 2}


class HealthCheck(msgspec.Struct):
    """The state of one part of the cell."""

    status: Annotated[Severity, Meta(description="pass, warn or fail.")]
    output: Annotated[str, Meta(description="The fault, or the present figures.")]
    code: Annotated[str, Meta(description="Code of the finding; empty if all is well.")]


class HealthDocument(msgspec.Struct):
    """The health of a cell."""

    status: Annotated[Severity, Meta(description="The worst status of all checks. HTTP status 503 goes with fail.")]
    output: Annotated[str, Meta(description="The first of the worst findings; empty if all is well.")]
    checks: Annotated[dict[str, list[HealthCheck]], Meta(description="By part of the cell, its checks.")]


def health_of(findings: Iterable[Finding]) -> HealthDocument:
    """Return the health of a cell: the worst severity of its findings. Without findings, it is ``pass``."""
    status: Severity = "pass"
    output = ""
    checks: dict[str, list[HealthCheck]] = {}
    for finding in findings:
        document = finding.document()
        checks.setdefault(document.subject, []).append(HealthCheck(document.severity, document.says, document.code))
        if _RANK[document.severity] > _RANK[status]:
            status, output = document.severity, f"{document.subject}: {document.says}"
    return HealthDocument(status, output, checks)
