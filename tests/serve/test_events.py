"""Server-sent events: complete, resumed without a hole or reset, small, and without waiting for slow clients."""

from __future__ import annotations

import json
import random
import socket
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from harness.waiting import PATIENCE_S, wait_until
from nodestate.model import NodeRecord
from nodestate.model.record import columns_of
from nodestate.model.state import Inventory
from nodestate.serve import event_hub, event_routes, fleet_events
from nodestate.serve.event_hub import EventHub, StreamClient, StreamEvent
from nodestate.serve.limits import Limits
from nodestate.serve.node_board import NodeBoard, NodesEvent
from tests.machines.simulated_cell import SimulatedCell
from tests.serve.running_service import RunningService, publish

NODES = [f"node-{n}" for n in range(6)]
STATUSES = {"u": "up", "d": "draining", "m": "maintenance", "x": "down"}
MAX_PICTURE_BYTES = 60_000
MAX_CHANGES_BYTES = 2_000


@pytest.fixture
def world() -> SimulatedCell:
    world = SimulatedCell(designs=("journal", "snapshot"))
    world.start_member([0, 1], [])
    for name in NODES:
        world.start_agent(name, {"usage": {"VCPU": 1}, "zone": "az1", "inventory": {"VCPU": {"total": 10}}})
    world.run_well(60)
    return world


@pytest.fixture
def running(world: SimulatedCell, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningService]:
    monkeypatch.setattr(fleet_events, "PARTITIONS_EVERY_S", 0.1)
    with RunningService.over(world, limits=Limits(max_streams=3)) as running:
        yield running


