"""Every exception that nodestate raises on purpose.

Numbers and names are attributes, so callers need not parse texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

from nodestate.text import count_text

SHOWN_COUNT: Final = 4
"""Partitions or nodes that a message names at most."""


class NodestateError(Exception):
    """Base of all errors below; catch it to catch all errors of nodestate.

    Errors and their attributes can be pickled.
    """

    kind: ClassVar[str] = "error"
    """Frozen word for the kind of error, printed by ``--json``."""

    json_names: ClassVar[Mapping[str, str]] = {}
    """Frozen names that ``--json`` prints for attributes with another name."""

    def json_fields(self) -> dict[str, Any]:
        """The attributes that ``--json`` prints, by their frozen names."""
        return {self.json_names.get(name, name): value for name, value in vars(self).items()}

    def __reduce__(
        self,
    ) -> tuple[Callable[..., NodestateError], tuple[type[NodestateError], tuple[object, ...]], object]:
        return _unpickled, (type(self), self.args), self.__dict__


def _unpickled(kind: type[NodestateError], args: tuple[object, ...]) -> NodestateError:
    """Create an error without its constructor, because ``args`` holds the text and not the constructor's arguments."""
    return kind.__new__(kind, *args)


class ConfigError(NodestateError):
    """Raised if a setting is missing, unknown or out of range. The message names the setting and its source."""

    kind: ClassVar[str] = "config"


# -- events ---------------------------------------------------------------------------------------


class BadEventError(NodestateError):
    """Raised if an event breaks the format (DESIGN.md section 4).

    Attributes:
        reason: a short frozen code for counters and headers.
        detail: text for people.
    """

    kind: ClassVar[str] = "bad-event"

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def naming(self, node: str) -> BadEventError:
        """Return the same error with the node's name before its detail."""
        return type(self)(self.reason, f"{node}: {self.detail}")


# -- designs --------------------------------------------------------------------------------------


class DesignStepError(NodestateError):
    """Raised if a step of a switch between designs is not possible now.

    Attributes:
        reason: why the step is not possible.
        first: the command to run before the step.
    """

    kind: ClassVar[str] = "design-step"
    json_names: ClassVar[Mapping[str, str]] = {"reason": "why"}

    def __init__(self, reason: str, first: str) -> None:
        super().__init__(f"{reason}; first: {first}")
        self.reason = reason
        self.first = first


class KeyStepError(NodestateError):
    """Raised if a change of the keys of a cell is not possible now.

    Attributes:
        reason: why the change is not possible.
        first: the command to run before the change.
    """

    kind: ClassVar[str] = "key-step"
    json_names: ClassVar[Mapping[str, str]] = {"reason": "why"}

    def __init__(self, reason: str, first: str) -> None:
        super().__init__(f"{reason}; first: {first}")
        self.reason = reason
        self.first = first


class ControlLostError(NodestateError):
    """Raised if the store that decides on the control record has no valid control record, or an old one.

    Attributes:
        server: the store.
    """

    kind: ClassVar[str] = "control-record-lost"

    def __init__(self, server: str, invalid: str = "") -> None:
        """``invalid``: why the record in the store is not valid; empty if it is missing or old."""
        super().__init__(
            f"{server} has a control record that counts as missing: {invalid}. See the remedies of 'nodestate doctor'"
            if invalid
            else f"{server} has no control record of this cell, or an old one. A running consumer writes the record "
            "again within seconds: start a consumer if none is running, then repeat the command. If auth_control is "
            "require, a new cell needs 'nodestate design sign' first"
        )
        self.server = server


# -- store ----------------------------------------------------------------------------------------


class StoreError(NodestateError):
    """Base of the errors of the store."""

    kind: ClassVar[str] = "store"
    server: str = ""
    """Name of the server; empty if the error does not name one."""


class StoreUnavailableError(StoreError):
    """Raised if a server does not answer, or the connection broke. The outcome of writes on their way is unknown."""

    kind: ClassVar[str] = "store-unavailable"

    def __init__(self, server: str, cause: str) -> None:
        super().__init__(f"store {server} does not answer: {cause}")
        self.server = server
        self.cause = cause


class StoreRefusedError(StoreError):
    """Raised if a database rejects the login, or does not allow the user to write."""

    kind: ClassVar[str] = "store-refused"

    def __init__(self, server: str, cause: str) -> None:
        super().__init__(
            f"store {server} refuses: {cause}; nothing was written. The user must be able to SELECT, INSERT, UPDATE "
            "and DELETE, and the database must not be read-only"
        )
        self.server = server
        self.cause = cause


