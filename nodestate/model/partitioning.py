"""Which partition a node belongs to: its name decides a bucket, and a layout deals the buckets out to its partitions."""

from __future__ import annotations

import zlib
from typing import Final

BUCKETS_COUNT: Final = 240
"""Number of buckets that nodes hash to; it never changes. Publishers know buckets only, never partitions. A layout deals
the buckets out to its partitions in turn; 240 has many divisors, so most layouts get equal shares (docs/adr/0017). No
layout has more partitions than buckets.
"""


def bucket_of(node: str) -> int:
    """The bucket of a node: CRC-32 of its name modulo ``BUCKETS_COUNT``, so publishers in any language can compute it."""
    return zlib.crc32(node.encode()) % BUCKETS_COUNT


def partition_of(node: str, partitions: int) -> int:
    """The partition of a node in a layout of ``partitions`` partitions."""
    return bucket_of(node) % partitions