class Events:
    """A client of the stream: the events that it received, and the fleet that follows from them."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.iter_lines()
        self.last_id = ""
        self.names: list[str] = []
        self.zones: list[str] = []
        self.rows: dict[int, tuple[str, str, int]] = {}

    def next(self, *kinds: str) -> tuple[str, Any]:
        """Return the next event that is one of these kinds; all events before it are applied."""
        while True:
            kind, data = self._event()
            if kind == "nodes":
                self.apply(data)
            if not kinds or kind in kinds:
                return kind, data

    def _event(self) -> tuple[str, Any]:
        fields: dict[str, str] = {}
        for line in self._lines:
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif "event" in fields:
                self.last_id = fields.get("id", self.last_id)
                return fields["event"], json.loads(fields["data"])
            else:
                fields = {}
        raise AssertionError("the stream has ended")

    def apply(self, event: Any) -> None:
        """Apply an event as its schema says."""
        if event.get("whole"):
            self.names, self.zones, self.rows = [], [], {}
        self.names += event.get("names", [])
        self.zones += event.get("zones", [])
        numbers = range(len(self.names)) if event.get("whole") else event["numbers"]
        for number, letter, zone, load in zip(
            numbers, event.get("status", ""), event.get("zone", []), event.get("load", []), strict=True
        ):
            self.rows.pop(number, None)
            if letter != "-":
                self.rows[number] = (STATUSES[letter.lower()], self.zones[zone], load)

    @property
    def fleet(self) -> dict[str, tuple[str, str, int]]:
        """By name: status, zone and load."""
        return {self.names[number]: row for number, row in self.rows.items()}


@contextmanager
def events_of(running: RunningService, topics: str = "nodes,partitions", **headers: str) -> Iterator[Events]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with running.client.stream("GET", f"/v1/events?topics={topics}", headers=named) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Events(response)


def change(world: SimulatedCell, name: str, used: int) -> None:
    world.agents[name].publisher.change({"usage": {"VCPU": used}})
    world.run_well(3)


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_client_gets_all_nodes_and_then_each_change(
    world: SimulatedCell, running: RunningService, encoding: str
) -> None:
    with events_of(running, accept_encoding=encoding) as events:
        assert events.response.headers.get("content-encoding", "identity") == encoding
        assert events.next() == ("reset", {"reason": "start"})
        assert events.next("nodes")[1]["whole"]
        assert events.fleet == dict.fromkeys(NODES, ("up", "az1", 10))
        position = running.get("/v1/view").headers["nodestate-position"]
        assert events.last_id.partition("~")[0] == position
        change(world, "node-2", 7)
        while events.fleet["node-2"] != ("up", "az1", 70):
            events.next("nodes")
        world.start_agent("node-new", {"zone": "az2"})
        world.agents["node-0"].publisher.leave()
        world.run_well(3)
        while "node-0" in events.fleet or "node-new" not in events.fleet:
            events.next("nodes")
        assert events.fleet["node-new"] == ("up", "az2", -1)
        _, partitions = events.next("partitions")  # without news, too: ages rise
        assert partitions["complete"] == [True, True]
        assert partitions["lost"] == ["", ""]


def test_a_client_that_connects_again_gets_the_events_that_it_missed(
    world: SimulatedCell, running: RunningService
) -> None:
    """No hole and no repetition: it applies the missed changes to the lists that it kept."""
    with events_of(running, "nodes") as events:
        events.next("nodes")
    change(world, "node-1", 5)
    wait_until(lambda: running.get("/v1/nodes/node-1/events").json()["events"], "the service does not see the change")
    with events_of(running, "nodes", last_event_id=events.last_id) as resumed:
        resumed.names, resumed.zones, resumed.rows = events.names, events.zones, events.rows
        kind, data = resumed.next()
        assert (kind, data.get("whole", False)) == ("nodes", False)
    assert resumed.fleet["node-1"] == ("up", "az1", 50)


def test_a_client_whose_last_event_is_not_kept_is_told_to_reset(running: RunningService) -> None:
    for last_id in ("x/1.2~0badcafe-1", "nonsense", "~-", "~00-99999999999999999999"):
        with events_of(running, "nodes", last_event_id=last_id) as events:
            assert events.next() == ("reset", {"reason": "gone"}), last_id
            assert events.next("nodes")[1]["whole"], last_id
            assert len(events.fleet) == len(NODES), last_id


def test_a_number_of_a_node_stays_its_own_until_all_are_given_again() -> None:
    board = NodeBoard()
    board.apply([node("a"), node("b")])
    left = board.apply([node("a", gone=True)])
    assert left == NodesEvent(numbers=[0], status="-", zone=[0], load=[-1], names=[], zones=[])
    back = board.apply([node("a"), node("c")], vanished=["b", "unknown"])
    assert back is not None
    assert (back.names, back.numbers, back.status) == (["a", "c"], [2, 3, 1], "uu-")
    assert board.picture().names == ["", "", "a", "c"]
    assert board.apply([node("unknown", gone=True)]) is None
    assert not board.is_sparse


def test_a_call_with_more_events_than_a_queue_holds_drops_no_client() -> None:
    """Regression: a selection for 1,000 instances dropped each client that followed decisions."""
    dropped: list[str] = []
    hub = EventHub()
    client = StreamClient(frozenset({"nodes"}), lambda: dropped.append("client"))
    hub.clients.add(client)
    hub.publish("nodes", *(NodesEvent(names=[str(number)]) for number in range(event_hub.QUEUE_ENTRIES_COUNT + 1)))
    assert (dropped, hub.clients) == ([], {client})
    events = client.queue.get_nowait()
    assert events is not None
    assert [event.sequence for event in events] == [*range(1, event_hub.QUEUE_ENTRIES_COUNT + 2)]
    for _ in range(event_hub.QUEUE_ENTRIES_COUNT + 1):
        hub.publish("nodes", NodesEvent())
    assert (dropped, hub.clients) == (["client"], set())


def test_events_that_are_no_longer_kept_cannot_be_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_hub, "RING_EVENTS_COUNT", 3)
    hub = EventHub()
    ids = []
    for number in range(5):
        hub.publish("nodes", NodesEvent(names=[str(number)]))
        ids.append(hub.event_id())
    kept = [hub.sequence_of(one) for one in ids]
    assert kept == [1, 2, 3, 4, 5]
    assert hub.events_after(1) is None
    missed = hub.events_after(2)
    assert missed is not None
    assert [event.sequence for event in missed] == [3, 4, 5]
    assert list(hub.events_after(5) or ()) == []
    assert hub.events_after(6) is None
    assert EventHub().sequence_of(ids[0]) is None, "another service sent it"
    hub.forget()
    assert hub.sequence_of(ids[-1]) is None


# -- size -----------------------------------------------------------------------------------------


def node(name: str, *, used: int = 0, zone: int = 0, status: Any = "up", gone: bool = False) -> NodeRecord:
    classes, columns = columns_of({"VCPU": Inventory(100)}, {"VCPU": used})
    rest = b"" if gone else zlib_free_state(zone)
    return NodeRecord(name, 1, 1, 1, 1, 0.0, gone, status, classes, columns, b"", b"", rest)


def zlib_free_state(zone: int) -> bytes:
    """Return an encoded state that has a zone only."""
    text = f"az{zone}".encode()
    return b"\x81\xa4zone" + bytes([0xA0 + len(text)]) + text


def fleet_of(names: list[str], chance: random.Random) -> list[NodeRecord]:
    statuses = ["up"] * 97 + ["draining", "maintenance", "down"]
    return [
        node(name, used=chance.randrange(101), zone=chance.randrange(4), status=chance.choice(statuses))
        for name in names
    ]


def stream_bytes(event: NodesEvent) -> int:
    """Return the compressed size of an event, with an id of eight partitions."""
    commits = ",".join(f"{0x75951D908E40A0BE * (n + 1) % 2**64:x}.{10_000 + n}" for n in range(8))
    return len(StreamEvent(1, "nodes", f"snapshot/{commits}~0123abcd-123456", "nodes", event).deflated)


@pytest.mark.parametrize(
    ("names", "most"),
    [
        ([f"compute-{n:05d}" for n in range(1, 10_001)], MAX_PICTURE_BYTES),
        ([str(uuid.UUID(int=random.Random(n).getrandbits(128))) for n in range(10_000)], 260_000),
    ],
    ids=["numbered", "uuids"],
)
def test_the_picture_of_10000_nodes_and_100_changes_are_small(names: list[str], most: int) -> None:
    """Nodes in the order in which they registered: at random. UUIDs cost 19 bytes each, as nothing compresses them."""
    chance = random.Random(1)
    board = NodeBoard()
    board.apply(fleet_of(names, chance))
    picture = stream_bytes(board.picture())
    changes = board.apply(fleet_of(chance.sample(names, 100), chance))
    assert changes is not None
    assert picture <= most, picture
    assert stream_bytes(changes) <= MAX_CHANGES_BYTES


# -- slow clients ---------------------------------------------------------------------------------


def test_streams_above_the_limit_are_refused(running: RunningService) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(events_of(running)) for _ in range(3)]
        for client in clients:
            client.next()
        refused = running.get("/v1/events")
        assert (refused.status_code, refused.json()["type"]) == (503, "overloaded")
        assert "--max-streams" in refused.json()["detail"]
    wait_until(lambda: not running.service.hub.clients, "clients that left still count")
    with events_of(running) as events:
        events.next("nodes")


def test_a_client_that_does_not_take_its_events_is_dropped_and_others_get_them(
    running: RunningService,
) -> None:
    host, _, port = running.listener.url.removeprefix("http://").rpartition(":")
    with socket.socket() as slow, events_of(running, "decisions") as beside:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        slow.settimeout(PATIENCE_S)
        slow.connect((host, int(port)))
        slow.sendall(b"GET /v1/events?topics=findings HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: len(running.service.hub.clients) == 2, "the clients do not connect")
        large = NodesEvent(names=["x" * 100_000])
        while not running.service.hub.dropped:
            publish(running, "findings", large)
            time.sleep(0.001)  # a client that takes its events keeps up with this
        publish(running, "decisions", NodesEvent(names=["a decision"]))
        assert beside.next("decisions")[1] == {"names": ["a decision"]}
        try:
            while slow.recv(65_536):  # ends only if the server closed the connection
                pass
        except ConnectionResetError:
            pass


def test_a_stream_ends_in_time_and_when_the_service_stops(
    world: SimulatedCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gzip stream ends with its checksum, so that no client takes it for cut off."""
    monkeypatch.setattr(event_routes, "MAX_STREAM_S", 0.2)
    monkeypatch.setattr(event_routes, "KEEP_ALIVE_S", 0.1)
    with RunningService.over(world) as running:
        raw = running.client.build_request("GET", "/v1/events", headers={"Accept-Encoding": "gzip"})
        answer = running.client.send(raw, stream=True)
        text = zlib.decompress(b"".join(answer.iter_raw()), wbits=31)
        assert text.startswith(b"retry: 1000\n\nevent: reset\n")
        monkeypatch.setattr(event_routes, "MAX_STREAM_S", 1_000.0)
        stream = running.client.send(running.client.build_request("GET", "/v1/events"), stream=True)
        lines = stream.iter_lines()
        next(lines)
        running.stop()
        assert list(lines)[-1] == ""
