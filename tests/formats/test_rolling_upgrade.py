"""Two versions in one cell: processes of commit 8c7aaef and of today write and read for each other.

The older commit comes from the repository's history, and runs as a process of its own over the doubles of server and
broker. Both sides run the same script, ``exchange.py``.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, Final

import pytest

from harness.servers import RabbitServer
from harness.waiting import PATIENCE_S
from nodestate.broker import Topology
from nodestate.broker.connector import open_session
from nodestate.broker.rabbitmq.session import RabbitSession
from nodestate.config import Config
from nodestate.model import fold, parse_event
from tests.formats import exchange, order_exchange

OLD: Final = "8c7aaef"
ROOT: Final = Path(__file__).parents[2]
LATER_LIFE: Final = 1


@pytest.fixture(scope="module")
def old_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the package of the older commit."""
    git = shutil.which("git")
    if git is None:
        pytest.skip(f"git is not installed, so commit {OLD} cannot be read")
    archive = subprocess.run(  # noqa: S603 - constant arguments
        [git, "archive", OLD, "nodestate"], cwd=ROOT, capture_output=True, check=False
    )
    if archive.returncode != 0:
        pytest.skip(f"the repository has no commit {OLD}: {archive.stderr.decode(errors='replace').strip()}")
    directory = tmp_path_factory.mktemp("older")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(directory, filter="data")
    return directory


def run_old(package: Path, *calls: tuple[Any, ...]) -> list[Any]:
    """Run calls of ``exchange.py`` in a process of the older commit."""
    result = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, str(Path(exchange.__file__))],
        input=json.dumps(calls).encode(),
        env={**os.environ, "PYTHONPATH": str(package)},
        cwd=package,
        capture_output=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode(errors="replace")
    answers: list[Any] = json.loads(result.stdout)
    return answers


def expected(*events: exchange.Events) -> dict[str, Any]:
    """The views of a cell that consumed these events, one list after the other."""
    records: dict[str, Any] = {}
    for _, body in [event for part in events for event in part]:
        event = parse_event(bytes.fromhex(body))
        records[event.node] = fold(records.get(event.node), event).record
    live = {name: record for name, record in sorted(records.items()) if record.live}
    nodes = {name: [*record.version, record.state()] for name, record in live.items()}
    return {design: {"nodes": nodes, "incomplete": []} for design in exchange.DESIGNS}


def test_consumers_and_readers_of_8c7aaef_work_with_new_writers_and_the_other_way_round(old_package: Path) -> None:
    """During a rolling upgrade each process meets values and messages of both versions."""
    events, later = exchange.author(), exchange.author(LATER_LIFE)
    items, refused = exchange.consume([], events)
    assert refused == {}
    assert exchange.read(items) == expected(events)
    messages = exchange.messages()

    old_events, old_consumed, view_of_new_items, old_takeover, view, old_messages, understood = run_old(
        old_package,
        ("author",),
        ("consume", [], events),
        ("read", items),
        ("consume", items, later),
        ("read", items),
        ("messages",),
        ("understood", messages),
    )
    assert old_consumed[1] == {}, "the old consumer refuses no event of a new agent"
    assert view_of_new_items == view == expected(events), "the old reader reads what a new consumer stored"
    assert old_takeover[1] == {}
    assert understood == messages, "old schedulers and agents understand new messages"

    assert exchange.understood(old_messages) == old_messages
    assert exchange.read(old_consumed[0]) == expected(events), "the new reader reads what an old consumer stored"
    assert exchange.read(old_takeover[0]) == expected(events, later), "the old consumer took over from a new one"
    consumed, refused = exchange.consume([], old_events)
    assert refused == {}, "the new consumer refuses no event of an old agent"
    assert exchange.read(consumed) == expected(old_events)
    taken_over, refused = exchange.consume(old_consumed[0], later)
    assert refused == {}
    assert exchange.read(taken_over) == expected(events, later), "the new consumer took over from an old one"


@pytest.mark.service
@pytest.mark.thorough
@pytest.mark.parametrize("old_role", ["agent", "scheduler"])
def test_agents_and_schedulers_of_both_versions_exchange_orders_and_answers(
    rabbit: RabbitServer, cell: str, old_package: Path, old_role: str
) -> None:
    """In whatever order processes are upgraded, orders reach their agents, and answers their schedulers."""
    config = Config(broker=rabbit.url, cell=cell, partitions=1)
    session = open_session(config, "test", declare=False)
    assert isinstance(session, RabbitSession)
    # An upgraded cell has the dead-letter queue of the earlier version, which has no bound.
    session.connection.control.queue_declare(Topology.of(config).dead, durable=True, auto_delete=False)
    session.close()
    script = str(Path(order_exchange.__file__))
    processes = [
        subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, script, role, rabbit.url, cell, "node-1"],
            env={**os.environ, "PYTHONPATH": str(old_package if role == old_role else ROOT)},
            cwd=old_package if role == old_role else ROOT,
            stdout=subprocess.PIPE,
        )
        for role in ("agent", "scheduler")
    ]
    try:
        written = [process.communicate(timeout=PATIENCE_S)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [json.loads(ids) for ids in written] == [[f"o-{number}" for number in range(order_exchange.COUNT)]] * 2


@pytest.mark.thorough
def test_ownership_goes_to_and_fro_between_the_versions(old_package: Path) -> None:
    """A roll-back is a second upgrade: each takeover finds items of the other version, over ten lives of agents."""
    items: exchange.Items = []
    lives: list[exchange.Events] = []
    for life in range(10):
        if life % 2:
            [events] = run_old(old_package, ("author", life))
            items, refused = exchange.consume(items, events)
            [seen] = run_old(old_package, ("read", items))
        else:
            events = exchange.author(life)
            [(items, refused)] = run_old(old_package, ("consume", items, events))
            seen = exchange.read(items)
        lives.append(events)
        assert refused == {}
        assert seen == expected(*lives)
