"""Reads the claim records of a cell without any scheduler, and checks the bounds that they must keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final, Self

from bench.environments import PATIENCE_S
from bench.scheduling.hosts import Hosts
from bench.workload import require
from nodestate.ports import Key, Put, Write
from nodestate.scheduling.claims import CLAIMS, Claim, ClaimRecord
from nodestate.store import keys
from nodestate.store.memcached import MemcachedStore

BATCH_RECORDS: Final = 2_000
"""Records read or deleted in one round trip."""

HeldClaim = tuple[str, str]
"""A claim as its scheduler knows it: node and claim id."""


class ClaimAudit:
    """The claims on a fleet in the memcached servers of a cell. A context manager."""

    def __init__(self, addresses: Iterable[str], cell: str, hosts: Hosts) -> None:
        self._stores = [MemcachedStore(address, timeout_s=PATIENCE_S) for address in addresses]
        self._cell = cell
        self._hosts = hosts

    def records(self) -> Iterator[tuple[int, ClaimRecord]]:
        """Yield the claim records, each with the number of its node.

        Raises ``WrongResultError`` if the two copies of a record have different claims.
        """
        names = self._hosts.names
        for at in range(0, len(names), BATCH_RECORDS):
            found: dict[int, ClaimRecord] = {}
            for number, record in self._copies_of(names[at : at + BATCH_RECORDS], at):
                claims = {claim.id for claim in found.setdefault(number, record).claims}
                require(
                    claims == {claim.id for claim in record.claims},
                    f"the two copies of the claim record of {names[number]} have different claims",
                )
            yield from found.items()

    def require_sound(self, held: Collection[HeldClaim]) -> str:
        """Raise ``WrongResultError`` unless the records hold exactly these claims and keep every bound.

        Returns a sentence that states the proof.
        """
        found: set[HeldClaim] = set()
        for number, record in self.records():
            self._require_within(number, record.claims)
            found |= {(self._hosts.names[number], claim.id) for claim in record.claims}
        require(len(held) == len(set(held)), "two schedulers hold the same claim")
        missing, odd = set(held) - found, found - set(held)
        require(not missing, f"{len(missing)} claims are not in the records, such as {next(iter(missing), None)}")
        require(not odd, f"{len(odd)} claims belong to no scheduler, such as {next(iter(odd), None)}")
        return (
            f"the claim records hold exactly the {len(held):,} claims of the schedulers, no node is over its capacity, "
            "and no node has two members of an anti-affinity group"
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
        require(
            all(count == 1 for count in groups.values()),
            f"{name} has several members of an anti-affinity group: {groups}",
        )

    def copies(self) -> float:
        """Return the mean number of copies of a node's record, of the nodes that have one."""
        found = Counter[int]()
        names = self._hosts.names
        for at in range(0, len(names), BATCH_RECORDS):
            found.update(number for number, _ in self._copies_of(names[at : at + BATCH_RECORDS], at))
        return found.total() / max(1, len(found))

    def _copies_of(self, names: Sequence[str], first: int) -> Iterator[tuple[int, ClaimRecord]]:
        """Yield every stored copy of the records of these nodes, each with its number, counted from ``first``."""
        number_of: dict[Key, int] = {}
        for number, name in enumerate(names, first):
            for key in self._keys([name]):
                number_of[key] = number
        for store in self._stores:
            for found, item in store.fetch(list(number_of)).items():
                yield number_of[found], CLAIMS.unpack(item.value)

    def _keys(self, names: Sequence[str]) -> list[str]:
        """Return the keys of all copies of the records of these nodes."""
        return [key(self._cell, name) for name in names for key in (keys.claim, keys.claim_copy)]

    def delete_records(self) -> None:
        """Delete all claim records."""
        names = self._hosts.names
        for at in range(0, len(names), BATCH_RECORDS):
            for store in self._stores:
                store.write([Write(Put.DELETE, key) for key in self._keys(names[at : at + BATCH_RECORDS])])

    def close(self) -> None:
        """Close the connections."""
        for store in self._stores:
            store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
