"""The commands ``key …`` and the doctor's check of signatures."""

from __future__ import annotations

import fcntl
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from msgspec import Raw, structs

from harness.waiting import PATIENCE_S, wait_until
from nodestate.agent.agent import Agent
from nodestate.agent.sources import FullState
from nodestate.auth.key_file import locked_directories, read_cell_keys, read_keys, write_keys
from nodestate.auth.keys import CellKeys, NodeKeys
from nodestate.auth.message_auth import OrderAuth, open_keyring
from nodestate.broker import KombuCourier, KombuSink
from nodestate.cli import main
from nodestate.config import Config
from nodestate.errors import BadEventError, ConfigError
from nodestate.findings.finding import FAIL, OK, WARN
from nodestate.findings.signature_checks import examine_signatures
from nodestate.model import NodeRecord, Report, fold
from nodestate.model.orders import Answer, End, bad_order, encode
from nodestate.ports import SystemClock
from tests.cell_keys import new_cell_keys, with_revoked, written

LIFE: Any = {"incarnation": 1_763_787_600, "generation": 1, "reported_at": 1.8e9}


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CELL", "CONFIG", "KEYS_FILE"):
        monkeypatch.delenv(f"NODESTATE_{name}", raising=False)
    monkeypatch.chdir(tmp_path)


def run(*words: str, code: int = 0) -> Result:
    answer = CliRunner().invoke(main, ["key", *words], env={"NODESTATE_KEYS_FILE": "cell.keys"})
    assert answer.exit_code == code, answer.output
    return answer


def ask(*words: str) -> Any:
    return json.loads(run(*words, "--json").stdout)


def cell_keys() -> CellKeys:
    return read_cell_keys("cell.keys", "cell1")


def test_a_cell_gets_a_secret_that_only_its_owner_reads_and_that_no_second_init_replaces() -> None:
    made = ask("init")
    keys = cell_keys()
    assert (made["cell"], [made["id"]]) == ("cell1", [one.id for one in keys.secrets])
    assert Path("cell.keys").stat().st_mode & 0o777 == 0o600
    assert "would be lost" in run("init", code=2).stderr
    assert cell_keys() == keys


def test_a_node_gets_its_two_keys_and_nothing_of_the_secrets() -> None:
    run("init")
    ask("node", "n1", "n2", "--out", "n1.keys")
    keys = read_keys("n1.keys", "cell1")
    assert isinstance(keys, NodeKeys)
    assert keys == cell_keys().node_keys(("n1", "n2"))
    assert Path("n1.keys").stat().st_mode & 0o777 == 0o600
    printed = run("node", "n1").stdout
    assert json.loads(printed)["nodes"].keys() == {"n1"}
    assert cell_keys().secrets[0].secret not in printed
    assert "cannot be the name" in run("node", "a b", code=2).stderr


def test_a_secret_is_replaced_in_two_steps() -> None:
    old = ask("init")["id"]
    assert "nodestate key rotate" in run("revoke", old, code=1).stderr
    assert ask("rotate")["old"] == old
    assert f"nodestate key revoke {old}" in run("rotate", code=1).stderr
    assert ask("status")["secrets"][0]["id"] == old
    run("revoke", old)
    status = ask("status")
    assert [one["id"] for one in status["revoked_secrets"]] == [old]
    assert len(status["secrets"]) == 1
    assert old in run("status").stdout
    secrets = [one.secret for one in cell_keys().secrets]
    assert not any(secret in run("status").stdout for secret in secrets)


def test_a_node_whose_keys_are_revoked_gets_keys_of_the_next_secret_only() -> None:
    old = ask("init")["id"]
    run("revoke", "n1")
    assert ask("status")["revoked_nodes"][0]["ids"] == [old]
    assert "nodestate key rotate" in run("node", "n1", code=1).stderr
    new = ask("rotate")["new"]
    assert [key["id"] for key in json.loads(run("node", "n1").stdout)["nodes"]["n1"]] == [new]
    run("node", "n1", "--out", "n1.keys")
    answer = CliRunner().invoke(main, ["key", "status", "--keys-file", "n1.keys", "--json"])
    assert json.loads(answer.stdout)["nodes"] == {"n1": [new]}


def test_a_file_keeps_its_owner_and_group_and_gets_no_rights_for_others(tmp_path: Path) -> None:
    path = Path(written(tmp_path, "cell.keys", new_cell_keys()))
    path.chmod(0o640)
    write_keys(str(path), new_cell_keys(), replace=True)
    assert path.stat().st_mode & 0o777 == 0o640
    assert [one.name for one in tmp_path.iterdir()] == ["cell.keys"]


def test_only_the_file_of_the_cell_gives_keys() -> None:
    run("init")
    run("node", "n1", "--out", "n1.keys")
    answer = CliRunner().invoke(main, ["key", "rotate", "--keys-file", "n1.keys"])
    assert (answer.exit_code, "nodes only" in answer.stderr) == (2, True)


