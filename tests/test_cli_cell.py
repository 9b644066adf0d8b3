"""The commands as an operator runs them: separate processes over a real RabbitMQ and a real memcached."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from harness.processes import COMMAND, ModuleProcess, start_module
from harness.profile import by_profile
from harness.servers import MemcachedServer, RabbitServer
from harness.waiting import PATIENCE_S, wait_until
from nodestate.broker import KombuCourier, KombuSink
from nodestate.broker.connector import open_session
from nodestate.config import Config, load
from nodestate.designs.reader import Reader
from nodestate.model import event_from_json
from nodestate.model.orders import Answer, Build, End, Order
from nodestate.model.partitioning import bucket_of

pytestmark = [pytest.mark.service]

TRACE = Path(os.environ.get("NODESTATE_TRACE", Path(__file__).parent.parent.parent / "shared/data/openb.jsonl.gz"))
DESIGNS = ("journal", "snapshot")

State = dict[str, Any]


class ProcessCell:
    """Settings of a cell, and commands as separate processes that end with the test."""

    def __init__(self, name: str, broker: str, store: str, folder: Path, processes: ExitStack) -> None:
        self._env = {
            "NODESTATE_BROKER": broker,
            "NODESTATE_STORE": store,
            "NODESTATE_CELL": name,
            "NODESTATE_STATE_DIR": str(folder),
            "NODESTATE_HEARTBEAT_S": "1",
            "NODESTATE_RESYNC_JITTER_S": "0.5",
            "NODESTATE_STANDBY_S": "10",
        }
        self._folder = folder
        self._processes = processes

    def start(self, *words: str, stdin: int = subprocess.DEVNULL) -> ModuleProcess:
        """Start a command that keeps running; it is killed at the end of the test."""
        log = self._processes.enter_context((self._folder / f"{words[0]}.{time.monotonic_ns()}.log").open("wb"))
        process = start_module(COMMAND, words, self._env, folder=self._folder, stdin=stdin, stderr=log)
        self._processes.enter_context(process)
        self._processes.callback(process.kill)
        return process

    def run(self, *words: str, stdin: bytes = b"", code: int | None = 0) -> subprocess.CompletedProcess[bytes]:
        """Run a command that ends by itself, and check its exit code; None: any."""
        with start_module(COMMAND, words, self._env, folder=self._folder, stdin=subprocess.PIPE) as process:
            try:
                out, err = process.communicate(stdin, PATIENCE_S)
            finally:
                process.kill()
        told = f"{words} gave {process.returncode}\n{out[-2000:]!r}\n{err[-2000:]!r}"
        assert code is None or process.returncode == code, told
        return subprocess.CompletedProcess(words, process.returncode or 0, out, err)

    def ask(self, *words: str, stdin: bytes = b"", code: int = 0) -> Any:
        """Run a command with ``--json`` and return its answer."""
        return json.loads(self.run(*words, "--json", stdin=stdin, code=code).stdout)

    def states(self, design: str) -> dict[str, tuple[int, State]]:
        """Return the generation and state of each node in a view, read in this process: tests poll it."""
        with Reader(load(environ=self._env), design=design) as reader:
            view = reader.read(max_age=5.0, on_stale="flag")
        records = [view.nodes.record(name) for name in view.nodes]
        return {record.name: (record.version.generation, record.state()) for record in records if record is not None}

    def printed_states(self, design: str) -> dict[str, tuple[int, State]]:
        """Return the same as the command ``view`` prints it."""
        nodes = self.ask("view", "--design", design, "--max-age", "5", "--on-stale", "flag")["nodes"]
        return {name: (node["generation"], node["state"]) for name, node in nodes.items()}


@pytest.fixture
def cell_run(cell: str, rabbit: RabbitServer, memcached: MemcachedServer, tmp_path: Path) -> Iterator[ProcessCell]:
    with ExitStack() as processes:
        yield ProcessCell(cell, rabbit.url, memcached.url, tmp_path, processes)


def eventually(condition: Callable[[], bool]) -> None:
    """Poll a condition until it is true; fail after a deadline. The claim is the end state, not the time until then."""
    wait_until(condition, "what the test waits for did not happen", poll_s=0.2)


def end(process: ModuleProcess) -> Any:
    """Send SIGTERM and return the JSON that the process prints at its end."""
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    return json.loads(out)


# -- an independent fold: the pseudo code of RFC 7396, events in the order of the file, no code of nodestate ------


def merge_patch(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge_patch(result.get(name), value)
    return result


def fold_by_hand(lines: list[bytes]) -> dict[str, tuple[int, State]]:
    nodes: dict[str, tuple[int, State]] = {}
    for line in lines:
        event = json.loads(line)
        name, generation = event["node"], event["generation"]
        if event["kind"] == "report":
            nodes[name] = generation, event["state"]
        else:
            assert event["kind"] == "change"
            assert generation == nodes[name][0] + 1
            nodes[name] = generation, merge_patch(nodes[name][1], event["patch"])
    return nodes


@pytest.fixture(scope="module")
def trace() -> list[bytes]:
    """Events as JSON lines: a recorded trace in thorough runs if there is one, else a generated trace."""
    if by_profile(fast=False, thorough=TRACE.is_file()):
        return gzip.decompress(TRACE.read_bytes()).splitlines(keepends=True)
    return generated_trace(nodes=300, changes=3_000)


def generated_trace(nodes: int, changes: int) -> list[bytes]:
    """Reports of all nodes and random changes of them, in the form of ``nodestate publish``."""
    rng = random.Random(11)
    generations = {f"compute-{number:04}": 0 for number in range(nodes)}
    lines = []
    for name in [*generations, *rng.choices(list(generations), k=changes)]:
        generations[name] += 1
        event = {"v": 1, "node": name, "incarnation": 1_700_000_000, "generation": generations[name]}
        usage = {"VCPU": rng.randrange(64), "MEMORY_MB": rng.randrange(262_144)}
        if generations[name] == 1:
            content: State = {"kind": "report", "state": {"usage": usage, "zone": f"az{rng.randrange(3)}"}}
        else:
            vm = f"vm-{rng.randrange(4)}"
            allocation = rng.choice([None, {"resources": {"VCPU": rng.randrange(1, 8)}, "group": "web"}])
            content = {"kind": "change", "patch": {"usage": usage, "allocations": {vm: allocation}}}
        lines.append(json.dumps({**event, "reported_at": 1.7e9, **content}).encode() + b"\n")
    return lines


@pytest.mark.thorough
def test_view_as_a_stream_of_msgpack_is_published_again(cell_run: ProcessCell, trace: list[bytes]) -> None:
    """A program without JSON copies a cell; consumers drop the reports, which they have already."""
    cell_run.start("consume", "--design", ",".join(DESIGNS), "--member", "1/1", "--json")
    cell_run.ask("publish", "-", stdin=b"".join(trace))
    expected = fold_by_hand(trace)
    eventually(lambda: cell_run.states("journal") == expected)
    stream = cell_run.run("view", "--design", "journal", "--format", "msgpack").stdout
    published = cell_run.ask("publish", "--format", "msgpack", "-", stdin=stream)
    assert (published["published"], published["refused"]) == (len(expected), 0)
    cut = cell_run.ask("publish", "--format", "msgpack", "-", stdin=stream[:-1], code=1)
    assert (cut["published"], cut["refused"]) == (len(expected) - 1, 1)
    assert cell_run.states("journal") == expected


def test_trace_through_two_consumers_equals_an_independent_fold(cell_run: ProcessCell, trace: list[bytes]) -> None:
    members = [cell_run.start("consume", "--design", ",".join(DESIGNS), "--member", f"{n}/2", "--json") for n in (1, 2)]

    published = cell_run.ask("publish", "-", stdin=b"".join(trace))
    assert (published["published"], published["refused"]) == (len(trace), 0)

    expected = fold_by_hand(trace)
    for design in DESIGNS:
        eventually(lambda design=design: cell_run.states(design) == expected)  # type: ignore[misc]
        assert cell_run.printed_states(design) == expected

    checked = cell_run.ask("check")
    assert checked["agree"] is True
    assert not any(names for pair in checked["pairs"] for key, names in pair.items() if key not in ("left", "right"))
    assert {design: one["nodes"] for design, one in checked["designs"].items()} == dict.fromkeys(DESIGNS, len(expected))
    assert cell_run.ask("doctor")["ok"] is True

    for look in cell_run.ask("top", "--once")["designs"].values():
        owners = [partition["owner"].partition("@")[0] for partition in look["partitions"]]
        assert owners == ["member-1", "member-2"] * 4

    counts = [end(member) for member in members]
    assert sum(count["by_outcome"]["applied"] for count in counts) == len(trace)


def test_publish_keeps_the_order_of_each_node_when_the_broker_dies(
    cell_run: ProcessCell, trace: list[bytes], rabbit: RabbitServer
) -> None:
    """Events of a node in the wrong order would be gaps, and no agent exists that could report these nodes again."""
    publishing = cell_run.start("publish", "-", "--json", "--timeout", "120", stdin=subprocess.PIPE)
    assert publishing.stdin is not None
    half = len(trace) // 2
    publishing.stdin.write(b"".join(trace[:half]))
    publishing.stdin.flush()
    # In a thread: a publisher that waits for its broker does not read, and the pipe is too small for the rest.
    with ThreadPoolExecutor(1) as feeding:
        rabbit.kill()
        try:
            fed = feeding.submit(publishing.communicate, b"".join(trace[half:]), PATIENCE_S)
            time.sleep(1.0)
        finally:
            rabbit.start()
        out, _ = fed.result()
    assert publishing.returncode == 0
    assert json.loads(out)["published"] == len(trace)

    member = cell_run.start("consume", "--json")
    expected = fold_by_hand(trace)
    for design in DESIGNS:
        eventually(lambda design=design: cell_run.states(design) == expected)  # type: ignore[misc]

    counts = end(member)
    assert counts["by_outcome"]["applied"] == len(trace)
    assert counts["by_outcome"]["gap"] == 0
    assert counts["dead_letters"] == {}


GOOD = {"v": 1, "kind": "report", "node": "good", "incarnation": 1_700_000_000, "generation": 1, "reported_at": 1.7e9}
BAD = [
    (b"\xd9 cut off", "undecodable"),
    (b"not json", "wrong-type"),  # its first byte is a number in msgpack
    (b'{"v":1,"kind":"report"}', "wrong-type"),
    (json.dumps({**GOOD, "state": {}, "v": 9}).encode(), "unknown-version"),
    (json.dumps({**GOOD, "state": {}, "node": "two words"}).encode(), "bad-name"),
    (json.dumps({**GOOD, "state": {"usage": {"VCPU": -1}}}).encode(), "wrong-type"),
    (json.dumps({**GOOD, "state": {}, "reported_at": 12.0}).encode(), "clock"),
]


def test_invalid_events_go_to_the_dead_letter_queue_and_stop_nothing(cell_run: ProcessCell) -> None:
    lines = [line for line, _ in BAD] + [json.dumps({**GOOD, "state": {"zone": "az7"}}).encode()]
    member = cell_run.start("consume", "--json")
    # Dead letters are sent at least once: messages that wait when a consumer starts may be refused several times.
    cell_run.ask("view", "--on-stale", "refuse", "--max-age", "4", "--timeout", "30")

    published = cell_run.ask("publish", "--raw", "-", stdin=b"\n".join(lines))
    assert published["published"] == len(lines)

    eventually(lambda: cell_run.states("journal") == {"good": (1, {"zone": "az7"})})
    wanted = {reason: sum(1 for _, one in BAD if one == reason) for _, reason in BAD}

    def named() -> bool:
        [finding] = [one for one in cell_run.ask("doctor")["findings"] if one["about"] == "dead letters"]
        return finding["level"] == "WARN" and all(
            f"{count} {reason}" in finding["says"] for reason, count in wanted.items()
        )

    eventually(named)
    assert end(member)["dead_letters"] == wanted


def test_agents_answer_resyncs_and_leave_the_view(cell_run: ProcessCell) -> None:
    member = cell_run.start("consume", "--json")
    agent = cell_run.start(
        "agent", "--source", "simulated", "--nodes", "30", "--rate", "50", "--seed", "7", "--leave", "--json"
    )
    host = cell_run.start("agent", "--source", "host", "--name", "this-host", "--zone", "here", "--json")
    eventually(lambda: len(cell_run.states("snapshot")) == 31)
    assert cell_run.states("journal")["this-host"][1]["zone"] == "here"

    # New agents may not have their control queues yet, so the census is repeated, as an operator would do.
    eventually(lambda: cell_run.ask("check", "--agents", "1")["agents"] == {"answered": 31, "silent": []})

    before = cell_run.states("snapshot")["this-host"][0]
    cell_run.run("resync", "--node", "this-host")
    eventually(lambda: cell_run.states("snapshot")["this-host"][0] > before)
    (cell_run._folder / "short.toml").write_text("broker_timeout_s = 0.5\n", encoding="utf-8")
    refused = cell_run.run("resync", "--node", "nobody", "--config", "short.toml", code=1)
    assert b"no agent answered for nobody" in refused.stderr

    looks = cell_run.ask("top", "--once")["designs"]
    for look in looks.values():
        assert look["nodes"] == 31
        assert sum(partition["nodes"] for partition in look["partitions"]) == 31
        assert {partition["owner"].partition("@")[0] for partition in look["partitions"]} == {"member-1"}

    told = cell_run.run("view", "--node", "this-host").stdout.decode()
    assert "this-host: version" in told
    assert cell_run.run("view", "--node", "nobody", code=1).stderr.startswith(b"nodestate: no node 'nobody'")
    assert "30 nodes" not in told

    assert end(agent)["nodes"] == 30
    # A node that leaves with allocations stays in views, down, because its instances may still run.
    eventually(
        lambda: all(
            {name for name, (_, state) in cell_run.states(design).items() if state["status"] != "down"} == {"this-host"}
            for design in ("journal", "snapshot")
        )
    )
    assert end(host)["nodes"] == 1
    assert end(member)["dead_letters"] == {}


def test_an_agent_carries_out_orders_and_knows_them_after_kill_9(
    cell: str, cell_run: ProcessCell, rabbit: RabbitServer
) -> None:
    """I10 with real servers: after kill -9, the agent's first report has the instance that it had confirmed, with its
    hints.
    """
    agent_words = ("agent", "--source", "simulated", "--nodes", "20", "--rate", "0", "--json")
    hints = {"group_policy": "anti-affinity", "max_per_node": 2}
    courier = KombuCourier(Config(broker=rabbit.url, cell=cell))

    def give(order: Order, wanted: str = "") -> Answer:
        """Repeat an order until the answer is as wanted: the broker learns of new and dead agents a little later."""
        deadline, mine = time.monotonic() + PATIENCE_S, set()
        while True:
            assert time.monotonic() < deadline
            mine.add(name := uuid.uuid4().hex)
            courier.send([structs.replace(order, id=name, reply_to=courier.reply_to)], PATIENCE_S)
            for answer in courier.answers(1.0):
                if answer.id in mine and answer.refused == wanted:
                    return answer
            time.sleep(0.1)

    def build(instance: str, vcpu: int) -> Build:
        resources = {"VCPU": vcpu, "MEMORY_MB": 1_024}
        return Build(
            id=f"build {instance}",
            node="compute-0007",
            instance=instance,
            resources=resources,
            group="web",
            hints=hints,
            deadline=2e9,
        )

    agent = cell_run.start(*agent_words)
    first = give(build("vm-1", 2))
    assert give(build("vm-2", 10_000), "no-room").version.generation == first.generation + 1
    agent.kill()
    agent.wait()
    give(End(id="who is there", node="compute-0007", instance="none"), "no-agent")
    agent = cell_run.start(*agent_words)
    again = give(build("vm-1", 2))
    assert again.incarnation > first.incarnation
    assert again.generation == 1
    cell_run.start("consume", "--partitions", "8", "--design", "snapshot")
    eventually(lambda: len(cell_run.states("snapshot")) == 20)
    _, state = cell_run.states("snapshot")["compute-0007"]
    assert state["allocations"]["vm-1"] == {
        "resources": {"VCPU": 2, "MEMORY_MB": 1_024},
        "group": "web",
        "hints": hints,
    }
    give(End(id="end", node="compute-0007", instance="vm-1"))
    courier.close()
    stats = end(agent)
    assert (stats["admitted"], stats["refused"], stats["ended"]) == (0, 0, 1)


@pytest.mark.thorough
def test_a_cell_that_requires_signatures_runs_and_refuses_all_that_have_no_key(cell_run: ProcessCell) -> None:
    """Consumer, agent, scheduler and doctor with keys; an intruder without them. Parts: tests/test_auth.py."""
    honest, intruder = cell_run._env, dict(cell_run._env)
    honest |= {"NODESTATE_AUTH_EVENTS": "require", "NODESTATE_AUTH_ORDERS": "require", "NODESTATE_KEYS_FILE": "keys"}
    cell_run.run("key", "init")
    cell_run.run("key", "node", "n-0000", "n-0001", "--out", "node.keys")
    member = cell_run.start("consume", "--json")
    honest["NODESTATE_KEYS_FILE"] = "node.keys"
    agent = cell_run.start("agent", "--source", "simulated", "--nodes", "2", "--rate", "5", "--prefix", "n-", "--json")
    honest["NODESTATE_KEYS_FILE"] = "keys"
    eventually(lambda: set(cell_run.states("snapshot")) == {"n-0000", "n-0001"})
    cell_run.run("boot", "--resources", "VCPU=1")
    cell_run._env = intruder
    cell_run.run("publish", "-", stdin=json.dumps({**GOOD, "state": {}}).encode())
    cell_run.run("boot", "--resources", "VCPU=1", code=1)
    cell_run._env = honest
    findings = cell_run.ask("doctor")["findings"]
    assert [one["level"] for one in findings if one["about"] == "signatures"] == ["OK"]
    assert ["1 unsigned" in one["says"] for one in findings if one["about"] == "dead letters"] == [True]
    assert set(cell_run.states("snapshot")) == {"n-0000", "n-0001"}
    counts = end(agent)
    assert (counts["admitted"], counts["unsigned_orders"]) == (1, 0)
    assert counts["refused_messages"] > 0
    assert end(member)["dead_letters"] == {"unsigned": 1}


def test_doctor_reports_events_in_queues_without_a_reader(
    cell_run: ProcessCell, cell: str, rabbit: RabbitServer
) -> None:
    """The first agent after a reinstallation of the broker creates queues from its own settings."""
    member = cell_run.start("consume", "--json")
    cell_run.ask("view", "--on-stale", "refuse", "--max-age", "4", "--timeout", "30")
    other = Config(broker=rabbit.url, cell=cell, partitions=3)
    event = event_from_json(json.dumps({**GOOD, "state": {}}).encode(), time.time())
    sink = KombuSink(other, control=False)
    open_session(other, "test", layout=True).close()
    sink.publish(bucket_of("good"), event, lambda _ok: None)  # at once: consumers unbind the queues within seconds
    sink.flush(PATIENCE_S)
    sink.close()
    eventually(lambda: set(cell_run.states("journal")) == {"good"})
    findings = cell_run.ask("doctor")["findings"]
    [says] = [
        one["says"] for one in findings if (one["about"], one["level"]) == ("queues", "WARN") and "3" in one["says"]
    ]
    assert "messages wait in the queues of 3 partitions, a number that the control record does not name" in says
    end(member)


def test_stale_view_is_refused_and_doctor_reports_the_cause(cell_run: ProcessCell) -> None:
    member = cell_run.start("consume", "--json")
    fresh = ("view", "--on-stale", "refuse", "--max-age", "4", "--timeout", "30")
    cell_run.ask(*fresh)
    end(member)

    refusal = ("view", "--on-stale", "refuse", "--max-age", "2", "--json")

    eventually(lambda: cell_run.run(*refusal, code=None).returncode == 1)
    error = json.loads(cell_run.run(*refusal, code=1).stderr)
    assert error["kind"] == "stale-view"
    assert error["age"] > error["max_age"] == 2.0

    def fails() -> set[str]:
        done = cell_run.run("doctor", "--json", code=1)
        return {one["about"] for one in json.loads(done.stdout)["findings"] if one["level"] == "FAIL"}

    eventually(lambda: fails() == {"queues", "journal", "snapshot"})
