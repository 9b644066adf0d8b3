"""The command ``consume``: one of the consumers of a cell, which share its partitions."""

from __future__ import annotations

import os
import random
import re
import socket
from dataclasses import asdict

import click

from nodestate.broker import KombuLayouts, KombuResyncSender
from nodestate.cli.command import SECONDS, Run, cell_command
from nodestate.cli.metrics_listen import metrics_option, metrics_server
from nodestate.cli.shutdown import stop_on_signals
from nodestate.cli.streams import lost_log_lines, lost_log_lines_text
from nodestate.config import Config
from nodestate.consumers.loop import Consumer
from nodestate.consumers.member import Member
from nodestate.designs.connections import configured, open_stores
from nodestate.errors import BrokerUnavailableError, StoreUnavailableError
from nodestate.masking import safe_url
from nodestate.ports import SystemClock
from nodestate.store.signed_values import VALUES
from nodestate.text import count_text


class MemberNumber(click.ParamType[tuple[int, int]]):
    """Option type: the text ``i/n`` with 1 <= i <= n, converted to the pair (i, n)."""

    name = "i/n"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Return the pair. Fails with a usage error if the text has another form."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", str(value))
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            self.fail(f"{value!r} is not i/n with 1 <= i <= n; two members have 1/2 and 2/2", param, ctx)
        return int(match[1]), int(match[2])


@cell_command(
    "consume",
    example="nodestate consume --design journal,snapshot --member 1/2",
    log_level="info",
)
@click.option(
    "--design",
    metavar="NAMES",
    help="Write these designs, separated by commas, and ignore the control record.",
    show_default="the control record's",
)
@click.option(
    "--member",
    type=MemberNumber(),
    default="1/1",
    help="Number of this consumer, and number of all consumers of the cell.",
)
@metrics_option
@click.option(
    "--seconds", type=SECONDS, metavar="S", help="End after S seconds.", show_default="run until SIGTERM or Ctrl-C"
)
def command(
    run: Run, design: str | None, member: tuple[int, int], metrics_listen: str | None, seconds: float | None
) -> None:
    """Write events from the broker into the store, as one of the consumers of the cell.

    Consumer i of n takes every n-th partition at once and stands by for the others: when a consumer dies, the remaining
    ones take over its partitions within seconds.

    The designs come from the control record. With --design, the consumer writes those designs in --partitions
    partitions and ignores the record. SIGTERM ends it after the present step; --json then prints its counters. Exit
    code 1 if it never reached its broker or its stores.
    """
    config = run.settings(designs=design)
    run.require_shared(broker=True, designs=config.designs)
    # The control record may at any time name a design that is not written now, so connect to all stores.
    stored = config.designs if design else (*config.designs, *configured(config))
    number, members = member
    clock, rng = SystemClock(), random.SystemRandom()
    layouts, stores = KombuLayouts(config, number, members, clock), open_stores(config, clock, stored, make_tables=True)
    resync = KombuResyncSender(config)
    name = f"member-{number}@{socket.gethostname()}:{os.getpid()}"
    consumer = (
        Consumer(config, layouts.open(config.partitions), stores, resync, clock, rng, name)
        if design
        else Member(config, layouts, stores, resync, clock, rng, name)
    )
    try:
        with stop_on_signals(seconds) as stop, metrics_server(run, metrics_listen, stop, consumer=consumer):
            consumer.run(stop)
    finally:
        consumer.close()
        resync.close()
    if run.as_json:
        counts = asdict(consumer.stats)
        del counts["durations"]
        counts |= {**counts.pop("counts"), "lost_log_lines": lost_log_lines()}
        counts |= {"unsigned_values": VALUES.unsigned, "refused_values": VALUES.refused}
        run.print_json({"member": f"{number}/{members}", "designs": consumer.designs, **counts})
    else:
        stats = consumer.stats
        run.out.print(
            f"{stats.received:,} received, {stats.acked:,} acked, {count_text(stats.commits, 'commit')}, "
            f"{count_text(stats.takeovers, 'takeover')}, "
            f"{count_text(sum(stats.counts.dead_letters.values()), 'dead letter')}" + lost_log_lines_text()
        )
    _require_reached(config, consumer)


def _require_reached(config: Config, consumer: Consumer | Member) -> None:
    """Raise an error if the consumer never had a session with the broker, or never an answer from its stores."""
    stats = consumer.stats
    never = "in the whole run; see the log for the cause"
    if (isinstance(consumer, Member) and consumer.control is None) or (stats.store_errors and not stats.takeovers):
        urls = [safe_url(url) for url in (config.store, config.store_b, config.sql) if url]
        raise StoreUnavailableError(" or ".join(urls), never)
    if not stats.sessions:
        raise BrokerUnavailableError(config.broker_safe, never)
