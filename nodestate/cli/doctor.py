"""The command ``doctor``: report the faults of a cell, each with its remedy."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple

import click
import msgspec
from rich.text import Text

from nodestate.broker import QueueDepth, connect_check, queue_depths, read_dead_letters
from nodestate.cli.command import Run, cell_command
from nodestate.cli.inspection import (
    NOTHING_STORED,
    CellInspector,
    DesignStatus,
    HeadStatus,
    read_control,
    selected_designs,
)
from nodestate.config import Config, servers_of
from nodestate.designs.control import Control
from nodestate.designs.stored_design import StoredDesign
from nodestate.errors import NodestateError
from nodestate.model import MAX_STATE_BYTES
from nodestate.store.memcached import MemcachedStore, ServerStats
from nodestate.view.view import View

OK: Final = "OK"
WARN: Final = "WARN"
FAIL: Final = "FAIL"
STYLES: Final = {OK: "green", WARN: "yellow", FAIL: "bold red"}

FULL_RATIO: Final = 0.9
"""Share of its memory above which a server is about to evict items, or to refuse writes."""
YOUNG_S: Final = 60
"""A server that runs for fewer seconds than this is reported as restarted."""
SKEW_S: Final = 2.0
"""Seconds that the clock of a node may be ahead before it is reported."""
SILENT_HEARTBEATS: Final = 3
"""A node that missed this many heartbeats is reported."""
PEEKED_LETTERS: Final = 20
"""Dead letters that are read to count their reasons."""
OLDEST_MEMCACHED: Final = (1, 6)
"""The first version of memcached that has the meta commands, which nodestate needs."""


class Finding(NamedTuple):
    """One line of the doctor's report."""

    level: str
    """``OK``, ``WARN`` or ``FAIL``."""
    about: str
    """The part of the cell: the broker, a store, a design, the agents."""
    says: str
    """The fault, or the present figures if there is none."""
    advice: str = ""
    """The remedy; empty if nothing is wrong."""


@cell_command("doctor", example="nodestate doctor --json")
@click.option(
    "--design",
    "designs",
    metavar="NAMES",
    help="Designs to examine, separated by commas, as journal,snapshot.",
    show_default="all that consumers write",
)
def command(run: Run, designs: str | None) -> int:
    """Examine the broker, each store, each partition and the agents, and print one line for each finding.

    FAIL: the part does not work; the exit code is 1. WARN: it works, but needs attention. Each has a remedy.
    """
    config = run.config
    examined = selected_designs(config, designs)
    run.require_shared(broker=True, designs=[stored.design for stored in examined])
    control = read_control(config, [stored.design for stored in examined])
    findings: list[Finding] = []
    for finding in _examine_cell(config, control, examined):
        findings.append(finding)
        if not run.as_json:
            _print(run, finding)
    failed = any(finding.level == FAIL for finding in findings)
    if run.as_json:
        run.print_json(
            {
                "ok": not failed,
                "broker": config.broker_safe,
                "store": config.store,
                "cell": config.cell,
                "partitions": control.reads.partitions,
                "findings": [finding._asdict() for finding in findings],
            }
        )
    return 1 if failed else 0


def _print(run: Run, finding: Finding) -> None:
    line = Text.assemble((f"{finding.level:<5}", STYLES[finding.level]), (f"{finding.about}: ", "bold"), finding.says)
    run.out.print(line, soft_wrap=True)
    if finding.advice:
        run.out.print(Text(f"     → {finding.advice}", style="dim"), soft_wrap=True)


def _examine_cell(config: Config, control: Control, designs: Sequence[StoredDesign]) -> Iterator[Finding]:
    layouts = list(dict.fromkeys(stored.partitions for stored in designs))
    yield from _findings_or_error("broker", lambda: _examine_broker(config, layouts))
    if config.partitions not in {one.partitions for one in (*designs, *control.writes, *control.leaving)}:
        yield from _findings_or_error("queues", lambda: _examine_queues_of_settings(config))
    for one in control.leaving:
        says = f"{one} was retired, but the queues of its {one.partitions} partitions may still exist and fill up"
        yield Finding(WARN, "queues", says, f"run 'nodestate design retire {one}' again: it deletes them")
    for address in (*config.store_servers, *(servers_of(config.store_b) if config.store_b else ())):
        yield from _findings_or_error(f"store {address}", partial(_examine_store, config, address))
    inspector = CellInspector(config, designs)
    try:
        statuses = inspector.inspect(node_max_age=math.inf)
        for status in statuses:
            yield from _examine_design(config, status)
        # All designs should have the same nodes. The one with the most is used to examine the agents.
        yield from _examine_agents(config, max((status.view for status in statuses), key=lambda view: len(view.nodes)))
    finally:
        inspector.close()


