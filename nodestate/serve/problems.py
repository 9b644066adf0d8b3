"""Problems: the answers of the HTTP API to requests that it refuses (RFC 9457), with frozen types.

Each type has a status, a title and a document. ``problem_of`` finds the type of an error of the library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta

from nodestate.errors import (
    BadRequestError,
    BehindError,
    ConfigError,
    NodestateError,
    NotFoundError,
    StaleViewError,
)
from nodestate.scheduling import NoHostFound, Remaining
from nodestate.text import printable
from nodestate.view.documents import finite_or_none

MEDIA_TYPE: Final = "application/problem+json"
SHOWN_NODES_COUNT: Final = 100
"""Nodes that a problem names at most."""
RETRY_AFTER_S: Final = 1
"""Value of the header ``Retry-After``: an owner confirms its partitions about once a second."""


class ProblemDocument(msgspec.Struct):
    """A refused request."""

    type: Annotated[str, Meta(description="Frozen word for the kind of problem; about:blank if the status says it.")]
    title: Annotated[str, Meta(description="The kind of problem, for people.")]
    status: Annotated[int, Meta(description="HTTP status of the response.")]
    detail: Annotated[str, Meta(description="This problem, for people: what was refused and the remedy.")]


class StaleViewProblem(ProblemDocument):
    """The view, or a node, is older than the request accepts."""

    age: Annotated[float | None, Meta(description="Age of the view in seconds; null if it was never confirmed.")]
    max_age: Annotated[float, Meta(description="Accepted age in seconds: of the view, or of nodes if nodes are named.")]
    partitions: Annotated[list[int], Meta(description="Partitions that are too old.")]
    nodes: Annotated[list[str], Meta(description="Nodes without a sign of life in the accepted time, at most 100.")]


class VersionDocument(msgspec.Struct):
    """A version of a node's state."""

    incarnation: Annotated[int, Meta(description="Which life of the agent.")]
    generation: Annotated[int, Meta(description="Number of the event within that life.")]


class BehindProblem(ProblemDocument):
    """The view does not have the version that the request demands."""

    node: Annotated[str, Meta(description="Name of the node.")]
    wanted: Annotated[VersionDocument, Meta(description="The version that the request demands.")]
    reached: Annotated[VersionDocument | None, Meta(description="The version of the view; null if it has none.")]


class BadRequestProblem(ProblemDocument):
    """The request breaks its format."""

    field: Annotated[str, Meta(description="Name of the parameter or field that is wrong.")]


class FilterCount(msgspec.Struct):
    """How many nodes one filter and all before it left."""

    name: Annotated[str, Meta(description="Name of the filter; all: the nodes before the first filter.")]
    left: Annotated[int, Meta(description="Number of nodes that were left.")]


class NoHostProblem(ProblemDocument):
    """No instance of the request got a node."""

    instance: Annotated[str, Meta(description="Id of the first instance.")]
    filters: Annotated[
        list[FilterCount], Meta(description="What each filter left, in their order; empty if the cause is no filter.")
    ]


class ProblemType(NamedTuple):
    """One type of problem."""

    status: int
    """HTTP status."""
    title: str
    """The type, for people."""
    document: type[ProblemDocument] = ProblemDocument


PROBLEM_TYPES: Final = {
    "stale-view": ProblemType(503, "The view is older than accepted", StaleViewProblem),
    "behind": ProblemType(503, "The view does not have the demanded version", BehindProblem),
    "bad-request": ProblemType(400, "The request breaks its format", BadRequestProblem),
    "no-host": ProblemType(409, "No node passes all filters of the request", NoHostProblem),
    "not-found": ProblemType(404, "What the request names does not exist"),
    "conflict": ProblemType(409, "The state of the cell does not allow the request"),
    "unauthorized": ProblemType(401, "The request needs a token, or one of a higher role"),
    "too-large": ProblemType(413, "The request is too large"),
    "overloaded": ProblemType(503, "The service has no capacity for the request now"),
}
"""All types of problems; the words are frozen."""


