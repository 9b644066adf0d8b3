"""The publisher: it raises versions, refuses events that a consumer would refuse, and delivers its newest state."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nodestate.agent.publisher import Publisher
from nodestate.config import Config
from nodestate.errors import BadEventError, ConfigError, UnconfirmedError
from nodestate.model import NodeRecord, Version, fold, merge_patch, parse_event
from nodestate.model.partitioning import bucket_of
from nodestate.ports import ACTIVATION, Resync
from nodestate.ports.backoff import MAX_PAUSE_S, Backoff
from nodestate.testing import ManualClock
from tests.recording_sink import RecordingSink, kind_of

CONFIG = Config(partitions=4)
STATE: dict[str, Any] = {"status": "up", "inventory": {"VCPU": {"total": 8}}, "usage": {"VCPU": 1}}


class PublisherBench:
    """A publisher with its sink, and the fold of a consumer."""

    def __init__(self) -> None:
        self.sink = RecordingSink()
        self.clock = ManualClock()
        self.became_dirty: list[str] = []
        self.publisher = Publisher(
            CONFIG,
            "compute-1",
            sink=self.sink,
            inbox=self.sink,
            clock=self.clock,
            incarnation=7,
            backoff=Backoff(self.clock, random.Random(1)),
            on_dirty=self.became_dirty.append,
            rng=random.Random(2),
        )

    def folded(self) -> NodeRecord | None:
        record: NodeRecord | None = None
        for _, body in self.sink.sent:
            record = fold(record, parse_event(body)).record
        return record

    def come_back(self) -> None:
        self.sink.away = False
        self.clock.advance(MAX_PAUSE_S)


@pytest.fixture
def bench() -> PublisherBench:
    return PublisherBench()


# -- authoring ------------------------------------------------------------------------------------


def test_every_report_change_and_leave_raises_the_generation_by_one(bench: PublisherBench) -> None:
    publisher = bench.publisher
    receipts = [
        publisher.report(STATE),
        publisher.change({"usage": {"VCPU": 2}}),
        publisher.heartbeat(),
        publisher.report(STATE),
        publisher.leave(),
        publisher.report(STATE),
    ]
    assert [receipt.version for receipt in receipts] == [Version(7, g) for g in (1, 2, 2, 3, 4, 5)]
    assert bench.sink.events() == [
        ("report", 1),
        ("change", 2),
        ("heartbeat", 2),
        ("report", 3),
        ("leave", 4),
        ("report", 5),
    ]


def test_events_go_to_the_bucket_of_their_node(bench: PublisherBench) -> None:
    """A publisher does not know the number of partitions."""
    bench.publisher.report(STATE)
    assert [bucket for bucket, _ in bench.sink.sent] == [bucket_of("compute-1")]


def test_folding_the_published_events_gives_the_publishers_state(bench: PublisherBench) -> None:
    bench.publisher.report(STATE)
    bench.publisher.change({"usage": {"VCPU": 3}, "metrics": {"cpu.percent": 9.5}})
    bench.publisher.change({"allocations": {"vm-1": {"resources": {"VCPU": 2}}}, "zone": "az1"})
    record = bench.folded()
    assert record is not None
    assert record.version == bench.publisher.version
    assert record.state() == bench.publisher.state()
    assert record.state()["allocations"] == {"vm-1": {"resources": {"VCPU": 2}}}


@pytest.mark.parametrize(
    ("patch", "reason"),
    [
        ({"usage": {"VCPU": -1}}, "wrong-type"),
        ({"usage": {"vcpu": 1}}, "wrong-type"),
        ({"status": "tired"}, "wrong-type"),
        ({"zone": 7}, "wrong-type"),
        ({"metrics": {"started": object()}}, "wrong-type"),
        ({"inventory": {"VCPU": {"total": 2**70}}}, "wrong-type"),
        ({"namespaces": {"nova": {"flavours": {1: "small"}}}}, "wrong-type"),
        ({"namespaces": {"nova": {"text": "x" * 300_000}}}, "too-large"),
    ],
)
def test_an_invalid_change_is_refused_and_changes_nothing(
    bench: PublisherBench, patch: dict[str, Any], reason: str
) -> None:
    """A mistake of the caller shows where it is made, and not as a dead letter."""
    bench.publisher.report(STATE)
    with pytest.raises(BadEventError) as caught:
        bench.publisher.change(patch)
    assert caught.value.reason == reason
    assert bench.publisher.version == Version(7, 1)
    assert bench.publisher.state() == STATE
    assert len(bench.sink.sent) == 1
    assert bench.publisher.change({"usage": {"VCPU": 2}}).version == Version(7, 2)


def test_an_invalid_report_is_refused_and_changes_nothing(bench: PublisherBench) -> None:
    with pytest.raises(BadEventError):
        bench.publisher.report({"status": "up", "usage": {"VCPU": 1.5}})
    assert bench.publisher.version == Version(7, 0)
    assert bench.sink.sent == []
    assert bench.publisher.report(STATE).version == Version(7, 1)


def test_a_state_never_grows_beyond_the_size_of_a_report(bench: PublisherBench) -> None:
    """A change is small, but after a loss the whole state must fit into one report."""
    bench.publisher.report({"namespaces": {"a": "x" * 200_000}})
    with pytest.raises(BadEventError, match="and a report holds 261,120"):
        bench.publisher.change({"namespaces": {"b": "x" * 100_000}})
    assert bench.publisher.republish().version == Version(7, 2)


def test_changing_the_callers_objects_does_not_change_the_state(bench: PublisherBench) -> None:
    state = {"usage": {"VCPU": 1}, "inventory": {"VCPU": {"total": 8}}}
    bench.publisher.report(state)
    state["usage"]["VCPU"] = 7
    bench.publisher.state()["usage"]["VCPU"] = 6
    assert bench.publisher.state()["usage"] == {"VCPU": 1}


@pytest.mark.parametrize("call", ["heartbeat", "leave", "republish", "change"])
def test_calls_before_the_first_report_are_refused(bench: PublisherBench, call: str) -> None:
    arguments = [{"usage": {}}] if call == "change" else []
    with pytest.raises(BadEventError, match=r"has not reported yet; call report\(state\) first"):
        getattr(bench.publisher, call)(*arguments)
    assert bench.sink.sent == []


@pytest.mark.parametrize("call", ["heartbeat", "leave", "change"])
def test_calls_after_a_leave_are_refused_until_the_next_report(bench: PublisherBench, call: str) -> None:
    bench.publisher.report(STATE)
    bench.publisher.leave()
    arguments = [{"usage": {}}] if call == "change" else []
    with pytest.raises(BadEventError, match="has left"):
        getattr(bench.publisher, call)(*arguments)
    assert bench.publisher.state() == {}


def test_an_invalid_node_name_is_refused_at_once() -> None:
    with pytest.raises(BadEventError) as caught:
        Publisher(CONFIG, "no spaces please", sink=RecordingSink(), incarnation=1)
    assert caught.value.reason == "bad-name"


# -- while the broker is away ---------------------------------------------------------------------


def test_calls_return_receipts_while_the_broker_is_away(bench: PublisherBench) -> None:
    bench.sink.away = True
    assert bench.publisher.report(STATE).version == Version(7, 1)
    assert bench.publisher.change({"usage": {"VCPU": 2}}).version == Version(7, 2)
    assert bench.publisher.dirty
    assert set(bench.became_dirty) == {"compute-1"}


def test_one_report_of_the_newest_state_replaces_all_lost_events(bench: PublisherBench) -> None:
    bench.publisher.report(STATE)
    bench.sink.away = True
    for used in range(2, 6):
        bench.publisher.change({"usage": {"VCPU": used}})
        bench.clock.advance(MAX_PAUSE_S)
    bench.sink.away = False
    bench.clock.advance(MAX_PAUSE_S)
    bench.publisher.tick()
    assert bench.sink.events() == [("report", 1), ("report", 6)]
    record = bench.folded()
    assert record is not None
    assert record.state()["usage"] == {"VCPU": 5}
    assert not bench.publisher.dirty


def test_a_change_after_a_loss_is_published_as_a_report(bench: PublisherBench) -> None:
    """A consumer could not apply the change, because the change before it never came."""
    bench.publisher.report(STATE)
    bench.publisher.change({"usage": {"VCPU": 2}})
    bench.sink.settle(False)
    assert bench.publisher.dirty
    bench.publisher.change({"zone": "az2"})
    assert bench.sink.events()[2:] == [("report", 3)]
    record = bench.folded()
    assert record is not None
    assert (record.state()["usage"], record.state()["zone"]) == ({"VCPU": 2}, "az2")


def test_a_heartbeat_after_a_loss_is_published_as_a_report(bench: PublisherBench) -> None:
    bench.publisher.report(STATE)
    bench.sink.settle(False)
    assert bench.publisher.heartbeat().version == Version(7, 2)
    assert bench.sink.events() == [("report", 1), ("report", 2)]


def test_a_lost_heartbeat_does_not_make_the_publisher_dirty(bench: PublisherBench) -> None:
    bench.publisher.report(STATE)
    bench.sink.settle()
    bench.publisher.heartbeat()
    bench.sink.settle(False)
    bench.sink.away = True
    bench.publisher.heartbeat()
    assert not bench.publisher.dirty


def test_a_lost_leave_is_sent_again_behind_a_state_without_allocations(bench: PublisherBench) -> None:
    """The event that ended the last allocation may be lost, too; with an allocation the node would not be gone."""
    bench.publisher.report(STATE)
    bench.sink.settle()
    bench.publisher.leave()
    bench.sink.settle(False)
    bench.publisher.tick()
    assert bench.sink.events() == [("report", 1), ("leave", 2), ("report", 3), ("leave", 4)]


def test_a_lost_leave_of_a_node_with_allocations_is_sent_again_behind_its_state(bench: PublisherBench) -> None:
    """The leave depends on the state before it, so the state must arrive, too."""
    bench.publisher.report({**STATE, "allocations": {"vm": {"resources": {"VCPU": 1}}}})
    bench.publisher.leave()
    bench.sink.settle(False)
    bench.publisher.tick()
    assert bench.sink.events() == [("report", 1), ("leave", 2), ("report", 3), ("leave", 4)]
    assert not bench.publisher.live


def test_a_loss_of_superseded_events_does_not_make_the_publisher_dirty(bench: PublisherBench) -> None:
    bench.publisher.report(STATE)
    bench.publisher.change({"usage": {"VCPU": 2}})
    bench.publisher.report(STATE)
    bench.sink.waiting.reverse()
    bench.sink.settle(True, count=1)  # the second report
    bench.sink.settle(False)  # the change, then the first report
    assert not bench.publisher.dirty


def test_a_loss_before_an_unconfirmed_report_makes_dirty_only_if_the_report_is_lost_too(bench: PublisherBench) -> None:
    bench.publisher.report(STATE)
    bench.publisher.report(STATE)
    bench.sink.settle(False, count=1)
    assert not bench.publisher.dirty
    bench.sink.settle(False)
    assert bench.publisher.dirty


def test_a_lost_change_after_a_confirmed_report_makes_the_publisher_dirty(bench: PublisherBench) -> None:
    bench.publisher.report(STATE)
    bench.publisher.change({"usage": {"VCPU": 2}})
    bench.sink.settle(True, count=1)
    bench.sink.settle(False)
    assert bench.publisher.dirty


def test_a_broker_that_is_away_is_not_tried_at_every_call(bench: PublisherBench) -> None:
    """Each attempt may take seconds, and a node that changes often must not wait for each of them."""
    bench.sink.away = True
    bench.publisher.report(STATE)
    bench.sink.away = False
    bench.publisher.change({"usage": {"VCPU": 2}})
    bench.publisher.tick()
    assert bench.sink.sent == []
    bench.come_back()
    bench.publisher.tick()
    assert bench.sink.events() == [("report", 3)]


def test_flush_publishes_the_newest_state_once_the_broker_is_back(bench: PublisherBench) -> None:
    bench.sink.away = True
    bench.publisher.report(STATE)
    bench.sink.away = False
    bench.publisher.flush(20.0)
    assert not bench.publisher.dirty
    assert bench.sink.events() == [("report", 2)]


def test_flush_raises_if_the_newest_state_did_not_arrive(bench: PublisherBench) -> None:
    bench.sink.away = True
    bench.publisher.report(STATE)
    with pytest.raises(UnconfirmedError, match="within 3 s: away"):
        bench.publisher.flush(3.0)
    bench.come_back()
    bench.sink.confirming = False
    with pytest.raises(UnconfirmedError):
        bench.publisher.flush(3.0)


def test_leaving_the_context_flushes_and_leaves_a_shared_sink_open(bench: PublisherBench) -> None:
    with bench.publisher as publisher:
        publisher.report(STATE)
    assert bench.sink.waiting == []
    assert not bench.sink.closed


# -- requests -------------------------------------------------------------------------------------


def test_a_resync_is_answered_by_one_report_within_its_jitter(bench: PublisherBench) -> None:
    bench.publisher.report(STATE)
    bench.publisher.resync(Resync(jitter_s=4.0))
    bench.publisher.resync(Resync(jitter_s=4.0))
    bench.publisher.tick()
    sent_at = []
    for tenth in range(45):
        bench.publisher.tick()
        if len(bench.sink.sent) == 2 and not sent_at:
            sent_at.append(tenth / 10)
        bench.clock.advance(0.1)
    assert bench.sink.events() == [("report", 1), ("report", 2)]
    assert 0.0 < sent_at[0] <= 4.0


def test_a_report_for_another_reason_also_answers_a_resync(bench: PublisherBench) -> None:
    bench.publisher.report(STATE)
    bench.publisher.resync(Resync(jitter_s=4.0))
    bench.publisher.report(STATE)
    bench.clock.advance(5.0)
    bench.publisher.tick()
    assert bench.sink.events() == [("report", 1), ("report", 2)]


def test_a_census_is_answered_with_the_version_and_without_a_report(bench: PublisherBench) -> None:
    bench.publisher.report(STATE)
    bench.publisher.resync(Resync(census="box"))
    [(queue, body)] = bench.sink.census
    assert (queue, parse_event(body).version) == ("box", Version(7, 1))
    assert len(bench.sink.sent) == 1


def test_a_publisher_without_a_sink_connects_by_itself_and_answers_resyncs(tmp_path: Path, cell: str) -> None:
    from nodestate.broker import KombuResyncSender, KombuSource  # noqa: PLC0415 - only this test needs a broker

    config = Config(cell=cell, partitions=1, state_dir=str(tmp_path), broker="memory://")
    source, sender = KombuSource(config, [0]), KombuResyncSender(config)
    with Publisher(config, "compute-1") as publisher:
        publisher.report(STATE)
        publisher.tick()  # connects its control queue
        sender.request_resync(Resync(nodes=("compute-1", "compute-2")))
        sender.request_resync(Resync(nodes=("compute-2",)))
        publisher.heartbeat()
        publisher.tick()
        with pytest.raises(ConfigError, match="another agent"):
            Publisher(config, "compute-1")
    kinds = [kind_of(delivery.body) for delivery in source.receive(10, 0.1) if not delivery.body.startswith(ACTIVATION)]
    assert kinds == [("report", 1), ("report", 2)]
    source.close()
    sender.close()


def test_the_next_publisher_of_a_node_has_a_larger_incarnation(tmp_path: Path, cell: str) -> None:
    config = Config(cell=cell, state_dir=str(tmp_path))
    versions = []
    for _ in range(2):
        with Publisher(config, "compute-1", sink=RecordingSink(), clock=ManualClock()) as publisher:
            versions.append(publisher.report(STATE).version)
    assert versions == [Version(1_763_787_600, 1), Version(1_763_787_601, 1)]


# -- all together ---------------------------------------------------------------------------------


class LossyBroker(RuleBasedStateMachine):
    """I6 from the agent's side: the broker may lose events, nack them, or deliver them without a confirm. Once it is
    back and has confirmed everything, a consumer that folds the delivered events has exactly the newest state.

    Confirmed events are delivered. Of the events that were reported as lost, some were delivered nevertheless.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bench = PublisherBench()
        self.dropped: set[int] = set()
        self.expected: dict[str, Any] | None = None

    @rule(used=st.integers(0, 8))
    def report(self, used: int) -> None:
        self.expected = {"inventory": {"VCPU": {"total": 8}}, "usage": {"VCPU": used}}
        self.bench.publisher.report(self.expected)

    @precondition(lambda self: self.bench.publisher.live)
    @rule(used=st.integers(0, 8), zone=st.sampled_from(["az1", "az2", None]), instance=st.sampled_from("ab"))
    def change(self, used: int, zone: str | None, instance: str) -> None:
        assert self.expected is not None
        allocation = {"resources": {"VCPU": used}} if used > 2 else None
        patch = {"usage": {"VCPU": used}, "zone": zone, "allocations": {instance: allocation}}
        self.bench.publisher.change(patch)
        self.expected = merge_patch(msgspec.json.decode(msgspec.json.encode(self.expected)), patch)

    @precondition(lambda self: self.bench.publisher.live)
    @rule()
    def heartbeat(self) -> None:
        self.bench.publisher.heartbeat()

    @precondition(lambda self: self.bench.publisher.live)
    @rule()
    def leave(self) -> None:
        self.bench.publisher.leave()
        assert self.expected is not None
        if self.expected.get("allocations"):
            self.expected |= {"status": "down", "namespaces": {"nodestate": {"left_at": self.bench.clock.time()}}}
        else:
            self.expected = {}

    @rule(seconds=st.sampled_from([0.1, 1.0, 20.0]))
    def tick(self, seconds: float) -> None:
        self.bench.clock.advance(seconds)
        self.bench.publisher.tick()

    @precondition(lambda self: self.bench.sink.waiting)
    @rule(data=st.data(), ok=st.booleans(), delivered=st.booleans())
    def settle_one(self, data: st.DataObject, ok: bool, delivered: bool) -> None:
        """Confirm or lose one event. Queues confirm independently, so any event may be next."""
        place = data.draw(st.integers(0, len(self.bench.sink.waiting) - 1))
        number, on_done = self.bench.sink.waiting.pop(place)
        if not ok and not delivered:
            self.dropped.add(number)
        on_done(ok)

    @rule(delivered=st.booleans())
    def break_connection(self, delivered: bool) -> None:
        sink = self.bench.sink
        sink.away = True
        if not delivered:
            self.dropped.update(number for number, _ in sink.waiting)
        sink.settle(False)

    @rule()
    def come_back(self) -> None:
        self.bench.sink.away = False

    @invariant()
    def its_own_state_is_what_was_asked_for(self) -> None:
        if self.expected is not None:
            assert self.bench.publisher.state() == self.expected

    def teardown(self) -> None:
        publisher = self.bench.publisher
        if self.expected is None:
            return
        self.bench.sink.away = False
        publisher.flush(60.0)
        record: NodeRecord | None = None
        for number, (_, body) in enumerate(self.bench.sink.sent):
            if number not in self.dropped:
                record = fold(record, parse_event(body)).record
        assert record is not None
        assert record.version == publisher.version
        assert not record.incomplete
        assert record.state() == self.expected


TestLossyBroker = LossyBroker.TestCase


def test_a_state_that_the_broker_refuses_again_and_again_is_sent_ever_more_rarely(bench: PublisherBench) -> None:
    """A partition's queue may be missing for an hour. The publishers of other nodes have their own pauses."""
    bench.publisher.report(STATE)
    for _ in range(600):
        for _, on_done in bench.sink.waiting:
            on_done(False)
        bench.sink.waiting.clear()
        bench.clock.advance(0.1)
        bench.publisher.tick()
    assert len(bench.sink.sent) < 25
    before = len(bench.sink.sent)
    bench.clock.advance(CONFIG.heartbeat_s / 2)
    bench.publisher.tick()
    assert len(bench.sink.sent) == before + 1
    bench.sink.settle()
    assert not bench.publisher.dirty
    bench.publisher.change({"zone": "a"})
    for _, on_done in bench.sink.waiting:
        on_done(False)
    bench.sink.waiting.clear()
    bench.publisher.tick()
    assert len(bench.sink.sent) == before + 3, "the first loss after a success is repaired at once"
