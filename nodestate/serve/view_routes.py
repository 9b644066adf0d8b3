"""The route ``GET /v1/view``: all nodes within the bounds of the request."""

from __future__ import annotations

import time
from typing import Annotated, NamedTuple

import msgspec
import xxhash
from msgspec import Meta

from nodestate.serve.api_route import VIEW_HEADERS, ApiCall, ApiRoute
from nodestate.serve.encoding import accepts_gzip
from nodestate.serve.feeds import read_within
from nodestate.serve.parameters import BoundParameters
from nodestate.serve.responses import ApiResponse
from nodestate.serve.view_feed import PublishedView
from nodestate.view.documents import ViewDocument, finite_or_none
from nodestate.view.view import View

FieldsParameter = Annotated[
    str,
    Meta(
        description="Fields of the states to return, separated by commas, such as usage,status; without it, all.",
        pattern=r"^[A-Za-z0-9_.-]{1,64}(,[A-Za-z0-9_.-]{1,64}){0,31}$",
    ),
]
ZoneParameter = Annotated[str, Meta(description="Return only the nodes of this zone.", max_length=255)]
PositionParameter = Annotated[
    str,
    Meta(
        description="The position that the client has, from the header Nodestate-Position; with wait, the response "
        "comes when the view differs from it.",
        max_length=8_192,
    ),
]


class ViewParameters(BoundParameters, forbid_unknown_fields=True, kw_only=True):
    """The parameters of ``GET /v1/view``."""

    zone: ZoneParameter | None = None
    fields: FieldsParameter | None = None
    position: PositionParameter | None = None

    @property
    def field_names(self) -> frozenset[str] | None:
        """The fields of states to return; None: all."""
        return frozenset(self.fields.strip().split(",")) if self.fields is not None else None


class JudgedView(NamedTuple):
    """A view, judged by the bounds of a request, with its ETag."""

    view: View
    etag: str


def judge(view: View, parameters: BoundParameters) -> tuple[View, bool]:
    """Judge a view by the bounds of a request.

    Returns the view within the bounds, and True if it has no stale nodes. Raises ``StaleViewError`` or ``BehindError``.
    """
    bounded = view.bounded(parameters.max_age, parameters.node_max_age, parameters.on_stale)
    if (receipt := parameters.receipt) is not None:
        bounded.require(receipt, parameters.wait_s)
    return bounded, not bounded.stale and view.age <= parameters.max_age


def view_headers(published: PublishedView) -> dict[str, str]:
    """Return the headers of a response about a view."""
    age = finite_or_none(published.view.age)
    headers = {"Nodestate-Position": published.position}
    return headers if age is None else {**headers, "Nodestate-Age": f"{age:.3f}"}


def etag_of(published: PublishedView, view: View, parameters: ViewParameters, media_type: str) -> str:
    """Return the ETag of a response: equal for requests and views that get equal answers, but for the age.

    It covers the position with the design, the query, the media type, and which nodes are stale or incomplete: these
    change without a change of the position.
    """
    query = msgspec.structs.replace(parameters, wait=None, position=None)
    parts = (published.position, query, media_type, sorted(view.stale), sorted(view.incomplete))
    return f'W/"{xxhash.xxh3_128_hexdigest(msgspec.json.encode(parts))}"'


def matches(if_none_match: str, etag: str) -> bool:
    """True if the header ``If-None-Match`` names an ETag; compared weakly, as RFC 9110 demands."""
    opaque = etag.removeprefix("W/")
    given = [one.strip().removeprefix("W/") for one in if_none_match.split(",")]
    return opaque in given or given == ["*"]


async def get_view(call: ApiCall[ViewParameters]) -> ApiResponse:
    """Answer with all nodes within the bounds, or 304 if the client has them."""
    parameters = call.parameters
    feed = await call.service.feeds.of(parameters.design)
    arrived_at, wait_s = call.arrived_at, parameters.wait_s
    if parameters.position is not None and wait_s:
        published = feed.current
        if published is not None and published.position == parameters.position:
            await feed.news_after(published.number, arrived_at + wait_s)
            arrived_at, wait_s = time.monotonic(), 0.0
    published, view = await read_within(feed, arrived_at, wait_s, lambda view: judge(view, parameters))
    etag = etag_of(published, view, parameters, call.media_type)
    headers = {"ETag": etag, **view_headers(published)}
    if matches(call.headers.get("if-none-match", ""), etag):
        return ApiResponse(status=304, headers=headers)
    body = await call.service.workers.run(
        call.service.view_encoder.encode,
        view,
        call.media_type,
        zone=parameters.zone,
        fields=parameters.field_names,
        gzip=accepts_gzip(call.headers.get("accept-encoding", "")),
    )
    return ApiResponse(encoded=body, headers=headers)


ROUTES = (
    ApiRoute(
        "GET",
        "/v1/view",
        "All nodes of the cell, as a scheduler sees them: the document of 'nodestate view --json'.",
        get_view,
        ViewDocument,
        ViewParameters,
        problems=("stale-view", "behind", "not-found"),
        headers=VIEW_HEADERS,
        not_modified=True,
    ),
)
