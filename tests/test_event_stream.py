"""Streams of events in msgpack: a bounded buffer, bytes that come in any pieces, and streams that break off."""

from __future__ import annotations

import io
import re
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodestate.cli.event_stream import BUFFER_BYTES, read_events, reports_of
from nodestate.errors import BadEventError
from nodestate.model import MAX_EVENT_BYTES, check_event, fold, parse_event
from tests.machines.simulated_cell import JudgedReader, SimulatedCell

EVENT: dict[str, Any] = {
    "v": 1, "kind": "report", "node": "n", "incarnation": 1_763_787_600, "generation": 1, "reported_at": 1.5e9,
    "state": {"usage": {"VCPU": 1}, "metrics": {"load": 0.5}, "namespaces": {"x": {"text": "é" * 20, "none": None}}},
}  # fmt: skip


class SlowFile(io.BytesIO):
    """A pipe that gives a few bytes at a time."""

    def __init__(self, content: bytes, size: int) -> None:
        super().__init__(content)
        self.size = size

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(self.size, size) if size is not None and size >= 0 else self.size)


@given(count=st.integers(0, 30), size=st.integers(1, 200), sent=st.integers(0, 100))
def test_events_of_a_stream_are_read_whole_in_order_and_a_cut_is_noticed(count: int, size: int, sent: int) -> None:
    """A pipe ends its reads anywhere, and a program that dies ends its stream within an event."""
    events = [msgspec.msgpack.encode({**EVENT, "generation": n + 1}) for n in range(count)]
    content = b"".join(events)
    cut = len(content) * sent // 100
    seen: list[bytes] = []
    refusal = ""
    try:
        seen.extend(read_events(SlowFile(content[:cut], size)))
    except BadEventError as error:
        refusal = error.reason
    ends = [sum(map(len, events[:n])) for n in range(count + 1)]
    if cut in ends:
        assert (seen, refusal) == (events[: ends.index(cut)], "")
    else:
        assert refusal == "undecodable"
    for body in seen:
        check_event(body)


@pytest.mark.parametrize("bad", [b"\xc1", b"\xa1\xff", b"\xdd\xff\xff\xff\xff", b"\x91" * 2_000])
def test_stream_ends_at_bytes_that_are_no_msgpack(bad: bytes) -> None:
    """The events before are published; behind the bad bytes no event can be found."""
    stream = read_events(io.BytesIO(msgpack.packb(EVENT) + bad + msgpack.packb(EVENT)))
    assert msgpack.unpackb(next(stream)) == EVENT
    with pytest.raises(BadEventError):
        list(stream)


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (b"\xc1", "bytes that are not msgpack"),
        (b"\xa1\xff", "a text that is not UTF-8"),
        (b"\x91" * 2_000, "values that are nested too deeply"),
        (b"\xdd\xff\xff\xff\xff", "a value that no event can have"),
        (b"\x81\x90\x01", "a value that no event can have"),
        (b'{"v": 1}\n', "a number"),
        (b"\xc0", "null"),
        (b"\x1f\x8b\x08", "a number"),
    ],
)
def test_stream_ends_at_the_first_value_that_is_no_map_and_the_error_says_so_in_words(bad: bytes, found: str) -> None:
    """A file of another format is one error, not one for each of its bytes, and no error names a Python class."""
    stream = read_events(io.BytesIO(msgpack.packb(EVENT) + bad * 9))
    assert msgpack.unpackb(next(stream)) == EVENT
    with pytest.raises(BadEventError) as caught:
        list(stream)
    position = len(msgpack.packb(EVENT))
    assert caught.value.detail.startswith(f"no event at byte {position:,} of the stream, but {found}; ")
    assert "give --format json" in caught.value.detail
    assert not re.search("[a-z][A-Z]", caught.value.detail)


def test_event_over_the_limit_is_refused_before_it_fills_the_memory() -> None:
    """The buffer is bounded, whatever length an event's header claims."""
    huge = msgpack.packb({**EVENT, "state": {"namespaces": {"x": "y" * (2 * BUFFER_BYTES)}}})
    with pytest.raises(BadEventError) as caught:
        list(read_events(io.BytesIO(huge)))
    assert caught.value.reason in {"too-large", "undecodable"}
    assert len(huge) > MAX_EVENT_BYTES


def test_stream_of_a_view_is_a_report_of_each_node() -> None:
    """``publish --format msgpack`` reads the output of ``view --format msgpack``."""
    world = SimulatedCell(servers=1)
    world.start_member([0, 1], [])
    world.readers = [JudgedReader(world, design) for design in world.config.designs]
    for number in range(3):
        world.start_agent(f"node-{number}", {"usage": {"VCPU": number}})
    world.run_well(60)
    view = world.readers[0].read(60.0)
    bodies = list(read_events(io.BytesIO(b"".join(reports_of(view)))))
    records = [fold(None, parse_event(body)).record for body in bodies]
    assert [record and (record.name, record.version, record.state()) for record in records] == [
        (name, view.nodes[name].version, dict(view.nodes[name].state)) for name in sorted(view.nodes)
    ]
    assert len(list(reports_of(view, "node-1"))) == 1
