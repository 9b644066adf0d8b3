"""A cell of real processes that requires signed control records, while a program writes others into its memcached."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from harness.commands import run_command
from harness.members import Member, Service
from harness.servers import MemcachedServer, RabbitServer
from harness.waiting import wait_until
from nodestate.config import load
from nodestate.designs.connections import open_stores
from nodestate.designs.control import CONTROL, Control
from nodestate.designs.inspection import read_copies
from nodestate.designs.reader import Reader
from nodestate.designs.stored_design import StoredDesign
from nodestate.ports import Put, SystemClock, Write
from nodestate.store import keys
from tests.operator_keys import new_pairs
from tests.test_control_auth import signed_by

pytestmark = [pytest.mark.service, pytest.mark.thorough]
NODES_COUNT = 20
MAX_AGE_S = 10.0


def test_control_records_of_a_foreign_program_are_refused_replaced_and_named(
    cell: str, tmp_path: Path, rabbit: RabbitServer, memcached: MemcachedServer
) -> None:
    settings = {
        "NODESTATE_BROKER": rabbit.url,
        "NODESTATE_STORE": memcached.url,
        "NODESTATE_CELL": cell,
        "NODESTATE_STATE_DIR": str(tmp_path),
        "NODESTATE_HEARTBEAT_S": "1",
        "NODESTATE_AUTH_CONTROL": "require",
        "NODESTATE_CONTROL_KEYS_FILE": str(tmp_path / "control.keys"),
    }
    operator = {**settings, "NODESTATE_OPERATOR_KEY_FILE": str(tmp_path / "operator.key")}
    config = load(environ=settings)
    run_command(operator, "key", "init", "--operator")
    with ExitStack() as processes:
        members = [Member(tmp_path, number, 2, settings) for number in (1, 2)]
        agent = Service(tmp_path, "agent", ["agent", "--source", "simulated", "--nodes", f"{NODES_COUNT}"], settings)
        for service in (*members, agent):
            processes.callback(service.kill)
            service.start()
        members[0].wait_for_log("operation is failing", operation="control record")
        run_command(operator, "design", "sign")
        reader = processes.enter_context(Reader(config))

        def is_whole() -> bool:
            view = reader.read(max_age=MAX_AGE_S, on_stale="flag")
            return len(view.nodes) == NODES_COUNT and not view.stale and not view.incomplete

        wait_until(is_whole, "the cell has not all nodes")
        stores = open_stores(config, SystemClock(), ["journal"])
        processes.callback(stores.close)
        [store] = stores.everywhere
        key = keys.control(cell)
        before = store.fetch([key])[key]
        known = CONTROL.unpack(before.value)
        design = StoredDesign("journal", 3)
        forged = Control(known.version + 100, (design,), design, None, known.said_by)
        for number, value in enumerate(
            (CONTROL.pack(forged), signed_by(tmp_path, forged, new_pairs(cell), key), CONTROL.pack(forged)), 1
        ):
            [item] = store.fetch([key]).values()
            store.write([Write(Put.CAS, key, value, item.cas)])
            assert is_whole(), number
            wait_until(lambda: store.fetch([key])[key].value == before.value, "no consumer replaces the record")
        store.write([Write(Put.DELETE, key)])
        wait_until(lambda: key in store.fetch([key]), "no consumer writes the lost record again")
        assert store.fetch([key])[key].value == before.value
        assert is_whole()
        assert (reader.design, [copy.control for copy in read_copies(config)]) == ("snapshot", [known])

        run_command(operator, "design", "cutover", "journal", "--timeout", "60")
        wait_until(lambda: is_whole() and reader.design == "journal", "the reader does not follow the operator")
        agent.stop()
        counters = [member.stop() for member in members]
    # Either consumer may have replaced a value, and each counts a value once.
    assert 2 <= sum(one["refused_controls"] for one in counters) <= 4
    assert {one["unsigned_controls"] for one in counters} == {0}
