"""The bodies of requests to the routes of ``nodestate serve`` that decide, for checks of every such route."""

from __future__ import annotations

from typing import Any, Final

_RESOURCES: Final = {"resources": {"VCPU": 1}}
_REQUESTS: Final = {"requests": [{"instances": ["a"], **_RESOURCES}]}

BODIES: Final[dict[str, Any]] = {
    "/v1/select": _REQUESTS,
    "/v1/claims": _REQUESTS,
    "/v1/boots": _REQUESTS,
    "/v1/instances/{id}/migrate": {},
    "/v1/instances/{id}/resize": _RESOURCES,
    "/v1/instances/{id}/terminate": {},
    "/v1/nodes/{name}/evacuate": {},
    "/v1/nodes/{name}/drain": {},
    "/v1/what-if": {"request": _RESOURCES, "assume_empty": True},
    "/v1/reservations": {"members": [{"instances": ["m1"], **_RESOURCES}, {"count": 2, **_RESOURCES}]},
    "/v1/reservations/{id}/confirm": {},
    "/v1/reservations/{id}/extend": {"hold_s": 60},
    "/v1/reservations/{id}/release": {},
}
"""By the path of a route for POST, a body that it accepts; a new route needs one."""
