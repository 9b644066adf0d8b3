"""Encoded views: the same document as that of the command, from bytes that are kept while a node is unchanged."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from starlette.types import Message

from nodestate.designs.reader import Reader
from nodestate.serve.encoding import JSON, MSGPACK, EncodedBody, accepts_gzip, encode
from nodestate.serve.limits import LARGE_BYTES
from nodestate.serve.responses import PORTIONS_PER_TURN_COUNT, ApiResponse, Responder
from nodestate.serve.view_encoding import MAX_NODE_FORMS_COUNT, ViewEncoder
from nodestate.testing import MemoryStore
from nodestate.view.documents import view_document
from nodestate.view.view import View
from tests.machines.simulated_cell import SimulatedCell
from tests.scheduling.fleets import ChangingPartition, host
from tests.serve.running_service import RunningService

NODES = [f"node-{n:03}" for n in range(100)]
TEXT = "x" * 10_000
ANY_AGE = "max_age=1000000"


def new_world(designs: tuple[str, ...] = ("snapshot",)) -> SimulatedCell:
    world = SimulatedCell(designs=designs)
    world.start_member([0, 1], [])
    for name in NODES:
        world.start_agent(name, {"usage": {"VCPU": 1}, "zone": f"az{name[-1]}", "namespaces": {"test": {"text": TEXT}}})
    world.run_well(60)
    return world


def encoded(encoder: ViewEncoder, view: View, media_type: str = JSON, **options: Any) -> EncodedBody:
    chosen: dict[str, Any] = {"zone": None, "fields": None, "gzip": False, **options}
    return encoder.encode(view, media_type, **chosen)


def decoded(body: EncodedBody, media_type: str = JSON) -> Any:
    whole = b"".join(body.pieces)
    assert len(whole) == body.size
    if body.content_encoding:
        whole = zlib.decompress(whole, 16 + zlib.MAX_WBITS)
    document = msgspec.msgpack.decode(whole) if media_type == MSGPACK else msgspec.json.decode(whole)
    document.pop("age")  # it rises between two encodings
    return document


def document_of(view: View, names: list[str] | None = None, fields: frozenset[str] | None = None) -> Any:
    document = msgspec.json.decode(encode(view_document(view, names, fields), JSON))
    document.pop("age")
    return document


def same_pieces(one: EncodedBody, other: EncodedBody) -> int:
    """The number of pieces of one body that are the same objects in the other one."""
    known = set(map(id, one.pieces))
    return sum(id(piece) in known for piece in other.pieces)


@pytest.mark.parametrize("design", ["journal", "snapshot"])
def test_every_form_of_every_view_is_the_document_of_the_command(design: str) -> None:
    """One encoder follows changes, new nodes and departures, and is also given views that are older than its last."""
    world, picks = new_world((design,)), random.Random(1)
    _, stores = world.connected(MemoryStore)
    reader, encoder, views = Reader(world.config, stores=stores, clock=world.clock), ViewEncoder(), list[View]()
    for step in range(6):
        for name in picks.sample(sorted(world.agents), 5):
            world.agents[name].publisher.change({"usage": {"VCPU": step}})
        if step == 2:
            world.start_agent("node-new", {"usage": {"VCPU": 1}, "zone": "az1"})
        if step == 3:
            world.agents.pop("node-007").publisher.leave()
        world.run_well(5)
        views.append(reader.read(max_age=math.inf, on_stale="flag"))
    assert len({len(view.nodes) for view in views}) > 1, "nodes appeared or left"
    views += [views[0].bounded(0.0, None, "flag"), views[1].bounded(0.0, None, "exclude"), views[-1], views[2]]
    for view in views:
        of_zone = [name for name in view.nodes if view.nodes[name].state.get("zone") == "az1"]
        for media_type in (JSON, MSGPACK):
            for gzip in (False, True):
                body = encoded(encoder, view, media_type, gzip=gzip)
                assert body.content_encoding == ("gzip" if gzip and view.nodes else "")
                assert decoded(body, media_type) == document_of(view)
            zone = encoded(encoder, view, media_type, zone="az1", fields=frozenset({"usage"}))
            assert decoded(zone, media_type) == document_of(view, of_zone, frozenset({"usage"}))


def test_a_damaged_node_is_named_in_every_form() -> None:
    damaged = msgspec.structs.replace(host("a", vcpu=8), rest=b"\x81\xc1")
    view = ChangingPartition(damaged, host("b", vcpu=8)).view
    for media_type in (JSON, MSGPACK):
        document = decoded(encoded(ViewEncoder(), view, media_type), media_type)
        assert document == document_of(view)
        assert document["damaged"] == ["a"]


def test_only_the_nodes_that_changed_are_encoded_again() -> None:
    world = new_world()
    _, stores = world.connected(MemoryStore)
    reader, encoder = Reader(world.config, stores=stores, clock=world.clock), ViewEncoder()
    first = encoded(encoder, reader.read(max_age=math.inf, on_stale="flag"))
    for name in NODES[10:13]:
        world.agents[name].publisher.change({"usage": {"VCPU": 9}})
    world.run_well(5)
    second = encoded(encoder, reader.read(max_age=math.inf, on_stale="flag"))
    assert same_pieces(first, second) >= len(NODES) - 3 - 1, "the first node's bytes have no comma"
    changed = [name for name, node in decoded(second)["nodes"].items() if node != decoded(first)["nodes"][name]]
    assert sorted(changed) == NODES[10:13]


def test_compressed_nodes_are_kept_while_no_node_changes() -> None:
    """A commit without changes of nodes, such as a heartbeat's, changes the position only."""
    world = new_world()
    _, stores = world.connected(MemoryStore)
    view = Reader(world.config, stores=stores, clock=world.clock).read(max_age=math.inf, on_stale="flag")
    encoder = ViewEncoder()
    first = encoded(encoder, view, gzip=True)
    world.pass_time(7)
    second = encoded(encoder, view, gzip=True)
    assert second.pieces[0] is first.pieces[0]
    ages = [msgspec.json.decode(zlib.decompress(b"".join(b.pieces), 31))["age"] for b in (first, second)]
    assert ages[1] - ages[0] == pytest.approx(7), "the age is that of each response"


