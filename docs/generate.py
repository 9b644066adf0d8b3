"""Writes the tables of docs/reference that follow from the code: ``python docs/generate.py``.

A generated part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``. tests/test_docs.py fails if one of
them differs from the code.
"""

from __future__ import annotations

import importlib
import re
import textwrap
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import click
import msgspec

from nodestate import model
from nodestate.cli import every_command
from nodestate.cli.setting_docs import setting_docs
from nodestate.findings.finding_table import FINDINGS
from nodestate.journal import format as journal
from nodestate.metrics.metric_table import METRICS, PREFIX
from nodestate.scheduling import claims
from nodestate.serve.app import ROUTES
from nodestate.serve.openapi import openapi_document
from nodestate.serve.problems import PROBLEM_TYPES, ProblemDocument
from nodestate.snapshot import format as snapshot
from nodestate.store import head, keys, liveness

DOCS: Final = Path(__file__).parent
REFERENCE: Final = DOCS / "reference"

LIMITS: Final[dict[str, dict[str, str]]] = {
    "nodestate.model.limits": {
        "MAX_CLOCK_AHEAD_S": "seconds that `reported_at` or an incarnation may lie ahead of the consumer's clock",
        "MIN_CLOCK_S": "the earliest `reported_at` or incarnation, in seconds since 1970",
        "MAX_EVENT_BYTES": "one event on the wire",
        "MAX_STATE_BYTES": "one state, as msgpack",
        "MAX_BODY_BYTES": "the body of any message; of a larger one, only the beginning is kept",
        "MAX_QUEUE_NAME_BYTES": "the name of a queue in a message, `census` or `reply_to`",
        "MAX_NODE_NAME_CHARS": "a node's name",
        "MAX_WORD_CHARS": "a resource class, trait, aggregate, zone, metric or consumer of an allocation",
        "MAX_CLASSES_COUNT": "resource classes in one map",
        "MAX_TRAITS_COUNT": "traits",
        "MAX_AGGREGATES_COUNT": "aggregates",
        "MAX_TAINTS_COUNT": "taints",
        "MAX_ALLOCATIONS_COUNT": "allocations",
        "MAX_METRICS_COUNT": "metrics",
        "MAX_FREE_DEPTH": "depth of nested maps and lists in `namespaces` and `hints`",
        "MAX_AMOUNT": "an amount of a resource",
        "MAX_RATIO": "an allocation ratio",
        "MAX_COUNTER": "an incarnation or a generation (exact in a double)",
    },
    "nodestate.model.orders": {
        "MAX_ORDER_BYTES": "one order, or one answer",
        "MAX_DETAIL_CHARS": "an answer's `detail`",
    },
    "nodestate.agent.admission": {
        "KEPT_REFUSALS_COUNT": "last refusals that a node's state lists",
        "SPARE_BYTES": "bytes of a report that are kept free of allocations",
    },
    "nodestate.store.keys": {
        "MAX_KEY_BYTES": "a key (memcached's own limit)",
        "MAX_CELL_CHARS": "a cell's name",
        "BUCKETS_COUNT": "buckets to which nodes hash, and the largest number of partitions",
    },
    "nodestate.ports.store": {"MAX_TTL_S": "a time to live; memcached interprets a larger number as a date"},
    "nodestate.store.wire": {"PART_BYTES": "intended size of one part of a checkpoint"},
    "nodestate.consumers.pending_work": {"MAX_DEAD_LETTER_BYTES": "the kept part of a refused message"},
    "nodestate.consumers.partition": {
        "MAX_SEGMENT_BYTES": "events of one commit; less where the server's items are smaller",
    },
    "nodestate.consumers.resync_requests": {
        "MAX_RESYNC_NODES_COUNT": "nodes named in one request for reports; if there are more, whole partitions are "
        "asked",
        "MAX_RESYNC_PAUSE_S": "longest pause in seconds before an incomplete node is asked for a report again; "
        "pauses double up to it",
    },
    "nodestate.sql.schema": {
        "MAX_VALUE_BYTES": "one head or node record in a database",
        "MAX_PLACE_CHARS": "a cell, partition and design in a database",
    },
    "nodestate.sql.store": {
        "MAX_TRIES_COUNT": "attempts of a transaction that the database rolled back because of another one",
        "MAX_KEYS_COUNT": "keys that one statement asks a database for",
        "MAX_ROWS_COUNT": "rows that one statement writes into a database",
        "CLOCK_TRUSTED_S": "seconds between two readings of a database's clock",
    },
    "nodestate.sql.writer": {
        "MAX_SILENT_S": "seconds without a renewal after which rows of a database are not trusted (it may be a "
        "restored backup)",
    },
    "nodestate.store.ownership": {"MAX_TRIES_COUNT": "attempts of one compare-and-swap"},
    "nodestate.view.follower": {
        "MAX_ROUNDS_COUNT": "attempts of one refresh to read contents that are not where the head says",
        "REPAIR_TTL_S": "seconds that a reader's request for a repair waits for the owner",
    },
    "nodestate.journal.format": {
        "MIN_TAIL_BYTES": "bytes of segments below which no checkpoint is written",
        "TAIL_SHARE": "a checkpoint is written when the tail is longer than the last checkpoint divided by this",
        "MAX_CHECKPOINT_PARTS_COUNT": "parts of one checkpoint; a head with more is damaged",
        "MAX_SEGMENTS_COUNT": "segments of one partition; a head with more is damaged",
    },
    "nodestate.store.head": {
        "MAX_EPOCH": "the number of an epoch",
        "MAX_TERM": "terms of one epoch; at a takeover beyond half of them the partition begins another epoch",
        "MAX_OFFSET": "commits of one epoch; likewise",
        "MAX_BEAT": "writes of one head; likewise",
        "MAX_OWNER_CHARS": "the name of an owner",
    },
    "nodestate.sql.format": {"MAX_ROWS_COUNT": "rows of one partition; a head with more is damaged"},
    "nodestate.scheduling.request.limits": {
        "MAX_COUNT": "instances of one request, `max_per_node` of a group, and `max_skew`",
        "MAX_GROUP_COUNT": "members of one reservation",
        "MAX_ALTERNATES_COUNT": "alternates of an instance",
        "MAX_NAMES_COUNT": "nodes or instances that one field of a request names",
        "MAX_WEIGHT": "absolute value of a weigher's multiplier",
        "MAX_HINTS_BYTES": "encoded hints that stay with an allocation",
        "MIN_HOLD_S": "shortest time in seconds for which a reservation is held",
        "MAX_HOLD_S": "longest time in seconds for which a reservation is held",
    },
    "nodestate.scheduling.claims.record": {
        "CLOCK_S": "seconds for which a claim counts after its deadline",
        "UNSURE_S": "seconds after its creation for which claims may be missing from a record",
        "MAX_CLAIMS_COUNT": "claims on one node at a time",
        "MAX_LIFETIME_S": "seconds from now to the deadline of a claim; a record with a later one is damaged",
        "MAX_BORN_AHEAD_S": "seconds that the creation of a record may lie ahead; a record with more is damaged",
        "MAX_AHEAD_S": "seconds that the clocks of two servers may differ by",
        "MAX_COPIES_COUNT": "copies that a claim record may have",
        "IN_FLIGHT_S": "seconds after which a scheduler writes two copies again that differ",
        "MAX_MEMBERS_COUNT": "members that the claim of a reservation may name",
    },
    "nodestate.scheduling.claims.node_chooser": {
        "MAX_AFFINITY_NODES_COUNT": "nodes that are tried for all members of an affinity group",
    },
    "nodestate.scheduling.claims.placer": {
        "MAX_TRIES_COUNT": "times that an instance may lose its node to another scheduler",
    },
    "nodestate.scheduling.orders.boot_tracker": {
        "MAX_NODES_COUNT": "nodes that are asked to build one instance",
    },
    "nodestate.scheduling.reservation_claims": {
        "MAX_KEEP_TRIES_COUNT": "attempts to keep all claims of a reservation",
    },
    "nodestate.scheduling.reservations": {
        "MAX_ANNOUNCEMENTS_COUNT": "times that agents are told that a reservation is placed",
    },
    "nodestate.snapshot.format": {
        "RING_SLOTS": "changed slots that a head's ring names",
        "RING_COMMITS": "commits that a head's ring names",
        "MAX_APPEARED_COUNT": "new nodes that a head names; if there are more, the index is written",
        "PART_NODES": "nodes in one part of an index",
        "MAX_INDEX_PARTS_COUNT": "parts of one index; a head with more is damaged",
    },
}
"""By module, every limit that a user can reach, with its meaning."""


