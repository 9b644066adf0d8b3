"""Round trips: many partitions' steps, each written as straight code, run side by side in few pipelined calls.

A partition's work is a generator: it yields what it wants of its store (``Step``) and is sent what came back
(``Reply``). ``run`` advances all generators together and makes one call per server and round, so 16 partitions
cost the round trips of one. A server that does not answer fails only the partitions that live on it.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from nodestate.errors import ItemTooLargeError, NodestateError, StoreError
from nodestate.ports import Item, Key, Store, StoreRole, Write, WriteResult

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class Step(NamedTuple):
    """One round trip: the writes are carried out in order, then the keys are fetched."""

    write: Sequence[Write] = ()
    fetch: Sequence[Key] = ()


class Reply(NamedTuple):
    """What came back: an outcome for each write, and the items that are there."""

    written: Sequence[WriteResult]
    items: Mapping[Key, Item]


Steps = Generator[Step, Reply, T]


class Stores:
    """The servers of a cell: memcached's, those that it is moved to or came from, and a database; each where a design needs
    it.

    Partition p lives on memcached p modulo their number: a static map, so that a server that is down is an outage of its
    partitions and never a miss, and never moves a key.
    """

    def __init__(self, stores: Sequence[Store], database: Store | None = None, stores_b: Sequence[Store] = ()) -> None:
        self._at = {
            StoreRole.STORE: tuple(stores),
            StoreRole.STORE_B: tuple(stores_b),
            StoreRole.SQL: (database,) if database is not None else (),
        }

    def has(self, where: StoreRole) -> bool:
        """Whether there is a place for a design."""
        return len(self._at[where]) > 0

    def at(self, where: StoreRole) -> tuple[Store, ...]:
        """The servers of one place, in the order that maps partitions to them."""
        return self._at[where]

    @property
    def everywhere(self) -> tuple[Store, ...]:
        """All servers, the database first."""
        return (*self._at[StoreRole.SQL], *self._at[StoreRole.STORE], *self._at[StoreRole.STORE_B])

    def of(self, partition: int, where: StoreRole = StoreRole.STORE) -> Store:
        """Where a partition of a design lives."""
        servers = self._at[where]
        assert servers, f"nothing of {where.value} was opened"
        return servers[partition % len(servers)]

    def and_those_of(self, others: Stores) -> Stores:
        """Both, where each place is of the first that has it."""
        at = {where: self._at[where] or others.at(where) for where in StoreRole}
        return Stores(at[StoreRole.STORE], next(iter(at[StoreRole.SQL]), None), at[StoreRole.STORE_B])

    def close(self) -> None:
        """Close all connections."""
        for store in self.everywhere:
            store.close()


def run(work: Mapping[K, tuple[Store, Steps[T]]]) -> dict[K, T | NodestateError]:
    """Run all generators to their ends. A ``NodestateError`` that ends one is its result, and no other's."""
    results: dict[K, T | NodestateError] = {}
    replies: dict[K, Reply | NodestateError | None] = dict.fromkeys(work)
    while replies:
        by_store: dict[int, list[K]] = {}
        for key in replies:
            by_store.setdefault(id(work[key][0]), []).append(key)
        for keys in by_store.values():
            # A step is asked for when it is its server's turn, and not before: it may say what time it is.
            asked: dict[K, Step] = {}
            for key in keys:
                _resume(key, work[key][1], replies.pop(key), asked, results)
            if asked:
                replies.update(_call(work[keys[0]][0], asked))
    return results


def run_one(store: Store, steps: Steps[T]) -> T:
    """Run one generator to its end; its error is raised."""
    result = run({0: (store, steps)})[0]
    if isinstance(result, NodestateError):
        raise result
    return result


def _call(store: Store, asked: Mapping[K, Step]) -> dict[K, Reply | NodestateError]:
    writes = [write for step in asked.values() for write in step.write]
    keys = [key for step in asked.values() for key in step.fetch]
    try:
        written = store.write(writes) if writes else []
        items = store.fetch(keys) if keys else {}
    except ItemTooLargeError as error:
        if len(asked) == 1:
            return dict.fromkeys(asked, error)
        # Sizes are checked before anything is sent, so nothing was written: let each partition answer for itself.
        return {key: reply for key, step in asked.items() for reply in _call(store, {key: step}).values()}
    except StoreError as error:
        return dict.fromkeys(asked, error)
    replies: dict[K, Reply | NodestateError] = {}
    begin = 0
    for key, step in asked.items():
        replies[key] = Reply(written[begin : begin + len(step.write)], items)
        begin += len(step.write)
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
