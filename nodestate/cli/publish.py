"""``nodestate publish``: events from a file of JSON lines."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import click
import msgspec
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from nodestate.broker import KombuSink
from nodestate.cli.command import SECONDS, Run, cell_command
from nodestate.cli.ordered_publisher import OrderedPublisher
from nodestate.errors import BadEventError, ConfigError, NodestateError
from nodestate.model import event_from_json
from nodestate.model.partitioning import bucket_of
from nodestate.ports import SystemClock

SHOW_EVERY_COUNT = 200
GZIP_MAGIC = b"\x1f\x8b"


class _Addressed(msgspec.Struct):
    """The one field that routing needs; the others are passed over."""

    node: str = ""


_decode_addressed = msgspec.msgpack.Decoder(_Addressed).decode


@dataclass(slots=True)
class _PublishProgress:
    """What became of the lines."""

    publisher: OrderedPublisher
    started: float
    refused: int = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


@cell_command("publish", example="zcat events.jsonl.gz | nodestate publish -")
@click.argument("file", type=click.File("rb"))
@click.option("--raw", is_flag=True, help="Publish lines as they are, valid or not, for consumers to judge.")
@click.option("--timeout", type=SECONDS, default=30.0, metavar="S", help="How long to wait for a broker that is away.")
def command(run: Run, file: BinaryIO, raw: bool, timeout: float) -> int:
    """Publish events from FILE, one JSON object a line ("-": from stdin).

    A line that is not a valid event is named on stderr with its reason and left out, and the exit code is then 1.
    An outage of the broker is waited for; the order of each node's events is kept.
    """
    run.require_shared(broker=True)
    clock = SystemClock()
    sink = KombuSink(run.config, control=False)
    publisher = OrderedPublisher(sink, clock, timeout)
    outcome = _PublishProgress(publisher, time.monotonic())
    try:
        with _progress(run, file) as progress:
            for number, line in enumerate(file, 1):
                if number == 1 and line.startswith(GZIP_MAGIC):
                    raise ConfigError(f"{file.name} is compressed: zcat {file.name} | nodestate publish -")
                if line.strip():
                    _publish_line(run, outcome, number, line, raw=raw)
                progress(number, len(line), outcome)
            publisher.finish()
    except (NodestateError, KeyboardInterrupt):
        _print_summary(run, outcome)
        raise
    finally:
        sink.close()
    _print_summary(run, outcome)
    return 1 if outcome.refused else 0


def _publish_line(run: Run, outcome: _PublishProgress, number: int, line: bytes, *, raw: bool) -> None:
    try:
        body = _as_it_is(line) if raw else event_from_json(line)
    except BadEventError as error:
        outcome.refused += 1
        if run.as_json:
            refusal = {"line": number, "reason": error.reason, "detail": error.detail}
            click.echo(msgspec.json.encode(refusal), err=True)
        else:
            run.err.print(f"line {number}: {error}", markup=False, soft_wrap=True)
        return
    outcome.publisher.send(_bucket(body), body)


def _as_it_is(line: bytes) -> bytes:
    """JSON as msgpack, which is what goes over the wire; anything else as the bytes that it is."""
    try:
        return msgspec.msgpack.encode(msgspec.json.decode(line))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, OverflowError):
        return line.rstrip(b"\r\n")


def _bucket(body: bytes) -> int:
    """Where an event belongs; 0 where it names no node, for the consumer of that bucket to give up."""
    try:
        return bucket_of(_decode_addressed(body).node)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return 0


# -- saying ---------------------------------------------------------------------------------------


class _Bar:
    """The progress bar of a file: by bytes where its length is known, else a count."""

    def __init__(self, progress: Progress, total: int | None) -> None:
        self._progress = progress
        self._task = progress.add_task("publishing", total=total, what="")
        self._bytes = 0

    def __call__(self, number: int, size: int, outcome: _PublishProgress) -> None:
        self._bytes += size
        if number % SHOW_EVERY_COUNT == 0:
            rate = outcome.publisher.settled / max(outcome.seconds, 1e-9)
            what = f"{outcome.publisher.settled:,} published, {rate:,.0f}/s"
            what += f", [red]{outcome.refused:,} refused[/]" if outcome.refused else ""
            self._progress.update(self._task, completed=self._bytes, what=what)


@contextmanager
def _progress(run: Run, file: BinaryIO) -> Iterator[_Bar]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[what]}"))
    shown = run.err.is_terminal and not run.as_json
    with Progress(*columns, TimeElapsedColumn(), console=run.err, transient=True, disable=not shown) as progress:
        yield _Bar(progress, _size(file))


def _size(file: BinaryIO) -> int | None:
    try:
        return os.fstat(file.fileno()).st_size or None
    except OSError:
        return None


def _print_summary(run: Run, outcome: _PublishProgress) -> None:
    seconds, published = outcome.seconds, outcome.publisher.settled
    if run.as_json:
        run.print_json({"published": published, "refused": outcome.refused, "seconds": round(seconds, 3)})
        return
    again = outcome.publisher.sent_again
    run.out.print(
        f"{published:,} published, {outcome.refused:,} refused in {seconds:.1f} s ({published / seconds:,.0f}/s)"
        + (f"; {again:,} sent again after the broker was away" if again else "")
    )