def test_the_forms_that_are_kept_are_bounded() -> None:
    view, encoder = ChangingPartition(host("a", vcpu=8), host("b", vcpu=8)).view, ViewEncoder()
    first = encoded(encoder, view)
    assert same_pieces(first, encoded(encoder, view)) >= 2
    for number in range(MAX_NODE_FORMS_COUNT):
        encoded(encoder, view, fields=frozenset({f"field{number}"}))
    assert len(encoder._forms) == MAX_NODE_FORMS_COUNT
    for number in range(1_000):
        encoded(encoder, view, zone=f"az{number}")
    assert max(len(form._selections) for form in encoder._forms.values()) < 10
    assert decoded(encoded(encoder, view)) == decoded(first)


def test_portions_are_the_whole_body_in_parts_of_bounded_size() -> None:
    picks = random.Random(2)
    for _ in range(50):
        pieces = [picks.randbytes(picks.choice([0, 1, 300, 70_000, 200_000])) for _ in range(picks.randrange(20))]
        portions = list(EncodedBody(pieces, sum(map(len, pieces))).portions())
        assert b"".join(portions) == b"".join(pieces)
        assert all(0 < len(portion) <= LARGE_BYTES for portion in portions)


def test_a_large_response_to_a_fast_client_lets_other_requests_take_turns() -> None:
    """Regression: a send that need not wait gave no turn to other tasks, so 12 MB stopped the event loop for 12 ms."""
    portions_count = 200
    turns = [0]

    async def count_turns() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    async def send(_message: Message) -> None:
        """Take a message at once."""

    async def run() -> None:
        body = EncodedBody([bytes(LARGE_BYTES)] * portions_count, LARGE_BYTES * portions_count)
        response = Responder().respond(ApiResponse(encoded=body), JSON)
        other = asyncio.create_task(count_turns())
        await response({}, None, send)  # type: ignore[arg-type]  # it receives nothing
        other.cancel()

    asyncio.run(run())
    assert turns[0] >= portions_count // PORTIONS_PER_TURN_COUNT


@pytest.mark.parametrize("header", ["gzip", "gzip, deflate, br", "GZIP;q=0.5", "*"])
def test_gzip_is_chosen_if_the_client_accepts_it(header: str) -> None:
    assert accepts_gzip(header)


@pytest.mark.parametrize("header", ["", "br", "gzip;q=0", "gzip;q=0, *", "*;q=0"])
def test_gzip_is_not_chosen_otherwise(header: str) -> None:
    assert not accepts_gzip(header)


def test_views_are_compressed_for_clients_that_accept_it() -> None:
    """ETag, 304 and waits count for the compressed and for the plain response alike."""
    world = new_world()
    with RunningService.over(world) as running:
        plain = running.get(f"/v1/view?{ANY_AGE}", accept_encoding="identity")
        assert "content-encoding" not in plain.headers
        for accept in (JSON, MSGPACK):
            packed = running.get(f"/v1/view?{ANY_AGE}", accept_encoding="gzip", accept=accept)
            assert packed.headers["content-encoding"] == "gzip"
            assert packed.headers["vary"] == "Accept, Accept-Encoding"
            assert int(packed.headers["content-length"]) * 10 < len(packed.content)
            document = packed.json() if accept == JSON else msgspec.msgpack.decode(packed.content)
            assert document["nodes"] == plain.json()["nodes"]
        small = running.get("/v1/view?fields=usage", accept_encoding="gzip")
        assert "content-encoding" not in small.headers
        etag = running.get(f"/v1/view?{ANY_AGE}", accept_encoding="gzip").headers["etag"]
        for coding in ("gzip", "identity"):
            again = running.get(f"/v1/view?{ANY_AGE}", accept_encoding=coding, if_none_match=etag)
            assert (again.status_code, again.content) == (304, b"")
        world.pass_time(60)
        refused = running.get("/v1/view", accept_encoding="gzip", if_none_match=etag)
        assert refused.status_code == 503, "kept bytes do not make a stale view acceptable"
        position = plain.headers["nodestate-position"]
        world.agents["node-042"].publisher.change({"usage": {"VCPU": 9}})
        world.run_well(5)
        news = running.get(f"/v1/view?{ANY_AGE}&wait=60s&position={position}", accept_encoding="gzip")
        assert news.headers["etag"] != etag
        assert news.json()["nodes"]["node-042"]["state"]["usage"] == {"VCPU": 9}


def test_other_requests_are_answered_while_ten_clients_fetch_whole_views() -> None:
    ended = threading.Event()
    with RunningService.over(new_world()) as running:
        size = len(running.get(f"/v1/view?{ANY_AGE}").content)

        def fetch(number: int) -> int:
            count = 0
            while not ended.is_set():
                answer = running.get(f"/v1/view?{ANY_AGE}", accept_encoding=("gzip", "identity")[number % 2])
                assert (answer.status_code, len(answer.content) // 100) == (200, size // 100)
                count += 1
            return count

        with ThreadPoolExecutor(10) as pool:
            clients = [pool.submit(fetch, number) for number in range(10)]
            try:
                for name in NODES[:50]:
                    assert running.get(f"/v1/nodes/{name}?{ANY_AGE}").json()["name"] == name
            finally:
                ended.set()
            assert all(client.result() for client in clients)