def limits(of: Mapping[str, Mapping[str, str]] = LIMITS) -> str:
    """Return the table of limits, with the values of the code. ``of``: by module, the names and their meanings."""
    rows = ["| limit | value | of |", "|---|---:|---|"]
    for module, names in of.items():
        for name, meaning in names.items():
            value = getattr(importlib.import_module(module), name)
            shown = f"{value:,.12g}" if isinstance(value, float) else f"{value:,}"
            rows.append(f"| `{module.removeprefix('nodestate.')}.{name}` | {shown} | {meaning} |")
    return "\n".join(rows)


def settings() -> str:
    """Return the table of all settings."""
    rows = ["| setting | default | allowed | meaning |", "|---|---|---|---|"]
    for doc in setting_docs():
        shown = (
            ",".join(doc.default)
            if isinstance(doc.default, tuple)
            else f"{doc.default:g}"
            if isinstance(doc.default, float)
            else doc.default
        )
        allowed = re.sub(r"(?<=of the form )[^\s;]+", r"`\g<0>`", doc.allowed).replace("|", "\\|")
        rows.append(f"| `{doc.name}` | {f'`{shown}`' if shown != '' else ''} | {allowed} | {doc.meaning} |")
    return "\n".join(rows)


RECORDS: Final[tuple[tuple[str, type[msgspec.Struct], str], ...]] = (
    ("head", head.Head, "a head"),
    ("life", liveness.LivenessRecord, "signs of life"),
    ("since", head.TermStart, "an element of `terms`"),
    ("node record", model.NodeRecord, "an element of a checkpoint; inside a node item"),
    ("journal section", journal.JournalSection, "a journal head's `section`"),
    ("checkpoint", journal.Checkpoint, "inside a journal section"),
    ("snapshot section", snapshot.SnapshotSection, "a snapshot head's `section`"),
    ("appeared", snapshot.Appeared, "an element of `appeared`"),
    ("index", snapshot.Index, "inside a snapshot section"),
    ("index part", snapshot.IndexPart, "one part of an index"),
    ("node item", snapshot.StoredNode, "a node of the snapshot design"),
    ("claim record", claims.ClaimRecord, "all claims on a node"),
    ("claim", claims.Claim, "an element of `claims`"),
)


