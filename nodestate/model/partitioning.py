"""The partition of a node: its name determines a bucket, and a layout distributes the buckets over its partitions."""

from __future__ import annotations

import zlib
from typing import Final

BUCKETS_COUNT: Final = 240
"""Number of buckets that nodes hash to; it never changes, and no layout has more partitions.

Publishers know buckets only, never partitions. Bucket b belongs to partition b modulo the number of partitions. 240 has
many divisors, so most layouts get equal shares (docs/adr/0017).
"""


def bucket_of(node: str) -> int:
    """The bucket of a node: CRC-32 of its name modulo ``BUCKETS_COUNT``.

    Publishers in any language can compute it.
    """
    return zlib.crc32(node.encode()) % BUCKETS_COUNT


def partition_of(node: str, partitions: int) -> int:
    """The partition of a node in a layout of ``partitions`` partitions."""
    return bucket_of(node) % partitions