class SchemaError(StoreError):
    """Raised if the tables of a database are not of the revision that this version reads and writes."""

    kind: ClassVar[str] = "schema"

    def __init__(
        self,
        server: str,
        cause: str,
        first: str = "run 'nodestate sql upgrade', or install the version that its tables are for",
    ) -> None:
        super().__init__(f"store {server}: {cause}; {first}")
        self.server = server
        self.cause = cause


class StoreFullError(StoreError):
    """Raised if a server has no memory for an item (memcached with ``-M``, or a full slab class)."""

    kind: ClassVar[str] = "store-full"

    def __init__(self, server: str, key: str, size: int) -> None:
        super().__init__(
            f"store {server} has no memory left for {key} ({size:,} bytes); the old value is unchanged. "
            "Raise memcached's -m, or remove other data from this server"
        )
        self.server = server
        self.key = key
        self.size_bytes = size


class DatabaseFullError(StoreFullError):
    """Raised if a database has no room for a transaction, on its disk or within its quota."""

    kind: ClassVar[str] = "database-full"

    def __init__(self, server: str, cause: str) -> None:
        StoreError.__init__(
            self,
            f"store {server} is full: {cause}; nothing was written. Free space on its disk: consumers then continue",
        )
        self.server = server
        self.cause = cause


class ItemTooLargeError(StoreError):
    """Raised before an item is written that is larger than the server's item limit (memcached ``-I``)."""

    kind: ClassVar[str] = "item-too-large"

    def __init__(self, server: str, key: str, size: int, limit: int) -> None:
        super().__init__(
            f"{key} has {size:,} bytes, more than the item limit of {limit:,} of store {server}; nothing was written. "
            "Raise memcached's -I"
        )
        self.server = server
        self.key = key
        self.size_bytes = size
        self.limit_bytes = limit


class CorruptItemError(StoreError):
    """Raised if stored bytes fail their checksum or format. Readers treat such an item as lost."""

    kind: ClassVar[str] = "corrupt-item"


class FencedError(StoreError):
    """Raised if an owner finds that its partition has a newer owner, or that another owner began an epoch."""

    kind: ClassVar[str] = "fenced"

    def __init__(self, partition: int, term: int, found: str) -> None:
        super().__init__(f"partition {partition} has another owner than this one (term {term}): {found}")
        self.partition = partition
        self.term = term


class EpochLostError(StoreError):
    """Raised if the head of an owned partition is missing: the store restarted, was flushed, or evicted it."""

    kind: ClassVar[str] = "epoch-lost"

    def __init__(self, partition: int, epoch: int) -> None:
        super().__init__(f"the store lost the head of partition {partition} (epoch {epoch:x})")
        self.partition = partition
        self.epoch = epoch


# -- broker ---------------------------------------------------------------------------------------


class BrokerUnavailableError(NodestateError):
    """Raised if the broker cannot be reached, or the connection broke. Unconfirmed publishes may be lost."""

    kind: ClassVar[str] = "broker-unavailable"

    def __init__(self, broker: str, cause: str, *, refuses_login: bool = False) -> None:
        fault = "refuses the login" if refuses_login else "does not answer"
        super().__init__(f"broker {broker} {fault}: {cause}")
        self.broker = broker
        self.cause = cause


class DeadLetterError(NodestateError):
    """Raised if the dead-letter queue does not accept a message now.

    The session continues, and the message stays unacknowledged until a later try.
    """

    kind: ClassVar[str] = "dead-letter-refused"

    def __init__(self, broker: str, cause: str) -> None:
        super().__init__(f"broker {broker} accepts no dead letters: {cause}")
        self.broker = broker
        self.cause = cause


class UnconfirmedError(NodestateError):
    """Raised if publishes were not confirmed in time. Their state is published again, as one report."""

    kind: ClassVar[str] = "unconfirmed"

    def __init__(self, count: int, timeout: float, cause: str = "") -> None:
        suffix = f": {cause}" if cause else ""
        publishes = count_text(count, "publish", "publishes")
        super().__init__(f"the broker did not confirm {publishes} within {timeout:g} s{suffix}")
        self.count = count
        self.timeout_s = timeout
        self.cause = cause


# -- agent ----------------------------------------------------------------------------------------