def records() -> str:
    """Return the table of all stored records, with their fields in the order of the arrays."""
    rows = ["| record | msgpack array of | stands as |", "|---|---|---|"]
    for name, record_type, where in RECORDS:
        rows.append(f"| {name} | {', '.join(f'`{field}`' for field in record_type.__struct_fields__)} | {where} |")
    return "\n".join(rows)


def key_space() -> str:
    """Return the map of the key space, from the docstring of ``keys``."""
    drawn = [line.strip() for line in (keys.__doc__ or "").splitlines() if line.startswith("    ns:")]
    return "\n".join(["```text", *drawn, "```"])


COMMON_OPTIONS: Final = frozenset({"as_json", "settings_file", "broker", "store", "cell", "partitions"})


def commands() -> str:
    """Return the table of all commands, with their own options and an example. Options of all commands are left out."""
    rows = ["| command | purpose | own options | example |", "|---|---|---|---|"]
    for name, command in every_command().items():
        own = [
            f"`{param.opts[0]}`"
            for param in command.params
            if isinstance(param, click.Option)
            and param.name not in COMMON_OPTIONS
            and not str(param.name).startswith("log_")
        ]
        examples = str(command.epilog).partition("Example:\n")[2].replace("|", "\\|").split("\n")
        shown = "<br>".join(f"`{line.strip()}`" for line in examples)
        rows.append(f"| `{name}` | {command.get_short_help_str(200)} | {' '.join(own)} | {shown} |")
    return "\n".join(rows)


