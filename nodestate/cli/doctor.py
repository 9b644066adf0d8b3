"""``nodestate doctor``: what is wrong with a cell, in words, and what to do about it."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
"""A server that is this full is about to evict, or to refuse."""
YOUNG_S: Final = 60
SKEW_S: Final = 2.0
SILENT_HEARTBEATS: Final = 3
PEEKED_LETTERS: Final = 20
OLDEST_MEMCACHED: Final = (1, 6)
"""The first with the meta commands that the store is read with."""


class Finding(NamedTuple):
    """One line of the doctor's: how bad it is, what it is about, what is so, and what to do."""

    level: str
    about: str
    says: str
    advice: str = ""


@cell_command("doctor", example="nodestate doctor --json")
@click.option("--design", "designs", metavar="NAMES", help="Designs, by comma.  [default: what is written]")
def command(run: Run, designs: str | None) -> int:
    """Ask the broker, every store and every partition how they are. Exit code 1 if something FAILs.

    WARN is what works and should not stay so.
    """
    config = run.config
    every = selected_designs(config, designs)
    run.require_shared(broker=True, designs=[kept.design for kept in every])
    control = read_control(config, [kept.design for kept in every])
    findings: list[Finding] = []
    for finding in _examine(config, control, every):
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


def _examine(config: Config, control: Control, every: Sequence[StoredDesign]) -> Iterator[Finding]:
    layouts = list(dict.fromkeys(kept.partitions for kept in every))
    yield from _guarded("broker", lambda: _broker(config, layouts))
    if config.partitions not in {one.partitions for one in (*every, *control.writes, *control.leaving)}:
        yield from _guarded("queues", lambda: _of_settings(config))
    for one in control.leaving:
        says = f"those of {one.partitions} partitions may be there still, and fill for ever: {one} was retired"
        yield Finding(WARN, "queues", says, f"'nodestate design retire {one}' again deletes them")
    for address in (*config.store_servers, *(servers_of(config.store_b) if config.store_b else ())):
        yield from _guarded(f"store {address}", lambda address=address: _store(config, address))  # type: ignore[misc]
    inspector = CellInspector(config, every)
    try:
        looks = inspector.look(node_max_age=math.inf)
        for look in looks:
            yield from _design(config, look)
        # Every design knows the same nodes: those of the fullest tell of the agents.
        yield from _agents(config, max((look.view for look in looks), key=lambda view: len(view.nodes)))
    finally:
        inspector.close()


def _guarded(about: str, examine: Callable[[], list[Finding]]) -> list[Finding]:
    """What an examination finds; an error that it meets is what it found."""
    try:
        return examine()
    except NodestateError as error:
        return [Finding(FAIL, about, str(error), "is it running, and is this the right address?")]


# -- broker ---------------------------------------------------------------------------------------


def _broker(config: Config, layouts: Sequence[int]) -> list[Finding]:
    facts = connect_check(config)
    findings = [Finding(OK, "broker", f"{facts.product} {facts.version} at {facts.broker}")]
    if not facts.fails_over:
        says = "this transport gives a queue to several consumers at once, so no member stands by for another"
        findings.append(Finding(WARN, "broker", says, "use RabbitMQ where a consumer may die"))
    depths = {n: queue_depths(msgspec.structs.replace(config, partitions=n)) for n in layouts}
    for partitions, (*queues, _) in depths.items():
        about = "queues" if len(layouts) == 1 else f"queues of {partitions}"
        findings += _queues(config, about, queues, fails_over=facts.fails_over)
    dead = depths[layouts[0]][-1]
    return [*findings, _dead_letters(config, dead.queue, dead.ready)]


def _of_settings(config: Config) -> list[Finding]:
    """The queues of the settings' layout, which the record does not name."""
    left = [queue for queue in queue_depths(config) if queue.partition is not None and not queue.missing]
    waiting = sum(queue.ready for queue in left)
    if any(queue.consumers for queue in left):
        says = f"consumers read those of {config.partitions} partitions, as their settings say, which the record does not name"
        return [
            Finding(WARN, "queues", says, "end those that name designs, or tell them none: then they follow the record")
        ]
    if not waiting:
        return []
    says = (
        f"{waiting:,} events wait in those of {config.partitions} partitions, as the settings say, which nobody reads"
    )
    advice = (
        f"a publisher made them before any consumer came. 'nodestate resync' has all nodes tell what they are; then delete the "
        f"queues {left[0].queue} to {left[-1].queue}, and set NODESTATE_PARTITIONS to what the record says"
    )
    return [Finding(WARN, "queues", says, advice)]