class SourceUnavailableError(NodestateError):
    """Raised if the hypervisor that an agent reads does not answer. The agent sends no heartbeats for its nodes."""

    kind: ClassVar[str] = "source-unavailable"

    def __init__(self, source: str, cause: str) -> None:
        super().__init__(f"{source} can't be read: {cause}")
        self.source = source
        self.cause = cause


class OrderFailedError(NodestateError):
    """Raised if a hypervisor answers but could not carry out an order. The order has had no effect."""

    kind: ClassVar[str] = "order-failed"

    def __init__(self, source: str, cause: str) -> None:
        super().__init__(f"{source} could not carry out the order: {cause}")
        self.source = source
        self.cause = cause


# -- reading --------------------------------------------------------------------------------------


class StaleViewError(NodestateError):
    """Raised if no view within the caller's bound is available.

    Attributes:
        age: age of the view in seconds.
        max_age: the bound in seconds.
        partitions: the partitions that are too old.
        nodes: the nodes that are over ``node_max_age``.
        cause: why the refresh failed; empty if it did not.
        cell: the cell, if a ``MultiCellReader`` read it; empty otherwise.
    """

    kind: ClassVar[str] = "stale-view"

    def __init__(
        self,
        age: float,
        max_age: float,
        partitions: Sequence[int] = (),
        nodes: Sequence[str] = (),
        cause: str = "",
        cell: str = "",
    ) -> None:
        if partitions:
            old = f"is {age:.1f} s old" if math.isfinite(age) else "was never confirmed"
            what = f"the view {old} in {_some(partitions, 'partition')}, and the accepted age is {max_age:g} s"
            advice = "consumers may be stopped or behind: run 'nodestate doctor'"
        else:
            what = f"{_some(nodes, 'node')} gave no sign of life within the accepted {max_age:g} s"
            advice = "check that their agents run"
        where = f"cell {cell}: " if cell else ""
        super().__init__(where + (f"{what}: {cause}" if cause else f"{what}; {advice}"))
        self.age = age
        self.max_age = max_age
        self.partitions = tuple(partitions)
        self.nodes = tuple(nodes)
        self.cause = cause
        self.cell = cell

    def of_cell(self, cell: str) -> StaleViewError:
        """Return the same error, of one of several cells."""
        return StaleViewError(self.age, self.max_age, self.partitions, self.nodes, self.cause, cell)


def _some(names: Sequence[object], kind: str) -> str:
    more = ", …" if len(names) > SHOWN_COUNT else ""
    shown = ", ".join(map(str, names[:SHOWN_COUNT]))
    return f"{count_text(len(names), kind)} ({shown}{more})"


class BehindError(NodestateError):
    """Raised if a view did not reach a receipt's version in time.

    Attributes:
        node: the node.
        wanted: the version of the receipt.
        reached: the version that the view has; None if it has none.
        timeout_s: how long the reader waited, in seconds.
    """

    kind: ClassVar[str] = "behind"

    def __init__(self, node: str, wanted: tuple[int, int], reached: tuple[int, int] | None, timeout: float) -> None:
        super().__init__(f"after {timeout:g} s, the view has version {reached} of {node}, not {tuple(wanted)} or newer")
        self.node = node
        self.wanted = wanted
        self.reached = reached
        self.timeout_s = timeout


# -- scheduling -----------------------------------------------------------------------------------


class BadRequestError(NodestateError):
    """Raised if a request cannot be right.

    Attributes:
        field: the field that is wrong.
        reason: text for people.
    """

    kind: ClassVar[str] = "bad-request"
    json_names: ClassVar[Mapping[str, str]] = {"reason": "why"}

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class NotFoundError(BadRequestError):
    """Raised if a well-formed request names something that does not exist or is not the caller's.

    For example a reservation that expired or belongs to another scheduler, an instance that no node reports, or a node
    that no view contains.
    """

    kind: ClassVar[str] = "not-found"


class PolicyError(NodestateError):
    """Raised if a filter or weigher fails or returns an invalid value. Its author must repair it; the cause is chained.

    Attributes:
        policy: name of the filter or weigher.
        place: its module and function.
        reason: text for people.
    """

    kind: ClassVar[str] = "policy"
    json_names: ClassVar[Mapping[str, str]] = {"reason": "why"}

    def __init__(self, what: str, policy: str, place: str, reason: str) -> None:
        super().__init__(f"{what} {policy!r} ({place}) {reason}")
        self.policy = policy
        self.place = place
        self.reason = reason