def metrics(part: str) -> str:
    """Return the table of the metrics of one part of a cell."""
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for metric in METRICS:
        if metric.part == part:
            labels = ", ".join(f"`{label}`" for label in metric.labels)
            rows.append(f"| `{PREFIX}{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(rows)


def routes() -> str:
    """Return the table of all routes of the HTTP API."""
    rows = ["| route | answers with | role | further problems |", "|---|---|---|---|"]
    for route in ROUTES:
        problems = ", ".join(f"`{kind}`" for kind in route.problems)
        rows.append(f"| `{route.method} {route.path}` | {route.summary} | {route.role} | {problems} |")
    return "\n".join(rows)


def parameters() -> str:
    """Return the table of all parameters of the HTTP API, with the routes that have them."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for path, operations in openapi_document(ROUTES)["paths"].items():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                default = parameter.get("schema", {}).get("default", "")
                key = (parameter["name"], parameter["description"].replace("|", "\\|"), f"{default}")
                found.setdefault(key, []).append(f"`{path}`")
    rows = ["| parameter | meaning | default | routes |", "|---|---|---|---|"]
    for (name, description, default), paths in found.items():
        rows.append(f"| `{name}` | {description} | {f'`{default}`' if default else ''} | {', '.join(paths)} |")
    return "\n".join(rows)


def problems() -> str:
    """Return the table of the types of problems of the HTTP API."""
    rows = ["| type | status | meaning | further fields |", "|---|---:|---|---|"]
    for kind, of_type in PROBLEM_TYPES.items():
        own = of_type.document.__struct_fields__[len(ProblemDocument.__struct_fields__) :]
        status = "401 or 403" if kind == "unauthorized" else str(of_type.status)
        rows.append(f"| `{kind}` | {status} | {of_type.title}. | {', '.join(f'`{field}`' for field in own)} |")
    return "\n".join(rows)


HTTP_LIMITS: Final[dict[str, dict[str, str]]] = {
    "nodestate.serve.parameters": {"MAX_WAIT_S": "seconds that a request may wait"},
    "nodestate.serve.node_routes": {"MAX_PAGE_NODES": "nodes of one page"},
    "nodestate.serve.node_history": {
        "EVENTS_PER_NODE_COUNT": "events that are kept of one node",
        "NODES_COUNT": "nodes whose events are kept",
    },
    "nodestate.serve.event_hub": {
        "RING_EVENTS_COUNT": "events that are kept for clients that connect again",
        "RING_BYTES": "bytes of these events",
        "QUEUE_ENTRIES_COUNT": "calls whose events may wait for one client of the stream",
    },
    "nodestate.serve.event_routes": {"MAX_STREAM_S": "seconds of one stream"},
    "nodestate.serve.limits": {
        "MAX_UNSENT_BYTES": "bytes of responses that clients have not taken; then further large ones are refused",
        "REFUSED_CONNECTIONS_COUNT": "connections above `--max-connections` that are answered; then they are dropped",
        "KEEP_ALIVE_S": "seconds after which a connection without a request is closed",
        "TLS_HANDSHAKE_TIMEOUT_S": "seconds of a TLS handshake",
    },
    "nodestate.serve.workers": {"MAX_PENDING_COUNT": "answers that are encoded or wait for it"},
    "nodestate.serve.view_encoding": {
        "MAX_NODE_FORMS_COUNT": "combinations of design, media type and fields whose encoded nodes are kept",
        "MAX_SELECTIONS_COUNT": "selections of nodes, such as zones, whose compressed bytes are kept for each of these",
    },
    "nodestate.serve.feeds": {
        "MAX_DESIGNS_COUNT": "designs that are read because requests name them",
        "DESIGN_IDLE_S": "seconds after which such a design is no longer read if no request names it",
    },
}


def findings() -> str:
    """Return a section for each finding, under a heading of its code."""
    texts = {one.code: f"**{one.severity}**. {one.meaning} {one.remedy}" for one in FINDINGS}
    sections = [
        f"## {code}\n\n" + textwrap.fill(text, 120, break_on_hyphens=False, break_long_words=False)
        for code, text in texts.items()
    ]
    return "\n\n".join(sections)


PARTS: Final[dict[str, Callable[[], str]]] = {
    "limits": limits,
    "settings": settings,
    "records": records,
    "key space": key_space,
    "commands": commands,
    "findings": findings,
    **{
        f"metrics of {part}": partial(metrics, part)
        for part in ("consumer", "cell", "reader", "scheduler", "agent", "node")
    },
    "routes": routes,
    "parameters": parameters,
    "problems": problems,
    "http limits": lambda: limits(HTTP_LIMITS),
}


def generated(text: str) -> str:
    """Return the text of a page with its generated parts replaced by the present ones."""

    def part(match: re.Match[str]) -> str:
        return f"<!-- generated: {match[1]} -->\n{PARTS[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- generated: ([a-z ]+) -->\n.*?<!-- end -->", part, text, flags=re.DOTALL)


if __name__ == "__main__":
    for page in sorted(REFERENCE.glob("*.md")):
        page.write_text(generated(page.read_text(encoding="utf-8")), encoding="utf-8")
