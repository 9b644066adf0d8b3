"""The command ``publish``: publish events from a file of JSON lines, or from a stream of msgpack."""

from __future__ import annotations

import codecs
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import click
import msgspec
from msgspec import UNSET, UnsetType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from nodestate.auth import MessageAuth, event_auth
from nodestate.broker import KombuSink
from nodestate.cli.command import SECONDS, Run, cell_command
from nodestate.cli.event_stream import read_events
from nodestate.cli.ordered_publisher import OrderedPublisher
from nodestate.errors import BadEventError, ConfigError, NodestateError
from nodestate.model import check_event, event_from_json
from nodestate.model.partitioning import bucket_of
from nodestate.ports import SystemClock
from nodestate.text import printable_json

SHOW_EVERY_COUNT = 200
"""Lines between two updates of the progress bar."""
GZIP_MAGIC = b"\x1f\x8b"
MSGPACK_MAPS = (*(bytes([byte]) for byte in range(0x80, 0x90)), b"\xde", b"\xdf")
"""First bytes of a map in msgpack. No text in UTF-8, and no JSON, begins with one of them."""


class _Addressed(msgspec.Struct):
    """The fields of an event that routing and signing need."""

    node: str = ""
    signature: str | UnsetType = UNSET


_decode_addressed = msgspec.msgpack.Decoder(_Addressed).decode


@dataclass(slots=True)
class _PublishProgress:
    """Figures of a running publish."""

    auth: MessageAuth
    """Signs the events."""
    publisher: OrderedPublisher
    """Knows how many events are published."""
    started: float
    """Start on the monotonic clock, in seconds."""
    refused: int = 0
    """Lines that are no valid events."""

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started


@cell_command(
    "publish",
    example="zcat events.jsonl.gz | nodestate publish -\n"
    "nodestate view --format msgpack | nodestate publish --cell copy --format msgpack -",
)
@click.argument("file", type=click.File("rb"))
@click.option(
    "--raw", is_flag=True, help="Publish every line unchecked; consumers move invalid events to the dead-letter queue."
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["json", "msgpack"]),
    default="json",
    show_default=True,
    help="Format of FILE: json, one object a line; msgpack, one event after the other as on the wire.",
)
@click.option(
    "--timeout", type=SECONDS, default=30.0, metavar="S", help="Fail if the broker does not answer for S seconds."
)
def command(run: Run, file: BinaryIO, raw: bool, file_format: str, timeout: float) -> int:
    """Publish events from FILE, one JSON object a line ("-" for stdin).

    A line that is not a valid event is not published; stderr has its number and the reason, and the exit code is 1. If
    the broker is down for a while, the command waits for it. The events of a node are published in the order of the
    file. A stream of msgpack ends at the first value that is no map. If the setting auth_events asks for signatures and
    keys_file names the keys of the cell, events are signed.
    """
    run.require_shared(broker=True)
    clock = SystemClock()
    sink = KombuSink(run.config, control=False)
    publisher = OrderedPublisher(sink, clock, timeout)
    figures = _PublishProgress(event_auth(run.config).events, publisher, time.monotonic())
    try:
        with _progress(run, file) as progress:
            if file_format == "msgpack":
                _publish_stream(run, file, figures, progress, raw=raw)
            else:
                _publish_lines(run, file, figures, progress, raw=raw)
            publisher.finish()
    except (NodestateError, KeyboardInterrupt):
        _print_summary(run, figures)
        raise
    finally:
        sink.close()
    _print_summary(run, figures)
    return 1 if figures.refused else 0


def _without_bom(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines without the byte order mark that some editors write at the beginning of a file."""
    for number, line in enumerate(lines):
        yield line if number else line.removeprefix(codecs.BOM_UTF8)


def _publish_lines(run: Run, file: BinaryIO, figures: _PublishProgress, progress: _Bar, *, raw: bool) -> None:
    for number, line in enumerate(_without_bom(file), 1):
        if number == 1 and line.startswith(GZIP_MAGIC):
            raise ConfigError(f"{file.name} is compressed with gzip; run: zcat {file.name} | nodestate publish -")
        if number == 1 and line.startswith(MSGPACK_MAPS):
            raise ConfigError(f"{file.name} has no JSON lines, it begins with a map in msgpack: give --format msgpack")
        if line.strip():
            try:
                body = _encode_unchecked(line) if raw else event_from_json(line, time.time())
            except BadEventError as error:
                _refuse(run, figures, "line", number, error)
            else:
                figures.publisher.send(_bucket(body), body if raw else _signed(body, figures.auth))
        progress(number, len(line), figures)


def _publish_stream(run: Run, file: BinaryIO, figures: _PublishProgress, progress: _Bar, *, raw: bool) -> None:
    number = 0
    try:
        for number, body in enumerate(read_events(file), 1):
            try:
                if not raw:
                    check_event(body, time.time())
            except BadEventError as error:
                _refuse(run, figures, "event", number, error)
            else:
                figures.publisher.send(_bucket(body), body if raw else _signed(body, figures.auth))
            progress(number, len(body), figures)
    except BadEventError as error:  # the stream can't be read further
        _refuse(run, figures, "event", number + 1, error)


def _refuse(run: Run, figures: _PublishProgress, unit: str, number: int, error: BadEventError) -> None:
    """Print why an event is not published. ``unit`` is "line" or "event", which ``number`` counts."""
    figures.refused += 1
    if run.as_json:
        refusal = msgspec.json.encode({unit: number, "reason": error.reason, "detail": error.detail})
        click.echo(printable_json(refusal), err=True)
    else:
        run.err.print(f"{unit} {number}: {error}", markup=False, soft_wrap=True)


def _encode_unchecked(line: bytes) -> bytes:
    """Convert a line of JSON to msgpack, the format of the wire; return any other line unchanged."""
    try:
        return msgspec.msgpack.encode(msgspec.json.decode(line))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, OverflowError):
        return line.rstrip(b"\r\n")


def _signed(body: bytes, auth: MessageAuth) -> bytes:
    """Return a valid event with a signature, if the settings say so and it has none."""
    event = _decode_addressed(body)
    return auth.sign(event.node, body) if event.signature is UNSET else body


def _bucket(body: bytes) -> int:
    """Return the bucket of an event's node; 0 if the event names no node, so that some consumer dead-letters it."""
    try:
        return bucket_of(_decode_addressed(body).node)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return 0


# -- output ---------------------------------------------------------------------------------------


class _Bar:
    """Progress bar of a file: its share in bytes if the length of the file is known, else a count."""

    def __init__(self, progress: Progress, total: int | None) -> None:
        self._progress = progress
        self._task = progress.add_task("publishing", total=total, what="")
        self._bytes = 0

    def __call__(self, number: int, size: int, figures: _PublishProgress) -> None:
        self._bytes += size
        if number % SHOW_EVERY_COUNT == 0:
            rate = figures.publisher.settled / max(figures.seconds, 1e-9)
            what = f"{figures.publisher.settled:,} published, {rate:,.0f}/s"
            what += f", [red]{figures.refused:,} refused[/]" if figures.refused else ""
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


def _print_summary(run: Run, figures: _PublishProgress) -> None:
    seconds, published = figures.seconds, figures.publisher.settled
    if run.as_json:
        run.print_json({"published": published, "refused": figures.refused, "seconds": round(seconds, 3)})
        return
    again = figures.publisher.sent_again
    run.out.print(
        f"{published:,} published, {figures.refused:,} refused in {seconds:.1f} s ({published / seconds:,.0f}/s)"
        + (f"; {again:,} sent again after an outage of the broker" if again else "")
    )
