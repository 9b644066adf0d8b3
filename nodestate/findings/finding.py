"""One finding, and its JSON."""

from __future__ import annotations

from typing import Annotated, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

from nodestate.findings.finding_table import BY_CODE, DOCS_PAGE

OK: Final = "OK"
WARN: Final = "WARN"
FAIL: Final = "FAIL"
LEVELS: Final = {"warn": WARN, "fail": FAIL}
"""By severity of the table, the word that the doctor prints."""

Severity = Literal["pass", "warn", "fail"]
_SEVERITIES: Final[dict[str, Severity]] = {OK: "pass", WARN: "warn", FAIL: "fail"}


class FindingDocument(msgspec.Struct):
    """A finding as JSON."""

    code: Annotated[str, Meta(description="Frozen code of the finding, as queue-no-consumer; empty if all is well.")]
    severity: Annotated[Severity, Meta(description="Whether this part of the cell works, needs attention or fails.")]
    subject: Annotated[str, Meta(description="The part of the cell: the broker, a store, a design, the agents.")]
    says: Annotated[str, Meta(description="The fault, or the present figures if there is none.")]
    remedy: Annotated[str, Meta(description="What to do; empty if all is well.")]
    docs: Annotated[str, Meta(description="Page and heading of the documentation; empty if all is well.")]


class Finding(NamedTuple):
    """One line of the doctor's report."""

    level: str
    """``OK``, ``WARN`` or ``FAIL``."""
    about: str
    """The part of the cell: the broker, a store, a design, the agents."""
    says: str
    """The fault, or the present figures if there is none."""
    advice: str = ""
    """The remedy; empty if nothing is wrong."""
    code: str = ""
    """The code in ``finding_table``; empty if nothing is wrong."""

    def document(self) -> FindingDocument:
        """Return the finding as JSON."""
        docs = f"{DOCS_PAGE}#{self.code}" if self.code else ""
        return FindingDocument(self.code, _SEVERITIES[self.level], self.about, self.says, self.advice, docs)


def well(about: str, says: str) -> Finding:
    """Return the line about a part of a cell that works. ``says``: its present figures."""
    return Finding(OK, about, says)


def found(code: str, about: str, says: str, advice: str = "") -> Finding:
    """Return a finding. Its level is that of its code.

    Args:
        code: a code of ``finding_table``.
        about: the part of the cell.
        says: the fault, with its figures.
        advice: the remedy, with the names that it needs; empty for the remedy of the table.
    """
    kind = BY_CODE[code]
    return Finding(LEVELS[kind.severity], about, says, advice or kind.remedy, code)
