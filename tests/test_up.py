"""``nodestate up``, which ``make demo`` runs: a whole cell in one process, and the comparison at its end."""

from __future__ import annotations

import json
import signal
from collections import deque
from pathlib import Path

import pytest
from msgspec import structs

from harness.processes import COMMAND, ModuleProcess, start_module
from harness.waiting import PATIENCE_S
from nodestate import Reader
from nodestate.agent.sources.simulated import SimulatedFleet
from nodestate.broker import KombuCourier
from nodestate.cli.embedded_cell import EmbeddedCell
from nodestate.cli.up import quantiles
from nodestate.config import Config
from nodestate.model import Receipt
from nodestate.model.orders import Answer, Build


def start(folder: Path, *words: str) -> ModuleProcess:
    """Start the command in a process of its own, because of its memory:// broker and its signal handlers."""
    return start_module(COMMAND, ["up", *words], {"NODESTATE_STATE_DIR": str(folder)}, folder=folder)


def end_of(process: ModuleProcess) -> tuple[str, str]:
    """Wait for its end; returns its stdout and its stderr."""
    out, err = process.communicate(timeout=PATIENCE_S)
    return out.decode(), err.decode()


def test_all_designs_agree_with_each_other_and_with_the_agents(tmp_path: Path) -> None:
    """The claim of ``make demo``, at its size: every view has all nodes and this host, as their agents report them."""
    process = start(tmp_path, "--nodes", "1000", "--rate", "300", "--seconds", "9", "--json")
    out, err = end_of(process)

    assert process.returncode == 0, err
    result = json.loads(out)
    assert result["agree"] is True
    assert result["nodes"] == 1001
    assert result["published"] == result["applied"] > 1001 + 300
    assert result["dead_letters"] == {}
    assert result["designs"].keys() == {"journal", "snapshot"}
    for design in result["designs"].values():
        assert design["nodes"] == 1001
        assert design["missing"] == []
        assert design["incomplete"] == [], "all partitions are complete within the run"
        assert design["stale"] == 0
        assert 0 < design["refresh_p50_ms"] <= design["refresh_p95_ms"]
    pairs = [(pair.pop("left"), pair.pop("right")) for pair in result["pairs"]]
    assert pairs == [("journal", "snapshot"), ("agents", "journal"), ("agents", "snapshot")]
    assert not any(names for pair in result["pairs"] for names in pair.values())


def test_embedded_agents_carry_out_orders(cell: str) -> None:
    """A boot is a message from the scheduler to the node's agent, in an embedded cell as well."""
    config = Config(cell=cell, partitions=2, heartbeat_s=0.5, resync_jitter_s=0.1)
    whole, courier = EmbeddedCell(config, [SimulatedFleet(20, changes_per_s=0.0)]), KombuCourier(config)
    try:
        order = Build(id="1", node="compute-0011", instance="vm-1", resources={"VCPU": 1}, deadline=2e9)
        answers: list[Answer] = []
        while not answers or answers[0].refused == "no-agent":  # until the agents listen
            courier.send([structs.replace(order, reply_to=courier.reply_to)], 10.0)
            answers = courier.answers(10.0)
        [answer] = answers
        assert (answer.refused, answer.instance) == ("", "vm-1")
        seen = Receipt(answer.node, answer.version)
        view = Reader(config).read(max_age=60.0, at_least=seen, timeout=PATIENCE_S)
        assert view.nodes["compute-0011"].state["allocations"]["vm-1"] == {"resources": {"VCPU": 1}}
    finally:
        courier.close()
        whole.close()


def test_without_a_terminal_one_line_a_second_and_a_summary_are_printed(tmp_path: Path) -> None:
    process = start(tmp_path, "--nodes", "20", "--seconds", "3")
    out, err = end_of(process)

    assert process.returncode == 0, err
    lines = out.splitlines()
    samples = [line for line in lines if " events/s " in line]
    assert samples
    assert all("journal: " in sample and "snapshot: " in sample for sample in samples)
    assert lines[-1] == "agree: journal and snapshot are equal node by node, and equal to the reports of the agents"
    assert "\x1b" not in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_command_with_its_summary(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, "--nodes", "20")
    assert process.stdout is not None
    assert b" events/s " in process.stdout.readline()
    assert b" events/s " in process.stdout.readline()
    process.send_signal(number)
    out, err = end_of(process)

    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert out.splitlines()[-1].startswith("agree: ")


def test_single_design_is_compared_with_the_agents_only(tmp_path: Path) -> None:
    (tmp_path / "nodestate.toml").write_text('designs = ["journal"]\nread_design = "journal"\n')
    words = ["--log-level", "info", "--log-format", "json"]
    process = start(tmp_path, "--nodes", "20", "--seconds", "2", "--json", *words)
    out, err = end_of(process)

    assert process.returncode == 0, err
    result = json.loads(out)
    assert [(pair["left"], pair["right"]) for pair in result["pairs"]] == [("agents", "journal")]
    assert result["designs"]["journal"]["nodes"] == 21
    assert "partition taken over" in {json.loads(line)["event"] for line in err.splitlines()}


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [([], (0.0, 0.0)), ([3.0], (3.0, 3.0)), ([1.0, 2.0], (1.5, 1.95)), ([float(n) for n in range(21)], (10.0, 19.0))],
)
def test_quantiles_of_few_refreshes(seconds: list[float], expected: tuple[float, float]) -> None:
    assert quantiles(deque(seconds)) == pytest.approx(expected)
