"""The encoded documents of views. Each node is encoded once, and its bytes are kept while the node is unchanged.

A view shares the rows of unchanged nodes with the view before, so the nodes to encode are found by comparing rows. The
nodes are the first field of the document. So all responses about the same nodes share their bytes, and the compressed
form of these bytes. Position, age, stale and incomplete nodes follow, and are encoded for each response.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Collection
from functools import cached_property
from typing import Any, Final, TypeVar

import msgspec

from nodestate.errors import CorruptItemError
from nodestate.model import NodeRecord
from nodestate.serve.encoding import JSON, MSGPACK, EncodedBody, encode
from nodestate.serve.limits import LARGE_BYTES
from nodestate.view.chunked_list import ChunkedList
from nodestate.view.documents import NodeDocument, finite_or_none, node_document, position_documents, zone_of
from nodestate.view.view import View

MAX_NODE_FORMS_COUNT: Final = 4
"""Forms in which nodes are kept: combinations of design, media type and fields."""
MAX_SELECTIONS_COUNT: Final = 4
"""Selections of the nodes of one form, such as a zone, whose lists and compressed bytes are kept."""
GZIP_LEVEL: Final = 1
_GZIP_WBITS: Final = 16 + zlib.MAX_WBITS

K = TypeVar("K")
V = TypeVar("V")


class EncodedNode(msgspec.Struct, frozen=True, gc=False):
    """One node of a document."""

    name: str
    zone: str
    entry: bytes
    """The node's name and its document, as an entry of a map; in JSON with a comma before it."""
    is_damaged: bool


class SelectedNodes:
    """The nodes of one document: its beginning, up to the end of the field ``nodes``."""

    def __init__(self, nodes: list[EncodedNode], media_type: str) -> None:
        self.damaged = [node.name for node in nodes if node.is_damaged]
        """Names of the nodes whose stored state is damaged."""
        if media_type == MSGPACK:
            self._pieces = [_map_header(6 if self.damaged else 5) + encode("nodes", MSGPACK) + _map_header(len(nodes))]
            self._pieces += [node.entry for node in nodes]
        else:
            self._pieces = [b'{"nodes":{', *(node.entry for node in nodes), b"}"]
            if nodes:
                self._pieces[1] = nodes[0].entry[1:]  # without the comma
        self._size = sum(map(len, self._pieces))

    @cached_property
    def _compressed(self) -> tuple[bytes, Any]:
        """The pieces compressed, and the compressor in the state after them, which is copied to compress the rest."""
        compressor = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP_WBITS)
        portions = EncodedBody(self._pieces, self._size).portions()
        return b"".join([compressor.compress(portion) for portion in portions]), compressor

    def document(self, rest: bytes, *, gzip: bool) -> EncodedBody:
        """Return the whole document. ``rest``: the bytes after the nodes. ``gzip``: compress it if it is large."""
        if not gzip or self._size <= LARGE_BYTES:
            return EncodedBody([*self._pieces, rest], self._size + len(rest))
        begin, compressor = self._compressed
        compressor = compressor.copy()
        end = compressor.compress(rest) + compressor.flush()
        return EncodedBody([begin, end], len(begin) + len(end), "gzip")


class NodeForm:
    """The nodes of the last view in one form. After it a view costs the encoding of the nodes that differ.

    Args:
        media_type: ``JSON`` or ``MSGPACK``.
        fields: the fields of states; None: all.
    """

    def __init__(self, media_type: str, fields: Collection[str] | None) -> None:
        self._media_type = media_type
        self._fields = fields
        # By partition, the rows that are encoded; None: none are.
        self._rows: list[ChunkedList | None] = []
        # By partition and slot, the nodes; None for records without a live node.
        self._nodes: list[list[EncodedNode | None]] = []
        # Selections of these nodes, by zone and by the names of left out nodes.
        self._selections: dict[tuple[str | None, frozenset[str]], SelectedNodes] = {}

    def select(self, view: View, zone: str | None) -> SelectedNodes:
        """Return the nodes of a view. ``zone``: the zone whose nodes to return; None: all."""
        if self._update(view):
            self._selections.clear()
        left_out = frozenset(view.left_out)

        def make() -> SelectedNodes:
            nodes = [
                node
                for of_partition in self._nodes
                for node in of_partition
                if node is not None and (zone is None or node.zone == zone) and node.name not in left_out
            ]
            return SelectedNodes(nodes, self._media_type)

        return _recent(self._selections, (zone, left_out), make, MAX_SELECTIONS_COUNT)

    def _update(self, view: View) -> bool:
        """Encode the nodes that differ from the last view. Returns True if any do."""
        count = len(view.partitions)
        is_other = count != len(self._rows)
        if is_other:
            self._rows, self._nodes = [None] * count, [[] for _ in range(count)]
        for partition, state in enumerate(view.partitions):
            before, self._rows[partition] = self._rows[partition], None  # None until all are encoded
            nodes, table = self._nodes[partition], state.table
            size = table.size if table is not None else 0
            is_other |= size != len(nodes)
            del nodes[size:]
            if table is not None:
                for slot, row in table.rows.differing(before):
                    nodes[slot : slot + 1] = [self._encoded(table.record(row))]
                    is_other = True
                self._rows[partition] = table.rows
        return is_other

    def _encoded(self, record: NodeRecord) -> EncodedNode | None:
        if not record.live:
            return None
        is_damaged = False
        try:
            document = node_document(record, self._fields)
        except CorruptItemError:
            is_damaged, document = True, NodeDocument(record.incarnation, record.generation, {})
        name, value = encode(record.name, self._media_type), encode(document, self._media_type)
        entry = b",%b:%b" % (name, value) if self._media_type == JSON else name + value
        return EncodedNode(record.name, sys.intern(zone_of(record)), entry, is_damaged)


class ViewEncoder:
    """Encodes views. Belongs to the thread of ``Workers``."""

    def __init__(self) -> None:
        # By design, number of partitions, media type and fields, the nodes of the last view.
        self._forms: dict[tuple[str, int, str, frozenset[str] | None], NodeForm] = {}

    def encode(
        self, view: View, media_type: str, *, zone: str | None, fields: frozenset[str] | None, gzip: bool
    ) -> EncodedBody:
        """Return the ``ViewDocument`` of a view.

        Args:
            view: the view.
            media_type: ``JSON`` or ``MSGPACK``.
            zone: return only the nodes of this zone; None: all.
            fields: the fields of states to return; None: all.
            gzip: compress the document if it is large.
        """
        key = (view.design, len(view.partitions), media_type, fields)
        form = _recent(self._forms, key, lambda: NodeForm(media_type, fields), MAX_NODE_FORMS_COUNT)
        nodes = form.select(view, zone)
        rest: dict[str, Any] = {
            "position": position_documents(view),
            "age": finite_or_none(view.age),
            "stale": sorted(view.stale),
            "incomplete": sorted(view.incomplete),
        }
        if nodes.damaged:
            rest["damaged"] = nodes.damaged
        entries = encode(rest, media_type)[1:]  # without the header of the map
        return nodes.document(b"," + entries if media_type == JSON else entries, gzip=gzip)


def _recent(kept: dict[K, V], key: K, make: Callable[[], V], count: int) -> V:
    """Return the value of a key, made if it is not kept; keep the ``count`` values used last."""
    value = kept.pop(key) if key in kept else make()
    kept[key] = value
    if len(kept) > count:
        del kept[next(iter(kept))]
    return value


def _map_header(count: int) -> bytes:
    """Return the header of a map in msgpack."""
    return bytes([0x80 + count]) if count < 16 else b"\xdf" + count.to_bytes(4)