def test_a_mistyped_id_of_a_secret_revokes_no_node() -> None:
    """A node of such a name would be taken as revoked, and the leaked secret would stay in force."""
    in_force = ask("init")["id"]
    other = "0a1b2c3d" if in_force != "0a1b2c3d" else "0a1b2c3e"
    refused = run("revoke", other, code=2).stderr
    assert f"the secret {other} is not in force; give one of {in_force}" in refused
    assert not cell_keys().revoked_nodes
    run("rotate")
    run("revoke", in_force)
    assert "is revoked already" in run("revoke", in_force, code=2).stderr
    run("revoke", other, "--node")
    assert list(cell_keys().revoked_nodes) == [other]


def test_a_fifo_or_a_directory_in_place_of_a_file_of_keys_is_refused_at_once() -> None:
    """A process would wait for ever for a program that writes into the FIFO."""
    Path("folder").mkdir()
    os.mkfifo("pipe", 0o600)
    operator = {"NODESTATE_OPERATOR_KEY_FILE": "operator.key"}
    for name, kind in (("pipe", "a FIFO"), ("folder", "a directory")):
        for step in ("status", "rotate", "init"):
            answer = CliRunner().invoke(main, ["key", step, "--keys-file", name])
            assert (answer.exit_code, f"{name} is {kind}" in answer.stderr) == (2, True), answer.output
        answer = CliRunner().invoke(main, ["key", "status"], env={**operator, "NODESTATE_CONTROL_KEYS_FILE": name})
        assert (answer.exit_code, f"control_keys_file {name} is {kind}" in answer.stderr) == (2, True), answer.output


def test_keys_replace_no_device_and_no_directory() -> None:
    run("init")
    os.mkfifo("pipe", 0o600)
    Path("link").symlink_to("pipe")  # as /dev/stdout
    for name in ("pipe", "link"):
        assert "which keys must not replace" in run("node", "n1", "--out", name, code=2).stderr
    assert Path("pipe").is_fifo()
    assert Path("link").is_symlink()


def test_a_missing_directory_of_keys_is_named_with_the_remedy() -> None:
    answer = CliRunner().invoke(main, ["key", "init", "--keys-file", "missing/cell.keys"])
    assert (answer.exit_code, "mkdir -p" in answer.stderr) == (2, True), answer.output


