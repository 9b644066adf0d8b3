"""Parameters of requests: their types, and their conversion from the texts of a URL."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from nodestate.config import DESIGN_NAMES
from nodestate.model import Receipt, Version
from nodestate.serve.documents import decoded, plain_type
from nodestate.serve.problems import bad_request

P = TypeVar("P", bound=msgspec.Struct)

DEFAULT_MAX_AGE_S: Final = 5.0
"""Accepted age of a view if a request names none, as for ``nodestate view``."""
MAX_WAIT_S: Final = 60.0
"""Longest wait that a request may ask for."""
MAX_NAME_CHARS: Final = 200

SecondsBound = Annotated[float, Meta(ge=0, le=1e9)]
NodeNameParameter = Annotated[
    str, Meta(description="Name of the node.", pattern=r"^[A-Za-z0-9._:-]{1,200}$", max_length=MAX_NAME_CHARS)
]
WaitParameter = Annotated[
    str,
    Meta(
        description="Longest wait in seconds, such as 30s; at most 60s. With position, until there is news; otherwise "
        "until the view is within the bounds of the request.",
        pattern=r"^([0-9]|[1-5][0-9]|60)s$",
    ),
]
ReceiptParameter = Annotated[
    str,
    Meta(
        description="NODE:INCARNATION.GENERATION. The view must have that version of the node or a newer one.",
        pattern=r"^[A-Za-z0-9._:-]{1,200}:[0-9]{1,15}\.[0-9]{1,15}$",
    ),
]
_RECEIPT: Final = re.compile(r"(.+):([0-9]+)\.([0-9]+)")


class NoParameters(msgspec.Struct, forbid_unknown_fields=True):
    """A request without parameters."""


class BoundParameters(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The bounds that every request about a view may give."""

    max_age: Annotated[
        SecondsBound,
        Meta(description="Accepted age of the view: seconds since the owner of each partition last confirmed it."),
    ] = DEFAULT_MAX_AGE_S
    node_max_age: (
        Annotated[SecondsBound, Meta(description="Accepted age of a node: seconds since its last sign of life.")] | None
    ) = None
    at_least: ReceiptParameter | None = None
    on_stale: Annotated[
        Literal["refuse", "flag", "exclude"],
        Meta(
            description="If a partition or node is older than accepted: answer 503 (refuse), list it as stale (flag), "
            "or leave its nodes out (exclude)."
        ),
    ] = "refuse"
    design: (
        Annotated[
            str,
            Meta(
                description="Design to read, such as snapshot or snapshot@12; without it, the one that readers read.",
                pattern=f"^({'|'.join(DESIGN_NAMES)})(@([1-9]|[1-9][0-9]|1[0-9][0-9]|2[0-3][0-9]|240))?$",
            ),
        ]
        | None
    ) = None
    wait: WaitParameter | None = None

    @property
    def wait_s(self) -> float:
        """The longest wait in seconds; 0 without ``wait``."""
        return float(self.wait.strip()[:-1]) if self.wait else 0.0

    @property
    def receipt(self) -> Receipt | None:
        """The receipt that ``at_least`` names; None without it."""
        match = _RECEIPT.fullmatch(self.at_least.strip()) if self.at_least else None
        return Receipt(match[1], Version(int(match[2]), int(match[3]))) if match is not None else None


def parameters_of(kind: type[P], path: Mapping[str, str], query: Iterable[tuple[str, str]]) -> P:
    """Convert the texts of a URL to parameters.

    Raises ``ProblemError`` of the type ``bad-request``, which names the parameter that is unknown, wrong or given
    twice.
    """
    allowed = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    given: dict[str, Any] = dict(path)
    for name, value in query:
        if name not in allowed:
            shown = ", ".join(name for name in allowed if name not in path) or "none"
            raise bad_request(name[:MAX_NAME_CHARS], f"there is no such parameter here; there are: {shown}")
        if name in given:
            raise bad_request(name, "the parameter is given twice")
        given[name] = value
    for name, value in given.items():
        document = document_type(allowed[name])
        if document is not None:
            given[name] = decoded(value.encode(errors="surrogatepass"), document.kind, name)
            continue
        try:
            alone = msgspec.convert({name: value}, _alone(kind, name), strict=False)
        except (msgspec.ValidationError, UnicodeEncodeError) as error:
            raise bad_request(name, str(error).partition(" - at ")[0]) from None
        if getattr(alone, name) is None:  # msgspec takes the word null for None
            raise bad_request(name, f"expected a value, got {value!r}")
    return msgspec.convert(given, kind, strict=False)


_kinds: dict[tuple[type[msgspec.Struct], str], Any] = {}


def _alone(kind: type[msgspec.Struct], name: str) -> Any:
    """Return a type that has one field of ``kind`` only, so that an error is known to be of that field."""
    if (kind, name) not in _kinds:
        of_field = next(field for field in msgspec.structs.fields(kind) if field.encode_name == name)
        _kinds[kind, name] = msgspec.defstruct(f"{kind.__name__}_{name}", [(name, of_field.type)])
    return _kinds[kind, name]


class DocumentParameter(NamedTuple):
    """The type of a parameter whose text is a document of JSON."""

    kind: type[msgspec.Struct]
    description: str


def document_type(field: msgspec.structs.FieldInfo) -> DocumentParameter | None:
    """Return the type of a parameter whose text is a document of JSON; None if it is a plain value."""
    kind = msgspec.inspect.type_info(field.type)
    if isinstance(kind, msgspec.inspect.UnionType):
        kind = kind.types[0]
    plain = plain_type(kind)
    if not isinstance(plain, msgspec.inspect.StructType):
        return None
    assert isinstance(kind, msgspec.inspect.Metadata), "each parameter has a description"
    return DocumentParameter(plain.cls, (kind.extra_json_schema or {})["description"])


def is_required(field: msgspec.structs.FieldInfo) -> bool:
    """True if a field has no default."""
    return field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT
