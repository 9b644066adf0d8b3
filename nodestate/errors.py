"""Every exception nodestate raises on purpose. Numbers are attributes, so that callers need not parse texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Final

SHOWN_COUNT: Final = 4
"""Partitions or nodes that a message names at most."""


class NodestateError(Exception):
    """Base of all errors below: catch this to catch nodestate's own. They can be pickled, with their numbers."""

    kind: ClassVar[str] = "error"

    def __reduce__(
        self,
    ) -> tuple[Callable[..., NodestateError], tuple[type[NodestateError], tuple[object, ...]], object]:
        return _unpickled, (type(self), self.args), self.__dict__


def _unpickled(kind: type[NodestateError], args: tuple[object, ...]) -> NodestateError:
    """Anew without its constructor, whose arguments the text was made of."""
    return kind.__new__(kind, *args)


class ConfigError(NodestateError):
    """Raised when a setting is missing, unknown or does not fit; says which and where it came from."""

    kind: ClassVar[str] = "config"


# -- events ---------------------------------------------------------------------------------------


class BadEventError(NodestateError):
    """Raised when an event breaks the format (DESIGN.md section 4).

    ``reason`` is a short frozen code for counters and headers, ``detail`` is for people.
    """

    kind: ClassVar[str] = "bad-event"

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


# -- designs --------------------------------------------------------------------------------------


class DesignStepError(NodestateError):
    """Raised when a step of a switch between designs can't be taken now; says what would have to be done first."""

    kind: ClassVar[str] = "design-step"

    def __init__(self, why: str, first: str) -> None:
        super().__init__(f"{why}; first: {first}")
        self.why = why
        self.first = first


class ControlLostError(NodestateError):
    """Raised when the place that decides on the control record has none, or an old one."""

    kind: ClassVar[str] = "control-record-lost"

    def __init__(self, server: str) -> None:
        super().__init__(
            f"{server} has no control record of this cell, or an old one; consumers write it within seconds: is one running?"
        )
        self.server = server


# -- store ----------------------------------------------------------------------------------------


class StoreError(NodestateError):
    """Base of what can go wrong with the place where state is kept."""

    kind: ClassVar[str] = "store"


class StoreUnavailableError(StoreError):
    """Raised when a server does not answer, or broke off: the outcome of writes under way is unknown."""

    kind: ClassVar[str] = "store-unavailable"

    def __init__(self, server: str, cause: str) -> None:
        super().__init__(f"store {server} does not answer: {cause}")
        self.server = server
        self.cause = cause


class StoreRefusedError(StoreError):
    """Raised when a database does not let this user in, or not write."""

    kind: ClassVar[str] = "store-refused"

    def __init__(self, server: str, cause: str) -> None:
        super().__init__(
            f"store {server} refuses: {cause}; nothing was written. The user must be able to SELECT, INSERT, UPDATE and "
            "DELETE, and the database must not be read-only"
        )
        self.server = server
        self.cause = cause


class SchemaError(StoreError):
    """Raised when a database's tables are not those that this version reads and writes."""

    kind: ClassVar[str] = "schema"

    def __init__(
        self, server: str, cause: str, first: str = "run 'nodestate sql upgrade', or the version that its tables are of"
    ) -> None:
        super().__init__(f"store {server}: {cause}; {first}")
        self.server = server
        self.cause = cause


class StoreFullError(StoreError):
    """Raised when a server refused a write for want of memory (memcached under ``-M``, or a full slab class)."""

    kind: ClassVar[str] = "store-full"

    def __init__(self, server: str, key: str, size: int) -> None:
        super().__init__(
            f"store {server} has no memory left for {key} ({size:,} bytes): nothing was replaced; "
            "raise its -m, or remove what else lives there"
        )
        self.server = server
        self.key = key
        self.size_bytes = size


class DatabaseFullError(StoreFullError):
    """Raised when a database found no room for a transaction on its disk, or in what it may use of it."""

    kind: ClassVar[str] = "database-full"

    def __init__(self, server: str, cause: str) -> None:
        StoreError.__init__(
            self, f"store {server} is full: {cause}; nothing was written, and it goes on when there is room on its disk"
        )
        self.server = server
        self.cause = cause


class ItemTooLargeError(StoreError):
    """Raised before writing an item that is over the server's item limit (memcached ``-I``)."""

    kind: ClassVar[str] = "item-too-large"

    def __init__(self, server: str, key: str, size: int, limit: int) -> None:
        super().__init__(
            f"{key} would be {size:,} bytes, over the item limit of {limit:,} of store {server}: "
            "nothing was written; raise its -I"
        )
        self.server = server
        self.key = key
        self.size_bytes = size
        self.limit_bytes = limit


class CorruptItemError(StoreError):
    """Raised when stored bytes fail their checksum or format; to a reader the same as a lost item."""

    kind: ClassVar[str] = "corrupt-item"


class FencedError(StoreError):
    """Raised when an owner finds that its partition has a newer owner, or that it took part in another epoch."""

    kind: ClassVar[str] = "fenced"

    def __init__(self, partition: int, term: int, found: str) -> None:
        super().__init__(f"partition {partition} is no longer ours (term {term}): {found}")
        self.partition = partition
        self.term = term