def test_commands_at_the_same_time_lose_no_revocation() -> None:
    run("init")
    names = [f"n{number}" for number in range(8)]
    started = threading.Barrier(len(names))

    def revoke(name: str) -> None:
        started.wait(PATIENCE_S)
        with locked_directories("cell.keys"):
            keys = cell_keys()
            time.sleep(0.001)  # a command that reads meanwhile would write its change over this one
            write_keys("cell.keys", keys.with_revoked_node(name, 1.0), replace=True)

    threads = [threading.Thread(target=revoke, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(cell_keys().revoked_nodes) == names


def test_each_command_that_changes_a_file_of_keys_waits_for_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODESTATE_OPERATOR_KEY_FILE", "operator.key")
    monkeypatch.setenv("NODESTATE_CONTROL_KEYS_FILE", "control.keys")
    monkeypatch.setattr("nodestate.cli.key.write_keys", waiting(write_keys))
    monkeypatch.setattr("nodestate.cli.operator_key.write_keys", waiting(write_keys))
    old = ask("init")["id"]
    run("rotate")
    run("revoke", old)
    old = ask("init", "--operator")["id"]
    run("rotate", "--operator")
    run("revoke", "--operator", old)


def waiting(write: Callable[..., None]) -> Callable[..., None]:
    """Write keys, after a look whether the command holds the lock of the directory."""

    def written_under_lock(path: str, *args: Any, **options: Any) -> None:
        handle = os.open(Path(path).resolve().parent, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(handle)
        write(path, *args, **options)

    return written_under_lock


def test_the_answer_to_an_unsigned_order_names_the_missing_settings_and_no_node_twice() -> None:
    order = End(id="order-1", node="n1", instance="a", reply_to="queue")
    with pytest.raises(BadEventError) as refused:
        OrderAuth("require").check_order(order, encode(order))
    refusal = bad_order(encode(order), refused.value)
    assert refusal is not None
    _, answer = refusal
    text = "the order has no signature; give the sender auth_orders and its keys_file"
    assert (answer.refused, answer.detail) == ("unsigned", text)


def test_a_process_that_needs_the_file_of_the_cell_is_not_told_of_the_file_of_a_node() -> None:
    for setting, of_nodes in (("auth_store", False), ("auth_orders", True)):
        with pytest.raises(ConfigError, match="nodestate key init") as missing:
            open_keyring(Config(), setting, "require")
        assert ("key node" in str(missing.value)) is of_nodes


# -- doctor ---------------------------------------------------------------------------------------


class OneNode:
    """A source of one node that never changes."""

    every_s = 60.0

    def __init__(self, name: str) -> None:
        self.name = name

    def poll(self, now: float) -> Sequence[Any]:
        del now
        return [FullState(self.name, {})]

    def close(self) -> None:
        """Do nothing."""


class ViewOf:
    """A view of some nodes, as far as the check uses it."""

    def __init__(self, names: Iterable[str]) -> None:
        self.nodes = self
        self._events = [Report(node=name, **LIFE, state=Raw(b"\x80")) for name in names]

    def records(self) -> Iterator[NodeRecord | None]:
        return (fold(None, event).record for event in self._events)


def examined(
    config: Config, agents: Mapping[str, Config], meanwhile: Callable[[], None] = lambda: None
) -> list[tuple[str, str]]:
    """The doctor's findings while agents of these nodes run, each with its settings, after a call of ``meanwhile``."""
    stopping = threading.Event()
    sinks = {name: KombuSink(one) for name, one in agents.items()}
    threads = []
    for name, sink in sinks.items():
        agent = Agent(agents[name], [OneNode(name)], sink, SystemClock(), random.Random(1), inbox=sink, incarnation=1)
        agent.step()
        threads.append(threading.Thread(target=agent.run, args=(stopping.is_set,)))
        threads[-1].start()
    try:
        meanwhile()
        found = examine_signatures(config, ViewOf(agents))  # type: ignore[arg-type]  # it needs no more of a view
    finally:
        stopping.set()
        for thread in threads:
            thread.join(PATIENCE_S)
        for sink in sinks.values():
            sink.close()
    return [(one.level, one.says) for one in found]


def test_doctor_counts_agents_that_do_not_sign_and_names_the_keys_of_the_others(cell: str, tmp_path: Path) -> None:
    """In every mode: so an operator sees whether the next mode would refuse honest events."""
    keys = new_cell_keys(cell)
    cell_file = written(tmp_path, "cell.keys", keys)
    unsigned = Config(broker="memory://", cell=cell, partitions=1)
    accepting = structs.replace(unsigned, auth_events="accept", keys_file=cell_file)
    signing = {
        name: structs.replace(accepting, keys_file=written(tmp_path, name, keys.node_keys((name,))))
        for name in ("n1", "n2")
    }
    assert examined(unsigned, {}) == []
    assert examined(accepting, signing) == [
        (OK, f"all 2 agents that answered sign their events, with keys of {keys.secrets[0].id} (2)")
    ]
    written(tmp_path, "cell.keys", with_revoked(keys, "n2"))
    agents = {**signing, "n3": unsigned}
    for mode, level in (("accept", WARN), ("require", FAIL)):
        (revoked, says), (missing, names) = examined(structs.replace(accepting, auth_events=mode), agents)
        assert (revoked, missing) == (FAIL, level)
        assert "1 of 3 agents sign wrongly, for example n2" in says
        assert "1 of 3 agents do not sign their events, for example n3" in names


def test_doctor_names_nodes_whose_agents_got_orders_without_a_valid_signature(cell: str, tmp_path: Path) -> None:
    """In mode accept they are as expected; before require, each is a scheduler that does not sign, or an intruder."""
    keys = new_cell_keys(cell)
    off = Config(broker="memory://", cell=cell, partitions=1)
    signing = structs.replace(off, auth_events="accept", keys_file=written(tmp_path, "cell.keys", keys))
    agent = structs.replace(signing, keys_file=written(tmp_path, "n1.keys", keys.node_keys(("n1",))))

    def order() -> None:
        courier, answers = KombuCourier(off), list[Answer]()
        orders = [End(id=f"order-{n}", node="n1", instance="none", reply_to=courier.reply_to) for n in (1, 2)]
        courier.send(orders, 60.0)
        wait_until(lambda: answers.extend(courier.answers(0.01)) or len(answers) == 2, "the agent does not answer")
        courier.close()

    count = "2 orders for 1 node, for example 2 for n1,"
    for mode, level, says in [
        ("accept", OK, f"agents accepted {count} without signatures since they started"),
        ("warn", WARN, f"agents accepted {count} without signatures since they started"),
        ("require", WARN, f"agents refused {count} because of their signatures since they started"),
    ]:
        agents = {"n1": structs.replace(agent, auth_orders=mode)}
        [_, *found] = examined(structs.replace(signing, auth_orders=mode), agents, order)
        assert found == [(level, says)]
    [_, *found] = examined(structs.replace(signing, auth_orders="require"), {"n1": agent})
    assert found == [(OK, "no agent that answered got an order without a valid signature")]
    unsigned = structs.replace(agent, auth_events="off", auth_orders="warn")  # any program could send such an answer
    [_, *found] = examined(structs.replace(signing, auth_orders="warn"), {"n1": unsigned}, order)
    assert found == [(OK, "no agent that answered got an order without a valid signature")]
