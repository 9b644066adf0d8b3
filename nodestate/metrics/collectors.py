"""Samples of consumers, agents, readers and schedulers, from their counters.

A scrape runs in a thread of its own beside the thread that counts. So each function copies a map before it iterates
over it: a copy of a built-in map is one step, while a loop over the map fails if the map grows meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from nodestate.agent.agent import Agent
from nodestate.broker import KombuSink
from nodestate.consumers.loop import Consumer
from nodestate.consumers.member import Member
from nodestate.designs.reader import Reader
from nodestate.metrics.metric_table import Sample
from nodestate.scheduling.scheduler import Scheduler

TRIES_COUNT: Final = 5
"""Attempts to iterate over claims that the scheduler changes meanwhile."""


def consumer_samples(consumer: Consumer | Member) -> Iterator[Sample]:
    """Yield the samples of a consumer, or of all consumers of a member together."""
    stats = consumer.stats
    for outcome, count in dict(stats.counts.by_outcome).items():
        yield Sample("consumer_events_total", count, (outcome,))
    for reason, count in dict(stats.counts.dead_letters).items():
        yield Sample("dead_letters_total", count, (reason,))
    for server, count in dict(stats.store_errors_by_server).items():
        yield Sample("store_errors_total", count, (server,))
    yield Sample("takeovers_total", stats.takeovers)
    yield Sample("fenced_total", stats.fenced)
    yield Sample("epochs_begun_total", stats.epochs_begun)
    yield Sample("repairs_total", stats.repairs)
    yield Sample("resyncs_total", stats.resyncs)
    yield Sample("broker_errors_total", stats.broker_errors)
    for design, durations in dict(stats.durations.commits_s).items():
        yield Sample("commit_duration_seconds", durations, (design,))
    yield Sample("batch_events", stats.durations.batch_messages)
    parts = dict(consumer.consumers).values() if isinstance(consumer, Member) else (consumer,)
    yield Sample("partitions_held", sum(len(part.owned) for part in parts))


def agent_samples(agent: Agent, sink: KombuSink | None = None) -> Iterator[Sample]:
    """Yield the samples of an agent. ``sink``: takes its events; None if it measures nothing."""
    stats = agent.stats
    counts = {
        "report": stats.reports,
        "change": stats.changes,
        "heartbeat": stats.heartbeats,
        "leave": stats.leaves,
        "resend": stats.sent_again,
    }
    for kind, count in counts.items():
        yield Sample("agent_events_total", count, (kind,))
    for kind, by_result in dict(stats.orders).items():
        for result, count in dict(by_result).items():
            yield Sample("orders_total", count, (kind, result))
    if sink is not None:
        yield Sample("agent_unconfirmed_events", sink.unconfirmed_count)
        yield Sample("agent_confirm_duration_seconds", sink.confirm_durations)


def reader_samples(reader: Reader) -> Iterator[Sample]:
    """Yield the samples of a reader. They do not refresh it."""
    yield Sample("view_age_seconds", reader.age, (reader.design,))
    for (design, result), durations in dict(reader.stats.refreshes).items():
        yield Sample("view_refresh_duration_seconds", durations, (design, result))
    for cause, count in dict(reader.stats.refusals).items():
        yield Sample("view_refusals_total", count, (cause,))
    yield Sample("propagation_seconds", reader.stats.propagation.durations_s)


def scheduler_samples(scheduler: Scheduler) -> Iterator[Sample]:
    """Yield the samples of a scheduler."""
    stats = scheduler.stats
    for phase, durations in stats.durations_s.items():
        yield Sample("decision_duration_seconds", durations, (phase,))
    for result, count in stats.decisions.items():
        yield Sample("decisions_total", count, (result,))
    for name, count in dict(stats.filter_removed).items():
        yield Sample("filter_removed_nodes_total", count, (name,))
    for reason, count in dict(stats.orders_refused).items():
        yield Sample("orders_refused_total", count, (reason,))
    yield Sample("claim_conflicts_total", scheduler.claim_table.stats.conflicts)
    for _ in range(TRIES_COUNT):
        with suppress(RuntimeError):  # the scheduler changed its claims meanwhile
            held = {claim.reservation for _, claim in scheduler.claim_table.own if claim.reservation}
            yield Sample("reservations_held", len(held))
            break