def _queues(config: Config, about: str, queues: Sequence[QueueDepth], *, fails_over: bool) -> Iterator[Finding]:
    waiting, longest = sum(q.ready for q in queues), max(queues, key=lambda q: q.ready)
    alone = [q.partition for q in queues if q.consumers == 0]
    counts = [q.consumers for q in queues if q.consumers is not None]
    if alone:
        says = f"{len(alone)} of {len(queues)} queues have no consumer, and {waiting:,} events wait"
        yield Finding(FAIL, about, says, "start 'nodestate consume'")
    elif waiting > config.prefetch:
        says = f"{waiting:,} events wait, {longest.ready:,} of them in {longest.queue}"
        yield Finding(WARN, about, says, "if it stays so, add members to 'nodestate consume'")
    else:
        served = f", each with {_range(counts)} consumer{'' if max(counts) == 1 else 's'}" if counts else ""
        yield Finding(OK, about, f"{len(queues)} queues{served}, {waiting:,} events wait")
    if fails_over and counts and min(counts) == 1:
        says = f"{counts.count(1)} of {len(queues)} queues have one consumer: if it dies, nobody takes over"
        yield Finding(WARN, about, says, "run another member of 'nodestate consume'")


def _dead_letters(config: Config, queue: str, count: int) -> Finding:
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
        f"these were not applied: mend who sends them, then 'rabbitmqctl purge_queue {queue}'",
    )


# -- store ----------------------------------------------------------------------------------------


def _store(config: Config, address: str) -> list[Finding]:
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
    return [Finding(OK, about, says), *(Finding(level, about, *texts) for level, *texts in _complaints(stats))]


def _complaints(stats: ServerStats) -> Iterator[tuple[str, str, str]]:
    if tuple(int(part) for part in stats.version.split(".")[:2] if part.isdigit()) < OLDEST_MEMCACHED:
        yield FAIL, f"version {stats.version} has no meta commands", "use memcached 1.6 or newer"
    if stats.uptime_s < YOUNG_S:
        yield (
            WARN,
            f"it started {_span(stats.uptime_s)} ago, with nothing in it",
            "agents were asked to report again; if nobody meant it to restart: why did it?",
        )
    if stats.evictions:
        says = f"{stats.evictions:,} items were evicted: some state was lost, and written again when it was missed"
        yield WARN, says, "raise -m; where much of it is unused, its slab classes starve: raise it all the more"
    full = stats.used_bytes / stats.limit_bytes
    if stats.no_evict and full > FULL_RATIO:
        yield FAIL, f"{full:.0%} full, and with -M it refuses writes then", "raise -m, or start it without -M"
    elif stats.no_evict:
        yield WARN, "with -M it refuses writes when it is full, instead of evicting", "see that -m is ample"
    elif full > FULL_RATIO:
        yield WARN, f"{full:.0%} full: it will evict", "raise -m"
    if stats.out_of_memory:
        yield WARN, f"{stats.out_of_memory:,} writes found no memory since its start", "raise -m"
    if stats.item_max_bytes < MAX_STATE_BYTES:
        says = f"items hold {stats.item_max_bytes:,} bytes, where a node's state may have {MAX_STATE_BYTES:,}"
        yield WARN, says, "raise -I to 1m or more, or keep states small"
    if stats.rejected_connections:
        says = (
            f"{stats.rejected_connections:,} connections were refused ({stats.connections} of {stats.max_connections})"
        )
        yield WARN, says, "raise -c"


# -- designs --------------------------------------------------------------------------------------


