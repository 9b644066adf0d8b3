"""Signed orders and answers over the double and over real brokers: forged ones are refused, honest ones pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from msgspec import UNSET, structs

from harness.servers import RabbitServer
from harness.waiting import PATIENCE_S, wait_until
from nodestate.auth import order_auth
from nodestate.broker import KombuCourier, KombuSink
from nodestate.config import Config
from nodestate.model.presence import Presence
from nodestate.ports import Courier
from nodestate.testing import MemoryBroker
from tests.cell_keys import new_cell_keys, written
from tests.contract.courier import ListeningSink, OrderBench, build, done, take_answers, take_orders

MODE: Final = "require"


class AuthenticatedBroker:
    """A broker behind ``contract.courier.OrderBroker``, with the keys of a cell and of the nodes n1 and n2."""

    def __init__(self, config: Config, directory: Path, memory: MemoryBroker | None = None) -> None:
        keys = new_cell_keys(config.cell)
        self._memory = memory
        self._config = config
        self._cell_file = written(directory, "cell.keys", keys)
        self._node_file = written(directory, "nodes.keys", keys.node_keys(("n1", "n2")))
        self._other_cell_file = written(directory, "other.keys", new_cell_keys(config.cell))

    def sink(self) -> ListeningSink:
        config = structs.replace(self._config, auth_orders=MODE, keys_file=self._node_file)
        return self._memory.sink(order_auth(config)) if self._memory is not None else KombuSink(config)

    def courier(self, mode: str = MODE, *, forged: bool = False) -> Courier:
        file = self._other_cell_file if forged else self._cell_file
        config = structs.replace(self._config, auth_orders=mode, keys_file=file)
        return self._memory.courier(order_auth(config)) if self._memory is not None else KombuCourier(config)

    def restart(self) -> None:
        raise AssertionError("these tests restart no broker")


@pytest.fixture(params=["double", "memory", pytest.param("rabbit", marks=pytest.mark.service)])
def broker(request: pytest.FixtureRequest, cell: str, tmp_path: Path) -> AuthenticatedBroker:
    if request.param == "double":
        return AuthenticatedBroker(Config(cell=cell), tmp_path, MemoryBroker(1))
    rabbit: RabbitServer | None = request.getfixturevalue("rabbit") if request.param == "rabbit" else None
    url = rabbit.url if rabbit is not None else "memory://"
    return AuthenticatedBroker(Config(broker=url, cell=cell, partitions=1, broker_timeout_s=PATIENCE_S), tmp_path)


@pytest.fixture
def bench(broker: AuthenticatedBroker) -> Iterator[OrderBench]:
    bench = OrderBench(broker)
    yield bench
    bench.close()


def test_signed_orders_answers_and_presences_pass(bench: OrderBench) -> None:
    sink, courier = bench.agent("n1"), bench.courier()
    sent = build(courier, 1)
    courier.send([sent], 60.0)
    [order] = take_orders(sink, 1)
    assert structs.replace(order, signature=UNSET) == sent
    sink.answer(order.reply_to, done(order))
    [answer] = take_answers(courier, 1)
    assert structs.replace(answer, signature=UNSET) == done(order)
    sink.announce(Presence(node="n1", incarnation=1, life="a"))
    heard: list[Presence] = []

    def presence_arrived() -> bool:
        sink.resyncs(0.01)
        sink.orders()
        heard.extend(sink.presences())
        return bool(heard)

    wait_until(presence_arrived, "no presence arrives")


@pytest.mark.parametrize(("mode", "forged", "refused"), [("off", False, "unsigned"), (MODE, True, "bad-signature")])
def test_a_foreign_order_is_refused_and_its_sender_learns_why_if_it_does_not_check_answers(
    broker: AuthenticatedBroker, bench: OrderBench, mode: str, forged: bool, refused: str
) -> None:
    """The refusal is not signed: it could otherwise be sent to the scheduler whose order the foreign one names."""
    sink, honest = bench.agent("n1"), bench.courier()
    foreign = broker.courier(mode, forged=forged)
    foreign.send([build(foreign, 1), structs.replace(build(foreign, 2), reply_to=honest.reply_to)], 60.0)
    refuses = _counter(lambda: sink.bad_orders)

    def refused_both() -> bool:
        sink.resyncs(0.01)
        assert sink.orders() == []
        return refuses() == 2

    wait_until(refused_both, "the orders are not refused")
    if mode == "off":
        assert [answer.refused for answer in take_answers(foreign, 1)] == [refused]

    def dropped() -> bool:
        assert honest.answers(0.05) == []
        return bool(getattr(honest, "bad_answers", 0) == 1)

    wait_until(dropped, "the unsigned refusal does not arrive")
    foreign.close()


def test_an_answer_of_another_agent_is_dropped(broker: AuthenticatedBroker, bench: OrderBench) -> None:
    sink, courier = bench.agent("n1"), bench.courier()
    courier.send([build(courier, 1)], 60.0)
    [order] = take_orders(sink, 1)
    forger = broker.courier("off")
    thief = bench.agent("n2")
    thief.answer(order.reply_to, structs.replace(done(order), node="n3"))
    sink.answer(order.reply_to, done(order))
    assert [answer.node for answer in take_answers(courier, 1)] == ["n1"]
    forger.close()


def _counter(read: Callable[[], int]) -> Callable[[], int]:
    before = read()
    return lambda: read() - before
