"""Checks of the broker: its server, the queues of the cell, and the dead letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Final

import msgspec

from nodestate.broker import (
    DeadLetter,
    QueueDepth,
    check_accepts_messages,
    connect_check,
    dead_queue_faults,
    layouts_with_queues,
    missing_exchanges,
    queue_depths,
    read_dead_letters,
)
from nodestate.broker.topology import DEAD_QUEUE_MAX_BYTES, REBIND_S, REDECLARE_S
from nodestate.config import Config
from nodestate.designs.control import Control
from nodestate.errors import BrokerUnavailableError
from nodestate.findings.finding import Finding, found, well
from nodestate.text import count_text, range_text

LOST_WITH_EXCHANGE: Final = {
    "events": "the events of agents came back",
    "node-orders": "no agent received orders",
    "answers": "no scheduler received answers of agents",
    "orders": "no agent of an earlier version received orders",
    "control": "no agent was asked for reports",
    "dead": "refused messages stayed in the queues of their partitions",
}
"""By last word of the name of an exchange, the effect of its loss."""
PEEKED_LETTERS: Final = 20
"""Most dead letters that are read to count their reasons. They stay in the queue."""


def examine_broker(config: Config, layouts: Sequence[int]) -> list[Finding]:
    """Examine the server, the queues of these layouts (numbers of partitions), and the dead letters."""
    deleted = missing_exchanges(config)  # every other connection declares them again
    facts = connect_check(config)
    findings = [well("broker", f"{facts.product} {facts.version} at {facts.broker}")]
    findings += _examine_nodes(config)
    if not facts.fails_over:
        says = (
            "this transport has no single active consumer, so no consumer takes over the partitions of another "
            "that dies"
        )
        findings.append(
            found("no-failover", "broker", says, "use RabbitMQ if consumers must take over from each other")
        )
    findings += _examine_deleted_exchanges(deleted)
    try:
        check_accepts_messages(config)
    except BrokerUnavailableError as error:
        advice = (
            "free memory or disk, or raise the limits that 'rabbitmqctl status' shows; consumers still drain the queues"
        )
        findings.append(found("broker-alarm", "broker", str(error), advice))
    depths = {n: queue_depths(msgspec.structs.replace(config, partitions=n)) for n in layouts}
    for partitions, (*queues, _) in depths.items():
        about = "queues" if len(layouts) == 1 else f"queues of {partitions}"
        findings += _examine_queues(config, about, queues, fails_over=facts.fails_over)
    dead = depths[layouts[0]][-1]
    letters = [] if dead.missing or not dead.ready else read_dead_letters(config, PEEKED_LETTERS)
    findings.append(_examine_dead_letters(dead, letters))
    findings += examine_refused_clocks(letters)
    if not dead.missing:
        findings += _examine_dead_queue(config, dead.queue)
    return findings


def _examine_nodes(config: Config) -> Iterator[Finding]:
    """Name the nodes of a cluster that do not answer. At least one does."""
    nodes = [msgspec.structs.replace(config, broker=url.strip()) for url in config.broker.split(";")]
    away: list[str] = []
    for node in nodes if len(nodes) > 1 else []:
        try:
            connect_check(node)
        except BrokerUnavailableError as error:
            away.append(str(error))
    if not away:
        return
    verb = "does" if len(away) == 1 else "do"
    says = f"{len(away)} of {count_text(len(nodes), 'node')} of the cluster {verb} not answer, for example: {away[0]}"
    if config.queue_type == "quorum" and 2 * len(away) >= len(nodes):
        advice = "quorum queues need more than half of the nodes to take events or to give them: start a node again"
        yield found("broker-no-majority", "broker", says, advice)
        return
    advice = (
        "processes go on with the other nodes. Start this one again. Stop no other node before this line is gone and "
        "'rabbitmq-queues check_if_node_is_quorum_critical' succeeds on that node"
    )
    yield found("broker-node-away", "broker", says, advice)


def examine_unnamed_layouts(config: Config, control: Control, named: Collection[int]) -> list[Finding]:
    """Examine the queues of layouts that are neither in the control record nor in ``named`` (numbers of partitions)."""
    named = {*named, *(design.partitions for design in (*control.writes, *control.leaving))}
    return [
        finding
        for partitions in layouts_with_queues(config)
        if partitions not in named
        for finding in _examine_unnamed_layout(
            msgspec.structs.replace(config, partitions=partitions), control.reads.partitions
        )
    ]


def _examine_unnamed_layout(config: Config, read: int) -> Iterator[Finding]:
    left = [queue for queue in queue_depths(config) if queue.partition is not None and not queue.missing]
    waiting, partitions = sum(queue.ready for queue in left), count_text(config.partitions, "partition")
    if any(queue.consumers for queue in left):
        says = (
            f"consumers read the queues of {partitions}, a number from their settings that the "
            "control record does not name"
        )
        yield found(
            "layout-unnamed-consumed",
            "queues",
            says,
            "start these consumers without --design: then they follow the control record",
        )
    elif waiting:
        says = (
            f"{count_text(waiting, 'message waits', 'messages wait')} in the queues of {partitions}, a number that the "
            "control record does not name: no consumer reads them"
        )
        advice = (
            "an earlier control record named them and was lost with its stores, or a publisher with this number in its "
            f"settings came first. Set NODESTATE_PARTITIONS={read} everywhere; run 'nodestate resync --all', so that "
            f"all nodes report; then delete the queues {left[0].queue} to {left[-1].queue} with 'rabbitmqctl "
            "delete_queue'"
        )
        yield found("layout-unnamed-messages", "queues", says, advice)


def _examine_deleted_exchanges(exchanges: Sequence[str]) -> Iterator[Finding]:
    for exchange in exchanges:
        effect = LOST_WITH_EXCHANGE[exchange.rpartition(".")[2]]
        advice = (
            f"this command has declared it again; consumers bind their queues again within {REDECLARE_S:g} s, and "
            f"agents within {REBIND_S:g} s: check that they run, and that no program deletes exchanges. Only earlier "
            "versions of nodestate make cells without the exchanges node-orders and answers"
        )
        yield found("exchange-missing", "exchanges", f"exchange {exchange} did not exist, so {effect}", advice)


def _examine_queues(config: Config, about: str, queues: Sequence[QueueDepth], *, fails_over: bool) -> Iterator[Finding]:
    waiting, longest = sum(q.ready for q in queues), max(queues, key=lambda q: q.ready)
    alone = [q.partition for q in queues if q.consumers == 0 and not q.missing]
    all_queues, events = count_text(len(queues), "queue"), count_text(waiting, "event waits", "events wait")
    if missing := [q.queue for q in queues if q.missing]:
        says = f"{len(missing)} of {all_queues} missing, for example {missing[0]}: events for them come back"
        yield found(
            "queue-missing",
            about,
            says,
            "start 'nodestate consume', which declares them; agents then report by themselves",
        )
    counts = [q.consumers for q in queues if q.consumers is not None]
    # RabbitMQ does not count the consumers of a quorum queue that wait for their turn.
    counts_standbys = config.queue_type == "classic"
    wait = f"wait {config.standby_s + 1:g} s if one has just started"
    if alone:
        says = f"{len(alone)} of {all_queues} without a consumer, and {events}"
        yield found("queue-no-consumer", about, says, f"start 'nodestate consume', or {wait}")
    elif waiting > config.prefetch:
        says = f"{events}, {longest.ready:,} of them in {longest.queue}"
        yield found("queue-backlog", about, says, "if this persists, start more members of 'nodestate consume'")
    else:
        if not counts_standbys:
            served = ", each with an active consumer" if counts else ""
        else:
            served = f", each with {range_text(counts)} consumer{'' if max(counts) == 1 else 's'}" if counts else ""
        yield well(about, f"{all_queues}{served}, {events}")
    if fails_over and counts_standbys and counts and min(counts) == 1:
        says = f"{counts.count(1)} of {all_queues} with only one consumer, and no other takes over if it dies"
        yield found("queue-no-standby", about, says, f"start another member of 'nodestate consume', or {wait}")


def _examine_dead_queue(config: Config, queue: str) -> Iterator[Finding]:
    faults = dead_queue_faults(config)
    again = f"an earlier version declared it. Read its letters, then run 'rabbitmqctl delete_queue {queue}': it is "
    if "classic" in faults:
        says = f"{queue} is a classic queue, so it is lost with its machine, while queue_type is {config.queue_type}"
        yield found("dead-queue-classic", "dead letters", says, f"{again}declared again with the right type")
    if "unbounded" in faults:
        says = f"{queue} was declared without a limit, so refused messages can fill the broker's disk"
        pattern, limit = queue.replace(".", "[.]"), f'{{"max-length-bytes":{DEAD_QUEUE_MAX_BYTES}}}'
        advice = (
            f"{again}declared again with a limit. To keep it, run 'rabbitmqctl set_policy --apply-to queues {queue} "
            f'"^{pattern}$" {limit!r}\'; no client sees policies, so this line stays'
        )
        yield found("dead-queue-unbounded", "dead letters", says, advice)


def examine_refused_clocks(letters: Sequence[DeadLetter]) -> Iterator[Finding]:
    """Examine whether events were refused for the clock of their node. ``letters``: the first dead letters."""
    refused = [letter for letter in letters if letter.reason == "clock"]
    if refused:
        says = (
            f"{len(refused)} of the first {count_text(len(letters), 'dead letter')} were refused for the clock of "
            f"their node, e.g. {refused[-1].detail}"
        )
        yield found("dead-letters-clock", "clocks", says)


def _examine_dead_letters(depth: QueueDepth, letters: Sequence[DeadLetter]) -> Finding:
    queue, count = depth.queue, depth.ready
    if depth.missing:
        says = f"{queue} does not exist, so refused messages stay in the queues of their partitions"
        return found(
            "dead-queue-missing",
            "dead letters",
            says,
            "consumers declare it again within some seconds: check that they run",
        )
    if not count:
        return well("dead letters", "none")
    reasons = Counter(letter.reason for letter in letters)
    named = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
    says = (
        f"{count:,} in {queue}; the first {len(letters)}: {named}; e.g. {letters[0].detail}" if letters else str(count)
    )
    return found(
        "dead-letters",
        "dead letters",
        says,
        f"these messages were not applied: correct the program that sends them, then run 'rabbitmqctl purge_queue "
        f"{queue}'",
    )