def _findings_or_error(about: str, examine: Callable[[], list[Finding]]) -> list[Finding]:
    """Return the findings of an examination; if it fails, the error is the finding."""
    try:
        return examine()
    except NodestateError as error:
        advice = "check that it is running, that this is its address, and that it accepts this user and password"
        return [Finding(FAIL, about, str(error), advice)]


# -- broker ---------------------------------------------------------------------------------------


def _examine_broker(config: Config, layouts: Sequence[int]) -> list[Finding]:
    facts = connect_check(config)
    findings = [Finding(OK, "broker", f"{facts.product} {facts.version} at {facts.broker}")]
    if not facts.fails_over:
        says = (
            "this transport has no single active consumer, so no consumer takes over the partitions of another "
            "that dies"
        )
        findings.append(Finding(WARN, "broker", says, "use RabbitMQ if consumers must take over from each other"))
    depths = {n: queue_depths(msgspec.structs.replace(config, partitions=n)) for n in layouts}
    for partitions, (*queues, _) in depths.items():
        about = "queues" if len(layouts) == 1 else f"queues of {partitions}"
        findings += _examine_queues(config, about, queues, fails_over=facts.fails_over)
    dead = depths[layouts[0]][-1]
    return [*findings, _examine_dead_letters(config, dead.queue, dead.ready)]


def _examine_queues_of_settings(config: Config) -> list[Finding]:
    """Examine the queues for the number of partitions in the settings, which the control record does not name."""
    left = [queue for queue in queue_depths(config) if queue.partition is not None and not queue.missing]
    waiting = sum(queue.ready for queue in left)
    if any(queue.consumers for queue in left):
        says = (
            f"consumers read the queues of {config.partitions} partitions, a number from their settings that the "
            "control record does not name"
        )
        return [
            Finding(WARN, "queues", says, "start these consumers without --design: then they follow the control record")
        ]
    if not waiting:
        return []
    says = (
        f"{waiting:,} events wait in the queues of {config.partitions} partitions, a number from the settings: no "
        "consumer reads them"
    )
    advice = (
        "a publisher created them before the first consumer started. Run 'nodestate resync --all', so that all "
        f"nodes report; then delete the queues {left[0].queue} to {left[-1].queue}, and set NODESTATE_PARTITIONS to "
        "the number in the control record"
    )
    return [Finding(WARN, "queues", says, advice)]


def _examine_queues(config: Config, about: str, queues: Sequence[QueueDepth], *, fails_over: bool) -> Iterator[Finding]:
    waiting, longest = sum(q.ready for q in queues), max(queues, key=lambda q: q.ready)
    alone = [q.partition for q in queues if q.consumers == 0]
    counts = [q.consumers for q in queues if q.consumers is not None]
    wait = f"wait {config.standby_s + 1:g} s if one has just started"
    if alone:
        says = f"{len(alone)} of {len(queues)} queues have no consumer, and {waiting:,} events wait"
        yield Finding(FAIL, about, says, f"start 'nodestate consume', or {wait}")
    elif waiting > config.prefetch:
        says = f"{waiting:,} events wait, {longest.ready:,} of them in {longest.queue}"
        yield Finding(WARN, about, says, "if this persists, start more members of 'nodestate consume'")
    else:
        served = f", each with {_range(counts)} consumer{'' if max(counts) == 1 else 's'}" if counts else ""
        yield Finding(OK, about, f"{len(queues)} queues{served}, {waiting:,} events wait")
    if fails_over and counts and min(counts) == 1:
        says = f"{counts.count(1)} of {len(queues)} queues have only one consumer, and no other takes over if it dies"
        yield Finding(WARN, about, says, f"start another member of 'nodestate consume', or {wait}")