class EpochLostError(StoreError):
    """Raised when the head of a held partition is gone: the store lost it (restart, flush, eviction)."""

    kind: ClassVar[str] = "epoch-lost"

    def __init__(self, partition: int, epoch: int) -> None:
        super().__init__(f"the store lost the head of partition {partition} (epoch {epoch:x})")
        self.partition = partition
        self.epoch = epoch


# -- broker ---------------------------------------------------------------------------------------


class BrokerUnavailableError(NodestateError):
    """Raised when the broker can't be reached, or the connection broke; unconfirmed publishes may be lost."""

    kind: ClassVar[str] = "broker-unavailable"

    def __init__(self, broker: str, cause: str) -> None:
        super().__init__(f"broker {broker} does not answer: {cause}")
        self.broker = broker
        self.cause = cause


class DeadLetterError(NodestateError):
    """Raised when a message can't be given to the dead-letter queue just now. The session goes on; the message stays
    unacked, to be tried again.
    """

    kind: ClassVar[str] = "dead-letter-refused"

    def __init__(self, broker: str, cause: str) -> None:
        super().__init__(f"broker {broker} takes no dead letters: {cause}")
        self.broker = broker
        self.cause = cause


class UnconfirmedError(NodestateError):
    """Raised when publishes were not confirmed in time; they are published again as one report."""

    kind: ClassVar[str] = "unconfirmed"

    def __init__(self, count: int, timeout: float) -> None:
        super().__init__(f"{count} publishes not confirmed within {timeout:g} s")
        self.count = count
        self.timeout_s = timeout


# -- agent ----------------------------------------------------------------------------------------


class SourceUnavailableError(NodestateError):
    """Raised when the place an agent reads state from (a hypervisor) does not answer: its nodes get no heartbeats."""

    kind: ClassVar[str] = "source-unavailable"

    def __init__(self, source: str, cause: str) -> None:
        super().__init__(f"{source} can't be read: {cause}")
        self.source = source
        self.cause = cause


class OrderFailedError(NodestateError):
    """Raised when a source that answers could not carry out an order; nothing of it was done."""

    kind: ClassVar[str] = "order-failed"

    def __init__(self, source: str, cause: str) -> None:
        super().__init__(f"{source} could not: {cause}")
        self.source = source
        self.cause = cause


# -- reading --------------------------------------------------------------------------------------


class StaleViewError(NodestateError):
    """Raised when a view can't be had within the bound that the caller set.

    ``age`` and ``max_age`` are seconds; ``partitions`` those that are too old; ``nodes`` those over
    ``node_max_age``; ``cause`` says why the refresh failed, where it did.
    """

    kind: ClassVar[str] = "stale-view"

    def __init__(
        self,
        age: float,
        max_age: float,
        partitions: Sequence[int] = (),
        nodes: Sequence[str] = (),
        cause: str = "",
    ) -> None:
        if partitions:
            old = f"is {age:.1f} s old" if math.isfinite(age) else "was never known to be caught up"
            what = f"the view {old}, over the {max_age:g} s that were asked, in {_some(partitions, 'partition')}"
            advice = "are consumers running and caught up? see 'nodestate doctor'"
        else:
            what = f"{_some(nodes, 'node')} gave no sign of life within the {max_age:g} s that were asked"
            advice = "are their agents running?"
        super().__init__(f"{what}: {cause}" if cause else f"{what}; {advice}")
        self.age = age
        self.max_age = max_age
        self.partitions = tuple(partitions)
        self.nodes = tuple(nodes)
        self.cause = cause


def _some(names: Sequence[object], kind: str) -> str:
    more = ", …" if len(names) > SHOWN_COUNT else ""
    shown = ", ".join(map(str, names[:SHOWN_COUNT]))
    return f"{len(names):,} {kind}{'' if len(names) == 1 else 's'} ({shown}{more})"


class BehindError(NodestateError):
    """Raised when a view did not reach a receipt's version in time; ``reached`` is the version it has, or None."""

    kind: ClassVar[str] = "behind"

    def __init__(self, node: str, wanted: tuple[int, int], reached: tuple[int, int] | None, timeout: float) -> None:
        super().__init__(f"{node} is at {reached} where {tuple(wanted)} was wanted, after {timeout:g} s")
        self.node = node
        self.wanted = wanted
        self.reached = reached
        self.timeout_s = timeout


# -- scheduling -----------------------------------------------------------------------------------


class BadRequestError(NodestateError):
    """Raised when a request can't be right; ``field`` names what is wrong with it, ``why`` is for people."""

    kind: ClassVar[str] = "bad-request"

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field = field
        self.why = why


class NotFoundError(BadRequestError):
    """Raised when a request may be right, but what it names is not there for who asks: a reservation that is not held (any
    more) or is somebody else's, an instance that no node reports, a node that nobody knows.
    """

    kind: ClassVar[str] = "not-found"


class PolicyError(NodestateError):
    """Raised when a filter or a weigher fails, or gives what none may give: its author's to mend, and the cause is chained.

    ``policy``: its name; ``place``: module and function; ``why`` is for people.
    """

    kind: ClassVar[str] = "policy"

    def __init__(self, what: str, policy: str, place: str, why: str) -> None:
        super().__init__(f"{what} {policy!r} ({place}) {why}")
        self.policy = policy
        self.place = place
        self.why = why
