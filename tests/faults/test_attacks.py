"""An intruder with a login at the broker of a cell that requires signatures: all that it sends is refused and named."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import msgspec
import pytest
from msgspec import structs
from pymemcache.client.base import Client

from harness.servers import MemcachedServer, RabbitServer
from harness.waiting import wait_until
from nodestate.auth import event_auth
from nodestate.auth.key_file import read_cell_keys
from nodestate.broker import KombuCourier, KombuSink
from nodestate.config import Config
from nodestate.model import Report, parse_event
from nodestate.model.orders import Answer, Build
from nodestate.model.partitioning import bucket_of, partition_of
from nodestate.store import keys
from tests.cell_keys import new_cell_keys, written
from tests.rollout_page import ON, STORE, commands_of
from tests.signed_cell import SignedCell

pytestmark = [pytest.mark.service, pytest.mark.thorough]

COUNT: Final = 20
"""Forged messages of each kind."""


def test_nothing_that_an_intruder_sends_is_taken_and_doctor_names_all_of_it(
    cell: str, tmp_path: Path, rabbit: RabbitServer, memcached: MemcachedServer, record: Callable[[str], None]
) -> None:
    """Spoofed events, foreign orders and forged answers: without keys, with the keys of another secret, and with the
    keys of one node for another node. Forged claims, swapped and replayed values, and a forged control record.
    """
    with SignedCell(tmp_path, rabbit.url, memcached.url, cell, rate=100.0) as run:
        run.execute(commands_of("Create the keys"))
        run.follow(ON)
        run.follow(STORE, "auth_store")
        victim, thief = run.nodes["agent0"][1], run.nodes["agent1"][1]
        off, secrets = run.unsigned, read_cell_keys(str(run.cell_file), cell)
        stolen = secrets.node_keys((thief,))
        stolen = structs.replace(stolen, nodes={victim: stolen.nodes[thief]})
        foreign = new_cell_keys(cell)
        intruders = [
            off,
            structs.replace(
                off, auth_events="warn", auth_orders="warn", keys_file=written(tmp_path, "foreign.keys", foreign)
            ),
            structs.replace(
                off, auth_events="warn", auth_orders="warn", keys_file=written(tmp_path, "stolen.keys", stolen)
            ),
        ]
        for intruder in intruders:
            spoof_events(intruder, victim)
            give_orders(intruder, victim)
            forge_answers(intruder, victim, run.schedulers[0].reply_to)

        # A value in place of another is refused. Its node is incomplete until its owner writes the value again.
        for reader in run.readers:
            reader.ignored = frozenset(run.nodes["agent2"][: COUNT + 1])
        forge_values(run.unsigned, memcached.address, run.nodes["agent2"])

        run.wait_until_said("answers", f"refused {3 * COUNT} answers .*scheduler-0: .*{victim}", "WARN")
        run.wait_until_said("stored values", "are refused, for example .*", "FAIL")
        run.wait_until_said("dead letters", f"unsigned.*{victim}", "WARN")
        run.wait_until_said("orders", f"refused {3 * COUNT} orders .* for {victim}", "WARN")
        wait_until(lambda: len(run.dead_letters()) >= 3 * COUNT, "not every spoofed event is refused")
        letters = run.dead_letters()
        run.purge_dead_letters()
        run.end()
    record(run.figures())
    run.require_nothing_noticed()
    assert {parse_event(letter.body).node for letter in letters} == {victim}
    assert sorted(letter.reason for letter in letters) == sorted(["unsigned", "bad-signature", "bad-signature"] * COUNT)
    assert run.counters["refused_messages"] == 3 * COUNT
    assert run.schedulers[0].counts["refused answers"] == 3 * COUNT
    assert run.schedulers[1].counts["refused answers"] == 0
    assert run.taken >= run.sent


def spoof_events(config: Config, node: str) -> None:
    """Publish reports of a node, newer than any of its agent."""
    sink, auth = KombuSink(config, control=False), event_auth(config).events
    confirmed: list[bool] = []
    for number in range(COUNT):
        now = int(time.time())
        event = Report(
            node=node, incarnation=now + 60, generation=number + 1, reported_at=now, state=msgspec.Raw(b"\x80")
        )
        sink.publish(bucket_of(node), auth.sign(node, msgspec.msgpack.encode(event)), confirmed.append)
    sink.flush(60.0)
    sink.close()
    assert confirmed == [True] * COUNT


def give_orders(config: Config, node: str) -> None:
    """Give a node orders to build instances, and wait until each is refused."""
    courier = KombuCourier(structs.replace(config, auth_orders="off") if not config.keys_file else config)
    orders = [
        Build(
            id=f"order-{number}",
            node=node,
            instance=f"intruder-{number}",
            reply_to=courier.reply_to,
            resources={"VCPU": 1},
            deadline=time.time() + 600.0,
        )
        for number in range(COUNT)
    ]
    courier.send(orders, 600.0)
    refused: list[str] = []

    def all_refused() -> bool:
        refused.extend(answer.refused for answer in courier.answers(0.1))
        return len(refused) == COUNT or courier.bad_answers == COUNT  # a refusal is not signed

    wait_until(all_refused, "not every foreign order is refused")
    courier.close()
    assert set(refused) <= {"unsigned", "bad-signature"}


def forge_answers(config: Config, node: str, queue: str) -> None:
    """Tell a scheduler in the name of a node that orders were carried out."""
    sink = KombuSink(config)
    for number in range(COUNT):
        sink.answer(queue, Answer(id=f"order-{number}", node=node, instance="vm", incarnation=1, generation=1))
    sink.resyncs(0.1)
    sink.close()


def forge_values(config: Config, address: str, nodes: Sequence[str]) -> None:
    """Write into memcached: claims, the states of nodes in place of others, heads of before, and a control record."""
    with closing(Client(address)) as client:
        found = client.raw_command(b"lru_crawler metadump all", end_tokens=b"END\r\n").decode()
        stored = [unquote(line.partition(" ")[0].removeprefix("key=")) for line in found.splitlines() if "key=" in line]
        earlier = {key: client.get(key) for key in stored if ":head:" in key}
        for first, second in pairwise(nodes[: COUNT + 1]):
            one, other = (node_key(config, node) for node in (first, second))
            value = client.get(one)
            assert value is not None
            client.set(other, value)
        for node in nodes[:COUNT]:
            client.set(keys.claim(config.cell, node), b"forged")
        client.set(keys.control(config.cell), msgspec.msgpack.encode({"version": 2**40}))
        for key, value in earlier.items():
            client.set(key, value)


def node_key(config: Config, node: str) -> str:
    """The key of a node's state in the snapshot."""
    prefix = keys.prefix(config.cell, config.partitions, partition_of(node, config.partitions), "s")
    return keys.node(prefix, node)
