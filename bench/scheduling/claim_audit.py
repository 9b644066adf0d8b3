"""The claim records of a cell, read as they are, apart from any scheduler; and the bounds that they must keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Final, Self

from bench.environments import PATIENCE_S
from bench.scheduling.hosts import Hosts
from bench.workload import require
from nodestate.ports import Key, Put, Write
from nodestate.scheduling.claims import CLAIMS, Claim, ClaimRecord
from nodestate.store import keys
from nodestate.store.memcached import MemcachedStore

PIECE: Final = 2_000
"""Records of one round trip."""

Held = tuple[str, str]
"""A claim as who holds it knows it: node and id."""


class Claimed:
    """A memcached's claims on a fleet. A context manager."""

    def __init__(self, address: str, cell: str, hosts: Hosts) -> None:
        self._store = MemcachedStore(address, timeout_s=PATIENCE_S)
        self._cell = cell
        self._hosts = hosts

    def records(self) -> Iterator[tuple[int, ClaimRecord]]:
        """By number of the node; of nodes that have one."""
        names = self._hosts.names
        for at in range(0, len(names), PIECE):
            asked: dict[Key, int] = {
                keys.claim(self._cell, name): n for n, name in enumerate(names[at : at + PIECE], at)
            }
            for key, item in self._store.fetch(list(asked)).items():
                yield asked[key], CLAIMS.unpack(item.value)

    def require_sound(self, held: Collection[Held]) -> str:
        """Raise ``WrongResultError`` unless exactly these claims are there, within every bound; returns what was shown."""
        found: set[Held] = set()
        for number, record in self.records():
            self._require_within(number, record.claims)
            found |= {(self._hosts.names[number], claim.id) for claim in record.claims}
        require(len(held) == len(set(held)), "a claim is held twice")
        missing, odd = set(held) - found, found - set(held)
        require(not missing, f"{len(missing)} claims are not in the records, as {next(iter(missing), None)}")
        require(not odd, f"{len(odd)} claims are nobody's, as {next(iter(odd), None)}")
        return (
            f"all claim records hold exactly the {len(held):,} claims that schedulers hold, no node is over its capacity, and "
            "none has two of an anti-affinity group"
        )

    def _require_within(self, number: int, claims: Iterable[Claim]) -> None:
        used = Counter(self._hosts.usage(number))
        groups = Counter[str]()
        for claim in claims:
            used.update(claim.resources)
            groups.update([claim.group] if claim.group is not None else [])
        name, capacity = self._hosts.names[number], self._hosts.kind(number).capacity
        for of, amount in used.items():
            require(amount <= capacity[of], f"{name} is over its capacity: {amount} of {capacity[of]} {of}")
        require(all(count == 1 for count in groups.values()), f"{name} has more of a group than it may: {groups}")

    def forget(self) -> None:
        """Delete all records: nobody ever claimed."""
        names = self._hosts.names
        for at in range(0, len(names), PIECE):
            self._store.write([Write(Put.DELETE, keys.claim(self._cell, name)) for name in names[at : at + PIECE]])

    def close(self) -> None:
        """Close the connection."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