def _design(config: Config, look: DesignStatus) -> Iterator[Finding]:
    about = look.name
    heads = {number: head for number, head in enumerate(look.heads) if isinstance(head, HeadStatus)}
    absent = {number: why for number, why in enumerate(look.heads) if isinstance(why, str)}
    if absent:
        number, why = next(iter(absent.items()))
        says = f"{len(absent)} of {len(look.heads)} partitions have no head; partition {number}: {why}"
        begin = "start 'nodestate consume', with the same --cell and --store"
        yield Finding(FAIL, about, says, begin if why == NOTHING_STORED else "see what is said of the store")
    if heads:
        yield from _owners(config, about, heads)
    view = look.view
    lost = {p.partition: p.lost for p in view.partitions if p.lost and p.partition in heads}
    if lost:
        number, why = next(iter(lost.items()))
        says = f"{len(lost)} partitions are not all there; partition {number}: {why}"
        yield Finding(WARN, about, says, "their owners were asked to repair them; look again in some seconds")
    if incomplete := sorted(name for name in view.incomplete if " " not in name):
        says = f"{len(incomplete):,} nodes are known to have newer states than these, as {', '.join(incomplete[:3])}"
        yield Finding(
            WARN, about, says, "their agents were asked to report; are they alive? 'nodestate resync' asks again"
        )


def _owners(config: Config, about: str, heads: dict[int, HeadStatus]) -> Iterator[Finding]:
    members = Counter(head.member for head in heads.values())
    oldest = max(heads, key=lambda number: heads[number].age_s)
    behind = max(heads, key=lambda number: heads[number].behind_s)
    terms = [head.term for head in heads.values()]
    says = (
        f"{len(heads)} partitions, owned by {', '.join(f'{name} ({count})' for name, count in members.most_common(4))}; "
        f"term {_range(terms)}; renewed {heads[oldest].age_s:.0f} s ago or later"
    )
    late_s = 3 * config.renew_s + 2  # the store's clock ticks in whole seconds
    if heads[oldest].age_s > late_s:
        count = sum(1 for head in heads.values() if head.age_s > late_s)
        says = (
            f"{count} partitions have no living owner; {heads[oldest].member} renewed partition {oldest} "
            f"{heads[oldest].age_s:.0f} s ago, where it should every {config.renew_s:g} s"
        )
        yield Finding(FAIL, about, says, "start 'nodestate consume', or see in its log why it can't write")
    else:
        yield Finding(OK, about, says)
    if heads[behind].behind_s > late_s:
        seconds = _span(heads[behind].behind_s) if heads[behind].behind_s < 1e6 else "ever"
        says = f"the owner of partition {behind} has not been caught up with its queue for {seconds}"
        yield Finding(WARN, about, says, "if it stays so, add members to 'nodestate consume'")
    if unvouched := [number for number, head in heads.items() if not head.vouched]:
        says = f"{len(unvouched)} partitions may not know all their nodes yet, as {unvouched[:4]}"
        advice = f"their owners began anew, and listen for at most {config.settle_s:g} s; then this goes away"
        yield Finding(WARN, about, says, advice)


def _agents(config: Config, view: View) -> Iterator[Finding]:
    now = time.time()
    if all(partition.table is None for partition in view.partitions):
        yield Finding(WARN, "agents", "not known: no partition can be read", "see above")
        return
    ages = {name: view.node_age(name) for name in view.nodes}
    silent_s = SILENT_HEARTBEATS * config.heartbeat_s + 2
    silent = sorted(name for name, age in ages.items() if age > silent_s)
    if silent:
        longest = max(silent, key=ages.__getitem__)
        since = f"for {_span(ages[longest])}" if math.isfinite(ages[longest]) else "that anybody heard"
        says = f"{len(silent):,} of {len(ages):,} nodes gave no sign of life, as {longest} {since}"
        yield Finding(WARN, "agents", says, "are their agents running? readers see it with node_max_age")
    else:
        yield Finding(OK, "agents", f"{len(ages):,} nodes, all of them alive" if ages else "no node has reported yet")
    ahead = {name: view.nodes[name].reported_at - now for name in view.nodes}
    fast = sorted(name for name, seconds in ahead.items() if seconds > SKEW_S)
    if fast:
        worst = max(fast, key=lambda name: ahead[name])
        says = f"the clocks of {len(fast):,} nodes are ahead of this machine's, {worst}'s by {ahead[worst]:.0f} s"
        yield Finding(
            WARN, "agents", says, "nothing is decided by an agent's clock, yet a restart may need it: mend NTP"
        )


def _range(numbers: Sequence[int]) -> str:
    return f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"


def _span(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
