"""The declaration of a route: routing, validation of requests, roles and the OpenAPI document all follow from it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, TypeVar

import msgspec
from starlette.datastructures import Headers

from nodestate.serve.parameters import NoParameters
from nodestate.serve.responses import ApiResponse
from nodestate.serve.service import Service
from nodestate.serve.tokens import Role, TokenHolder

P = TypeVar("P", bound=msgspec.Struct)

VIEW_HEADERS: Final = {
    "Nodestate-Position": "The commits that the view is as of, as one word to compare and to give as position.",
    "Nodestate-Age": "Age of the view in seconds; missing if a partition was never confirmed.",
}
"""Headers of responses about a view, with their descriptions."""


@dataclass(frozen=True)
class ApiCall(Generic[P]):
    """One request to a route, after all checks."""

    service: Service
    parameters: P
    body: Any
    """The decoded body, of the type that the route declares; None if it declares none."""
    headers: Headers
    """The headers of the request; a look-up ignores the case of names."""
    media_type: str
    """Media type of the response that the client prefers: ``application/json`` or ``application/x-msgpack``."""
    arrived_at: float
    """Monotonic time at which the request arrived."""
    holder: TokenHolder | None
    """The holder of the request's token; None if the service has no tokens or the route is open."""
    path: str
    """Path of the request."""
    is_tls: bool
    """True if the request came by TLS."""
    abort: Callable[[], None]
    """Drops the client at once, without a response."""
    is_permitted: Callable[[], bool]
    """Returns False once the token of the request was withdrawn. A stream asks from time to time."""


@dataclass(frozen=True)
class ApiRoute:
    """One route of the HTTP API."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    """Path, with ``{name}`` for parameters in it."""
    summary: str
    """One sentence for the OpenAPI document and the reference."""
    handler: Callable[[ApiCall[Any]], Coroutine[Any, Any, ApiResponse]]
    response: Any
    """Type of the response: a struct; None for a stream."""
    parameters: type[msgspec.Struct] = NoParameters
    """The parameters; those not in the path are in the query."""
    body: type[msgspec.Struct] | None = None
    """Type of the request's body; None: it has none."""
    problems: tuple[str, ...] = ()
    """Types of problems that the handler may answer with, besides the problems of every route."""
    role: Role = "read"
    """The role that a token must have."""
    status: int = 200
    """HTTP status of a response that is no problem."""
    other_statuses: tuple[int, ...] = ()
    """Other HTTP statuses of responses of the same type."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers of the response, with their descriptions."""
    decides: bool = False
    """True if the answer rests on a view of the scheduler: a view over the bound is refused with 503."""
    not_modified: bool = False
    """True if the response has an ETag, and a request with ``If-None-Match`` may be answered by 304."""
    events: Mapping[str, type[msgspec.Struct]] = field(default_factory=dict)
    """The events of a stream: by name, the type of their data."""
    media_types: tuple[str, ...] = ("application/json", "application/x-msgpack")
    """Media types of the response."""

    @property
    def is_repeatable(self) -> bool:
        """True if the route takes the header ``Idempotency-Key``: a POST that changes something or costs much."""
        return self.method == "POST" and self.role in ("schedule", "operate")