class ProblemError(Exception):
    """Raised in a handler to answer a request with a problem.

    Attributes:
        document: the problem.
        headers: headers of the response.
    """

    def __init__(self, document: ProblemDocument, headers: dict[str, str] | None = None) -> None:
        super().__init__(document.detail)
        self.document = document
        self.headers = headers or {}


def problem(
    kind: str, detail: str, *, status: int | None = None, headers: dict[str, str] | None = None
) -> ProblemError:
    """Return the error for a problem of a type without fields of its own.

    Args:
        kind: a word of ``PROBLEM_TYPES``.
        detail: what was refused and the remedy.
        status: the status, if it is not the type's own.
        headers: headers of the response.
    """
    of_type = PROBLEM_TYPES[kind]
    status = status or of_type.status
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers = {"Retry-After": str(RETRY_AFTER_S), **(headers or {})}
    return ProblemError(ProblemDocument(kind, of_type.title, status, detail), headers)


def bad_request(field: str, detail: str) -> ProblemError:
    """Return the error for a parameter or field that is wrong."""
    of_type = PROBLEM_TYPES["bad-request"]
    return ProblemError(BadRequestProblem("bad-request", of_type.title, of_type.status, f"{field}: {detail}", field))


def no_host(instance: str, why: NoHostFound) -> ProblemError:
    """Return the error for an instance that got no node: ``overloaded`` if the claim servers are the cause."""
    if why.is_temporary:
        return problem("overloaded", printable(f"{instance}: {why}"))
    of_type = PROBLEM_TYPES["no-host"]
    detail = printable(f"{instance}: {why}")
    filters = filter_counts(why.remaining)
    return ProblemError(NoHostProblem("no-host", of_type.title, of_type.status, detail, instance, filters))


def filter_counts(remaining: Iterable[Remaining]) -> list[FilterCount]:
    """Return the number of nodes that each filter left as documents."""
    return [FilterCount(step.filter, step.nodes) for step in remaining]


def blank(status: int, detail: str, headers: dict[str, str] | None = None) -> ProblemError:
    """Return the error for a problem that its HTTP status describes completely."""
    return ProblemError(ProblemDocument("about:blank", HTTPStatus(status).phrase, status, detail), headers)


def _stale(error: NodestateError) -> ProblemError:
    assert isinstance(error, StaleViewError)
    of_type = PROBLEM_TYPES["stale-view"]
    document = StaleViewProblem(
        "stale-view",
        of_type.title,
        of_type.status,
        printable(str(error)),
        finite_or_none(error.age),
        error.max_age,
        list(error.partitions),
        list(error.nodes[:SHOWN_NODES_COUNT]),
    )
    return ProblemError(document, {"Retry-After": str(RETRY_AFTER_S)})


def _behind(error: NodestateError) -> ProblemError:
    assert isinstance(error, BehindError)
    of_type = PROBLEM_TYPES["behind"]
    reached = VersionDocument(*error.reached) if error.reached is not None else None
    document = BehindProblem(
        "behind", of_type.title, of_type.status, str(error), error.node, VersionDocument(*error.wanted), reached
    )
    return ProblemError(document, {"Retry-After": str(RETRY_AFTER_S)})


_OF_ERRORS: Final[tuple[tuple[type[NodestateError], Callable[[NodestateError], ProblemError]], ...]] = (
    (StaleViewError, _stale),
    (BehindError, _behind),
    (NotFoundError, lambda error: problem("not-found", str(error))),
    (BadRequestError, lambda error: bad_request(vars(error)["field"], vars(error)["reason"])),
    (ConfigError, lambda error: problem("conflict", str(error))),
)
"""The problem of each kind of error, the most specific kind first."""


def problem_of(error: NodestateError | ProblemError) -> ProblemError:
    """Return the problem for an error of the library or of a handler.

    An error without a type of its own is ``overloaded``. Such an error is of a server that does not answer, or of a
    limit that was reached, so a later request may succeed.
    """
    if isinstance(error, ProblemError):
        return error
    for kind, make in _OF_ERRORS:
        if isinstance(error, kind):
            return make(error)
    return problem("overloaded", printable(str(error)))
