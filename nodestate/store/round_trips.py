"""Round trips side by side: the work of many partitions, each written as straight code, in few pipelined calls.

The work of a partition is a generator. It yields the requests to its store (``Step``) and receives the answers
(``Reply``). ``run`` advances all generators together and makes one call per server and round, so 16 partitions need no
more round trips than one. A server that does not answer fails only the partitions that are stored on it.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple, TypeVar

from nodestate.errors import ItemTooLargeError, NodestateError, StoreError
from nodestate.ports import Item, Key, Store, StoreRole, Write, WriteResult

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class Step(NamedTuple):
    """The requests of one round trip."""

    write: Sequence[Write] = ()
    """Carried out in order, before the fetch."""
    fetch: Sequence[Key] = ()
    values_only: bool = False
    """True if the items of the fetch may lack their CAS ids and times to live."""


class Reply(NamedTuple):
    """The answer to a step."""

    written: Sequence[WriteResult]
    """One result for each write."""
    items: Mapping[Key, Item]
    """The items that exist."""


Steps = Generator[Step, Reply, T]


class Stores:
    """The stores of a cell that are open: memcached servers (``store`` and ``store_b``) and a database.

    Partition p is stored on memcached server p modulo their number. The map is static: a server that is down makes its
    partitions unavailable, but its keys never move to another server, and reads of them never look like misses.
    """

    def __init__(self, stores: Sequence[Store], database: Store | None = None, stores_b: Sequence[Store] = ()) -> None:
        # By role, the servers in the order that maps partitions to them.
        self._at = {
            StoreRole.STORE: tuple(stores),
            StoreRole.REPLICA: (*stores[1:], stores[0]) if len(stores) > 1 else (),
            StoreRole.STORE_B: tuple(stores_b),
            StoreRole.SQL: (database,) if database is not None else (),
        }

    def has(self, role: StoreRole) -> bool:
        """True if a server with this role is open."""
        return len(self._at[role]) > 0

    def at(self, role: StoreRole) -> tuple[Store, ...]:
        """The servers with this role, in the order that maps partitions to them."""
        return self._at[role]

    @property
    def everywhere(self) -> tuple[Store, ...]:
        """All servers, the database first."""
        return (*self._at[StoreRole.SQL], *self._at[StoreRole.STORE], *self._at[StoreRole.STORE_B])

    def of(self, partition: int, role: StoreRole = StoreRole.STORE) -> Store:
        """The server that a partition is stored on."""
        servers = self._at[role]
        assert servers, f"no server of the setting {role.value} is open"
        return servers[partition % len(servers)]

    def merged_with(self, others: Stores) -> Stores:
        """The stores of both. If both have servers with a role, this object's servers are used."""
        at = {role: self._at[role] or others.at(role) for role in StoreRole}
        return Stores(at[StoreRole.STORE], next(iter(at[StoreRole.SQL]), None), at[StoreRole.STORE_B])

    def close(self) -> None:
        """Close all connections."""
        for store in self.everywhere:
            store.close()


def run(work: Mapping[K, tuple[Store, Steps[T]]]) -> dict[K, T | NodestateError]:
    """Run all generators to their ends.

    Args:
        work: by any key, the store and the generator.

    Returns:
        By the same keys, what each generator returned, or the ``NodestateError`` that ended it.
    """
    results: dict[K, T | NodestateError] = {}
    replies: dict[K, Reply | NodestateError | None] = dict.fromkeys(work)
    while replies:
        by_store: dict[int, list[K]] = {}
        for key in replies:
            by_store.setdefault(id(work[key][0]), []).append(key)
        for keys in by_store.values():
            # Advance a generator only when it is its server's turn: steps may contain the time.
            asked: dict[K, Step] = {}
            for key in keys:
                _resume(key, work[key][1], replies.pop(key), asked, results)
            if asked:
                replies.update(_call(work[keys[0]][0], asked))
    return results


def run_one(store: Store, steps: Steps[T]) -> T:
    """Run one generator to its end. Raises the error that ended it."""
    result = run({0: (store, steps)})[0]
    if isinstance(result, NodestateError):
        raise result
    return result


def _call(store: Store, asked: Mapping[K, Step]) -> dict[K, Reply | NodestateError]:
    writes = [write for step in asked.values() for write in step.write]
    keys = list(chain.from_iterable([step.fetch for step in asked.values()]))
    try:
        written = store.write(writes) if writes else []
        items = store.fetch(keys, values_only=all(step.values_only for step in asked.values())) if keys else {}
    except ItemTooLargeError as error:
        if len(asked) == 1:
            return dict.fromkeys(asked, error)
        # Sizes are checked before anything is sent, so nothing was written. Call again for each partition alone.
        return {key: reply for key, step in asked.items() for reply in _call(store, {key: step}).values()}
    except StoreError as error:
        return dict.fromkeys(asked, error)
    replies: dict[K, Reply | NodestateError] = {}
    start = 0
    for key, step in asked.items():
        replies[key] = Reply(written[start : start + len(step.write)], items)
        start += len(step.write)
    return replies


def _resume(
    key: K,
    steps: Steps[T],
    reply: Reply | NodestateError | None,
    waiting: dict[K, Step],
    results: dict[K, T | NodestateError],
) -> None:
    try:
        if reply is None:
            waiting[key] = next(steps)
        elif isinstance(reply, NodestateError):
            waiting[key] = steps.throw(reply)
        else:
            waiting[key] = steps.send(reply)
    except StopIteration as stop:
        results[key] = stop.value
    except NodestateError as error:
        results[key] = error