def _examine_dead_letters(config: Config, queue: str, count: int) -> Finding:
    if not count:
        return Finding(OK, "dead letters", "none")
    letters = read_dead_letters(config, PEEKED_LETTERS)
    reasons = Counter(letter.reason for letter in letters)
    named = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
    says = (
        f"{count:,} in {queue}; the first {len(letters)}: {named}; e.g. {letters[0].detail}" if letters else str(count)
    )
    return Finding(
        WARN,
        "dead letters",
        says,
        f"these messages were not applied: correct the program that sends them, then run 'rabbitmqctl purge_queue "
        f"{queue}'",
    )


# -- store ----------------------------------------------------------------------------------------


def _examine_store(config: Config, address: str) -> list[Finding]:
    about = f"store {address}"
    store = MemcachedStore(address, timeout_s=config.store_timeout_s)
    try:
        stats = store.stats()
    finally:
        store.close()
    used = f"{stats.used_bytes / 2**20:,.1f} of {stats.limit_bytes / 2**20:,.0f} MB used by {stats.items:,} items"
    says = (
        f"memcached {stats.version}, up {_span(stats.uptime_s)}, {used}, "
        f"item limit {stats.item_max_bytes / 1024:,.0f} KB, {stats.evictions:,} evictions"
    )
    return [Finding(OK, about, says), *(Finding(level, about, *texts) for level, *texts in _store_warnings(stats))]


def _store_warnings(stats: ServerStats) -> Iterator[tuple[str, str, str]]:
    if tuple(int(part) for part in stats.version.split(".")[:2] if part.isdigit()) < OLDEST_MEMCACHED:
        yield FAIL, f"version {stats.version} has no meta commands", "use memcached 1.6 or newer"
    if stats.uptime_s < YOUNG_S:
        yield (
            WARN,
            f"it started {_span(stats.uptime_s)} ago, with nothing in it",
            "agents were asked to report again; if the restart was not planned, look for its cause in memcached's log",
        )
    if stats.evictions:
        says = (
            f"{stats.evictions:,} items were evicted: consumers write lost items again, but views are older until then"
        )
        yield (
            WARN,
            says,
            "raise memcached's -m, also if much memory is unused: one slab class can be full while others are not",
        )
    full = stats.used_bytes / stats.limit_bytes
    if stats.no_evict and full > FULL_RATIO:
        yield (
            FAIL,
            f"{full:.0%} full, and with -M it refuses writes when it is full",
            "raise -m, or start it without -M",
        )
    elif stats.no_evict:
        yield WARN, "with -M it refuses writes when it is full, instead of evicting", "check that -m is ample"
    elif full > FULL_RATIO:
        yield WARN, f"{full:.0%} full: it will evict items", "raise -m"
    if stats.out_of_memory:
        yield WARN, f"{stats.out_of_memory:,} writes were refused for lack of memory since its start", "raise -m"
    if stats.item_max_bytes < MAX_STATE_BYTES:
        says = f"an item holds {stats.item_max_bytes:,} bytes, but the state of a node may have {MAX_STATE_BYTES:,}"
        yield WARN, says, "raise memcached's -I to 1m or more, or keep states small"
    if stats.rejected_connections:
        says = (
            f"{stats.rejected_connections:,} connections were refused ({stats.connections} of {stats.max_connections})"
        )
        yield WARN, says, "raise memcached's -c"


# -- designs --------------------------------------------------------------------------------------


def _examine_design(config: Config, status: DesignStatus) -> Iterator[Finding]:
    about = status.name
    heads = {number: head for number, head in enumerate(status.heads) if isinstance(head, HeadStatus)}
    absent = {number: why for number, why in enumerate(status.heads) if isinstance(why, str)}
    if absent:
        number, why = next(iter(absent.items()))
        says = f"{len(absent)} of {len(status.heads)} partitions have no head, for example {number}: {why}"
        begin = "start 'nodestate consume', with the same --cell and --store"
        yield Finding(FAIL, about, says, begin if why == NOTHING_STORED else "see the lines about the store")
    if heads:
        yield from _examine_owners(config, about, heads)
    view = status.view
    lost = {p.partition: p.lost for p in view.partitions if p.lost and p.partition in heads}
    if lost:
        number, why = next(iter(lost.items()))
        says = f"{len(lost)} partitions have lost a part of their stored state, for example {number}: {why}"
        yield Finding(
            WARN, about, says, "their owners were asked to write it again; run this command again in some seconds"
        )
    if incomplete := sorted(name for name in view.incomplete if " " not in name):
        says = (
            f"{len(incomplete):,} nodes have a newer state than the stored one, for example {', '.join(incomplete[:3])}"
        )
        yield Finding(
            WARN,
            about,
            says,
            "their agents were asked for a report; check that they run, or ask again with 'nodestate resync --node "
            "NAME'",
        )


def _examine_owners(config: Config, about: str, heads: dict[int, HeadStatus]) -> Iterator[Finding]:
    members = Counter(head.member for head in heads.values())
    oldest = max(heads, key=lambda number: heads[number].age_s)
    behind = max(heads, key=lambda number: heads[number].behind_s)
    terms = [head.term for head in heads.values()]
    says = (
        f"{len(heads)} partitions, owned by "
        f"{', '.join(f'{name} ({count})' for name, count in members.most_common(4))}; "
        f"term {_range(terms)}; renewed at most {heads[oldest].age_s:.0f} s ago"
    )
    late_s = 3 * config.renew_s + 2  # the store's clock has whole seconds
    if heads[oldest].age_s > late_s:
        count = sum(1 for head in heads.values() if head.age_s > late_s)
        says = (
            f"{count} partitions have no living owner; {heads[oldest].member} renewed partition {oldest} "
            f"{heads[oldest].age_s:.0f} s ago, but an owner does so every {config.renew_s:g} s"
        )
        yield Finding(FAIL, about, says, "start 'nodestate consume', or look in its log for errors of the store")
    else:
        yield Finding(OK, about, says)
    if heads[behind].behind_s > late_s:
        since = f"for {_span(heads[behind].behind_s)}" if heads[behind].behind_s < 1e6 else "since it started"
        says = f"the owner of partition {behind} has not been caught up with its queue {since}"
        yield Finding(WARN, about, says, "if this persists, start more members of 'nodestate consume'")
    if doubtful := [number for number, head in heads.items() if not head.complete]:
        says = f"{len(doubtful)} partitions may not know all their nodes yet, for example {doubtful[:4]}"
        advice = (
            f"their owners started without stored state and wait for reports, at most {config.settle_s:g} s; no "
            f"action is needed"
        )
        yield Finding(WARN, about, says, advice)


def _examine_agents(config: Config, view: View) -> Iterator[Finding]:
    now = time.time()
    if all(partition.table is None for partition in view.partitions):
        yield Finding(WARN, "agents", "not known, because no partition can be read", "see the lines above")
        return
    ages = {name: view.node_age(name) for name in view.nodes}
    silent_s = SILENT_HEARTBEATS * config.heartbeat_s + 2
    silent = sorted(name for name, age in ages.items() if age > silent_s)
    if silent:
        longest = max(silent, key=ages.__getitem__)
        since = f"for {_span(ages[longest])}" if math.isfinite(ages[longest]) else "so far"
        says = f"{len(silent):,} of {len(ages):,} nodes gave no sign of life, for example {longest} {since}"
        advice = "check that their agents run; schedulers do not place instances on nodes without a sign of life"
        yield Finding(WARN, "agents", says, advice)
    else:
        says = f"{len(ages):,} node{'' if len(ages) == 1 else 's'}, all with a recent sign of life"
        yield Finding(OK, "agents", says if ages else "no node has reported yet")
    ahead = {name: view.nodes[name].reported_at - now for name in view.nodes}
    fast = sorted(name for name, seconds in ahead.items() if seconds > SKEW_S)
    if fast:
        worst = max(fast, key=lambda name: ahead[name])
        says = f"the clocks of {len(fast):,} nodes are ahead of this machine's, {worst}'s by {ahead[worst]:.0f} s"
        yield Finding(
            WARN,
            "agents",
            says,
            "correct the time of these nodes (NTP): consumers refuse events of a clock that is too far ahead",
        )


def _range(numbers: Sequence[int]) -> str:
    return f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"


def _span(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
