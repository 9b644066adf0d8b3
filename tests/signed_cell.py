"""A running cell whose processes get keys and modes one by one: consumers and agents as processes, with their load.

Schedulers and readers are threads of the test. They boot and read all the time, within the bounds that the commands use
by default, and count the faults that they see.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import kombu

from harness.commands import run_command, start_command
from harness.members import Member, Service
from harness.waiting import PATIENCE_S, wait_until
from nodestate.auth.followed_file import REREAD_S
from nodestate.broker import KombuCourier
from nodestate.broker.diagnostics import DeadLetter, queue_depths, read_dead_letters
from nodestate.broker.topology import Topology
from nodestate.cli.scheduling import MAX_AGE_S
from nodestate.config import Config, load
from nodestate.designs.reader import Reader
from nodestate.errors import NodestateError
from nodestate.scheduling import Booted, Request, Scheduler
from nodestate.scheduling.fleet_refresh import HEARTBEATS_COUNT
from nodestate.view.view import View
from tests.rollout_page import commands_of, settings_of, steps_of

HEARTBEAT_S: Final = 5.0
NODE_MAX_AGE_S: Final = HEARTBEATS_COUNT * HEARTBEAT_S + MAX_AGE_S
READ_EVERY_S: Final = 0.05
KEPT_INSTANCES_COUNT: Final = 20
AGENTS_COUNT: Final = 3
NODES_COUNT: Final = 150
"""Nodes of each agent."""
PAGE_CELL_FILE: Final = "/etc/nodestate/cell.keys"
PAGE_NODE, PAGE_REVOKED, PAGE_ID = "compute-0001", "compute-0007", "0a1b2c3d"
"""Names that stand on the page for a node, for a revoked node and for the id of the old secret."""


class ServiceThread:
    """A part of the cell that runs in a thread of the test. ``restart`` gives it other settings."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, config: Config) -> None:
        """Begin another life with these settings."""
        self._ending.clear()
        self._thread = threading.Thread(target=self.run, args=(config,), name=self.name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the present piece of work."""
        if self._thread is not None:
            self._ending.set()
            self._thread.join(PATIENCE_S)
            assert not self._thread.is_alive(), f"{self.name} hangs"

    def restart(self, config: Config) -> None:
        """End, and begin another life."""
        self.stop()
        self.start(config)

    def run(self, config: Config) -> None:
        """Work until ``stop`` is called."""
        raise NotImplementedError  # a subclass's


class ReadingThread(ServiceThread):
    """Reads every ``READ_EVERY_S`` seconds, and counts views in which something is stale or incomplete."""

    def __init__(self, design: str) -> None:
        super().__init__(f"reader of {design}")
        self.views = 0
        self.stale: list[str] = []
        """One text for each view with stale or incomplete nodes."""
        self.largest_age_s = 0.0
        self.ignored: frozenset[str] = frozenset()
        """Nodes that may be stale: their keys are revoked."""
        self._design = design

    def run(self, config: Config) -> None:
        """Read until ``stop`` is called."""
        with Reader(config, design=self._design) as reader:
            while not self._ending.wait(READ_EVERY_S):
                view = reader.read(max_age=MAX_AGE_S, node_max_age=NODE_MAX_AGE_S, on_stale="flag")
                self.views += 1
                self.largest_age_s = max(self.largest_age_s, view.age)
                missing = (view.stale | view.incomplete) - self.ignored
                if missing:
                    self.stale.append(self._described(view, sorted(missing)[:3]))

    def _described(self, view: View, names: Sequence[str]) -> str:
        """Return which nodes a view doubts, and why."""
        records = {name: view.nodes.record(name) for name in names}
        doubts = [
            f"{name} is {'incomplete' if name in view.incomplete else 'stale'}"
            + (f" at {record.version}, wanted {record.wanted}" if record is not None else "")
            for name, record in records.items()
        ]
        return f"view {self.views} at {time.time():.1f}, {view.age:.1f} s old: {'; '.join(doubts)}"


class SchedulingThread(ServiceThread):
    """A scheduler that boots and terminates instances all the time."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.counts = Counter[str]()
        """Outcomes of boots, refusals by reason, and answers that were refused."""
        self.reply_to = ""
        """The queue for its answers."""
        self._requests = 0

    def run(self, config: Config) -> None:
        """Boot until ``stop`` is called."""
        courier = KombuCourier(config)
        self.reply_to = courier.reply_to
        with Scheduler(
            config, name=self.name, max_age=MAX_AGE_S, node_max_age=NODE_MAX_AGE_S, courier=courier
        ) as scheduler:
            kept: list[tuple[str, str]] = []
            while not self._ending.is_set():
                try:
                    self._boot(scheduler, kept)
                except (NodestateError, TimeoutError) as error:
                    self.counts[f"error {type(error).__name__}: {error}"] += 1
                self._ending.wait(0.1)
        self.counts["refused answers"] += courier.bad_answers
        courier.close()

    def _boot(self, scheduler: Scheduler, kept: list[tuple[str, str]]) -> None:
        self._requests += 1
        request = Request(instances=(f"{self.name}-{self._requests}",), resources={"VCPU": 1, "MEMORY_MB": 64})
        for outcome in scheduler.boot(request, timeout_s=PATIENCE_S):
            self.counts[type(outcome).__name__ if isinstance(outcome, Booted) else f"failed: {outcome.reason}"] += 1
            for refusal in outcome.refusals:
                self.counts[f"refused {refusal.reason}"] += 1
            if isinstance(outcome, Booted):
                kept.append((outcome.node, outcome.instance))
        if len(kept) > KEPT_INSTANCES_COUNT:
            scheduler.terminations.terminate([kept.pop(0)])


class SignedCell:
    """Consumers, agents, schedulers, readers and an operator; a context manager that starts and ends all of them.

    ``follow`` carries out a table of the how-to page, and ``execute`` its commands.
    """

    def __init__(self, folder: Path, broker: str, store: str, cell: str, *, rate: float) -> None:
        self.folder = folder
        self.environment = {
            "NODESTATE_BROKER": broker,
            "NODESTATE_STORE": store,
            "NODESTATE_CELL": cell,
            "NODESTATE_STATE_DIR": str(folder),
            "NODESTATE_HEARTBEAT_S": f"{HEARTBEAT_S:g}",
            "NODESTATE_RESYNC_JITTER_S": "1",
        }
        """The settings that all processes share."""
        self.cell_file = folder / "operator.keys"
        self.control_file = folder / "control.keys"
        """The operators' public keys; it does not exist before ``sign_control_record``."""
        self.modes = dict.fromkeys(("auth_events", "auth_orders", "auth_store", "auth_control"), "off")
        """The modes of the present step."""
        self.consumers = [Member(folder, number, 2, self._settings(f"member-{number}")) for number in (1, 2)]
        self.agents = [self._agent(number, rate / AGENTS_COUNT) for number in range(AGENTS_COUNT)]
        self.nodes = {
            agent.name: [f"{agent.name}-{number:04}" for number in range(NODES_COUNT)] for agent in self.agents
        }
        self.schedulers = [SchedulingThread(f"scheduler-{number}") for number in range(2)]
        self.readers = [ReadingThread(design) for design in ("journal", "snapshot")]
        self.revoked = ""
        """The node whose keys are revoked."""
        self.old_id = ""
        """The id of the secret that is being replaced."""
        self.counters = Counter[str]()
        """The counters of all lives of consumers and agents, summed by name."""
        self.notes: list[str] = []
        """Figures for the reader of the test's output."""
        self.copied_at = 0.0
        """When the file of the cell was last copied to consumers and schedulers, in seconds since 1970."""
        self._open = ExitStack()

    # -- start and end

    def __enter__(self) -> Self:
        for service in (*self.consumers, *self.agents):
            self._open.callback(service.kill)
            service.start()
        self.began_at = time.monotonic()
        self._reader = self._open.enter_context(Reader(self.unsigned, design="snapshot"))
        wait_until(self._is_whole, "the cell has not all nodes")
        for thread in (*self.readers, *self.schedulers):
            self._open.callback(thread.stop)
            thread.start(self.unsigned)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def end(self) -> None:
        """End schedulers, agents, readers and consumers, in this order, and sum their counters."""
        for thread in (*self.schedulers, *self.readers):
            thread.stop()
        for agent in self.agents:
            self._count(agent)
        self.seconds = time.monotonic() - self.began_at
        wait_until(
            lambda: not any(depth.ready for depth in queue_depths(self.unsigned) if depth.partition is not None),
            "events wait in queues",
        )
        for consumer in self.consumers:
            self._count(consumer)

    def _is_whole(self) -> bool:
        view = self._reader.read(max_age=MAX_AGE_S, on_stale="flag")
        wanted = sum(len(names) for names in self.nodes.values())
        return not view.stale and not view.incomplete and len(view.nodes) == wanted

    # -- settings

    @property
    def unsigned(self) -> Config:
        """The settings of a process without keys."""
        return load(environ=self.environment)

    def _settings(self, place: str) -> dict[str, str]:
        """Return the environment of a process in the present step: the page's TOML block with the present modes."""
        settings = dict.fromkeys(settings_of("Raise the mode"), "") | self.modes
        if place.startswith("agent"):
            del settings["auth_store"], settings["auth_control"]
        settings["keys_file"] = str(self.folder / f"{place}.keys") if {"off"} != set(self.modes.values()) else ""
        if self.control_file.exists() and not place.startswith("agent"):
            settings["control_keys_file"] = str(self.control_file)
        if place == "operator":
            settings["operator_key_file"] = str(self.folder / "operator.key")
        return self.environment | {f"NODESTATE_{name.upper()}": value for name, value in settings.items()}

    def _agent(self, number: int, rate: float) -> Service:
        name = f"agent{number}"
        words = [
            "agent",
            "--source",
            "simulated",
            "--nodes",
            f"{NODES_COUNT}",
            "--rate",
            f"{rate:g}",
            "--seed",
            f"{number}",
        ]
        return Service(self.folder, name, [*words, "--prefix", f"{name}-"], self._settings(name))

    # -- the page's steps

    def follow(self, heading: str, setting: str = "auth_events") -> None:
        """Carry out the steps of a table."""
        for step in steps_of(heading, setting):
            self.modes |= dict.fromkeys(step.settings, step.mode)
            for place in step.restart:
                self._restart_all(place)
            if step.has_commands:
                self.execute(commands_of(heading))
            self.wait_until_ok()

    def sign_control_record(self) -> None:
        """Carry out the steps of "Sign the control record"."""
        self._run_as_operator("key", "init", "--operator")
        for mode in ("accept", "warn", "require"):
            self._set_control_mode(mode)
            if mode == "accept":
                self._run_as_operator("design", "sign")
            self.wait_until_ok()

    def stop_signing_control_record(self) -> None:
        """Carry out the same steps in the other direction."""
        for mode in ("warn", "accept", "off"):
            self._set_control_mode(mode)
            self.wait_until_ok()

    def _set_control_mode(self, mode: str) -> None:
        self.modes["auth_control"] = mode
        for place in ("consumers", "schedulers"):
            self._restart_all(place)

    def _run_as_operator(self, *words: str) -> None:
        files = {"NODESTATE_CONTROL_KEYS_FILE": str(self.control_file)}
        run_command(self._settings("operator") | files, *words)

    def _restart_all(self, place: str) -> None:
        if place == "schedulers":
            for thread in (*self.schedulers, *self.readers):
                thread.restart(load(environ=self._settings("scheduler")))
        for consumer in self.consumers if place == "consumers" else ():
            self._restart(consumer)
            self.wait_until_ok(but=("stored values", "control record"))
            wait_until(self._has_heard_all, "nodes are silent after a restart of a consumer")
        for agent in self.agents if place == "agents" else ():
            before = self._incarnations(agent)
            self._restart(agent)
            reports = partial(self._have_begun_again, agent, before)
            wait_until(reports, f"{agent.name} does not report its nodes")

    def _has_heard_all(self) -> bool:
        """A new owner counts a sign of life only after its first watermark. Two restarts at once would add up."""
        return not self._reader.read(max_age=PATIENCE_S, node_max_age=2 * HEARTBEAT_S, on_stale="flag").stale

    def _restart(self, service: Service) -> None:
        self._count(service)
        service.settings = self._settings(service.name.replace(" ", "-").partition("/")[0])
        service.start()

    def _have_begun_again(self, agent: Service, before: Mapping[str, int]) -> bool:
        agent.require_alive()
        now = self._incarnations(agent)
        return all(now[name] > number for name, number in before.items())

    def _incarnations(self, agent: Service) -> dict[str, int]:
        view = self._reader.read(max_age=PATIENCE_S, on_stale="flag")
        records = [view.nodes.record(name) for name in self.nodes[agent.name]]
        return {record.name: record.incarnation for record in records if record is not None}

    def _count(self, service: Service) -> None:
        for name, value in service.stop().items():
            if isinstance(value, Mapping):
                self.counters.update({f"{name} {key}": count for key, count in value.items()})
            elif isinstance(value, int):
                self.counters[name] += value

    def doctor(self) -> list[dict[str, str]]:
        """Return the findings of ``nodestate doctor``, with the settings of the present step."""
        with start_command(self._settings("operator"), "doctor", "--json") as process:
            out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode in {0, 1}, err
        findings: list[dict[str, str]] = json.loads(out)["findings"]
        return findings

    def wait_until_ok(self, *, but: Collection[str] = ()) -> None:
        """Wait until each line of doctor is OK, except those about one of ``but``."""
        found: list[dict[str, str]] = []

        def all_ok() -> bool:
            found[:] = [one for one in self.doctor() if one["about"] not in but and one["level"] != "OK"]
            return not found

        wait_until(all_ok, lambda: f"doctor goes on to say {found}", poll_s=1.0)

    def wait_until_said(self, about: str, pattern: str, level: str) -> str:
        """Wait until doctor has a finding of this level whose text matches; returns the text."""
        found: list[dict[str, str]] = []

        def said() -> bool:
            found[:] = self.doctor()
            return bool(self._texts(found, about, pattern, level))

        wait_until(said, lambda: f"doctor does not say {pattern!r} about {about}: {found}", poll_s=1.0)
        return self._texts(found, about, pattern, level)[0]

    def _texts(self, findings: Sequence[dict[str, str]], about: str, pattern: str, level: str) -> list[str]:
        return [
            one["says"]
            for one in findings
            if (one["about"], one["level"]) == (about, level) and re.search(pattern, one["says"])
        ]

    # -- the page's commands

    def execute(self, lines: Sequence[str]) -> None:
        """Execute commands of the page; a comment between them is a thing that the operator does by other means."""
        for line in lines:
            if line.startswith("#"):
                self._deeds[line.removeprefix("# ")]()
            else:
                words = shlex.split(line)
                assert words.pop(0) == "nodestate", line
                self._execute(words)

    def _execute(self, words: list[str]) -> None:
        if words[0] == "retag":
            wait_until(partial(self._retag, words), "tags of allocations are not renewed", poll_s=1.0)
            return
        if words[:2] == ["key", "rotate"]:
            self.old_id = self._status()["secrets"][0]["id"]
        places = {PAGE_CELL_FILE: [str(self.cell_file)], PAGE_ID: [self.old_id], PAGE_REVOKED: [self.revoked]}
        if words[:2] != ["key", "node"]:
            self._run([new for word in words for new in places.get(word, [word])])
            return
        for agent in self.agents:  # the page says: for each node
            places |= {PAGE_NODE: self.nodes[agent.name], f"{PAGE_NODE}.keys": [str(self.folder / f"{agent.name}.new")]}
            self._run([new for word in words for new in places.get(word, [word])])

    def _retag(self, words: Sequence[str]) -> bool:
        with start_command(self._settings("operator"), *words) as process:
            process.communicate(timeout=PATIENCE_S)
            return process.returncode == 0

    def _run(self, words: Sequence[str]) -> None:
        run_command(self.environment, *words)

    def _status(self) -> Any:
        return json.loads(
            run_command(self.environment, "key", "status", "--keys-file", str(self.cell_file), "--json")[0]
        )

    @property
    def _deeds(self) -> dict[str, Callable[[], object]]:
        return {
            "copy the file of the cell to all consumers and schedulers": self._copy_cell_file,
            "copy the file of each node to its agent": self._copy_node_files,
            f"wait for {REREAD_S:g} s": lambda: time.sleep(REREAD_S),
            "wait until doctor names no key of the old secret": self._wait_until_replaced,
            "wait until doctor names the revoked node": self._wait_until_revoked,
        }

    def _copy_cell_file(self) -> None:
        self.copied_at = time.time()
        for place in ("member-1", "member-2", "scheduler"):
            self._copy(self.cell_file, self.folder / f"{place}.keys")

    def _copy_node_files(self) -> None:
        for agent in self.agents:
            self._copy(self.folder / f"{agent.name}.new", self.folder / f"{agent.name}.keys")

    def _copy(self, source: Path, target: Path) -> None:
        fresh = target.with_suffix(".copy")
        shutil.copy(source, fresh)  # keeps the mode
        fresh.replace(target)

    def _wait_until_replaced(self) -> None:
        self.wait_until_said("signatures", rf"sign their events, with keys of (?!.*{self.old_id})", "OK")
        self.wait_until_ok(but=["dead letters"] if self.revoked else [])

    def _wait_until_revoked(self) -> None:
        self.wait_until_said("signatures", f"1 of .* agents sign wrongly, for example {self.revoked}:", "FAIL")

    # -- what happened

    def dead_letters(self) -> list[DeadLetter]:
        """Return all dead letters, the oldest first."""
        return read_dead_letters(self.unsigned, 1_000_000)

    def purge_dead_letters(self) -> None:
        """Delete all dead letters, as ``rabbitmqctl purge_queue`` does."""
        config = self.unsigned
        with kombu.Connection(config.broker) as connection:
            connection.default_channel.queue_purge(Topology.of(config).dead)

    @property
    def sent(self) -> int:
        """Events that agents sent, once the cell has ended."""
        return sum(self.counters[name] for name in ("reports", "changes", "heartbeats", "sent_again"))

    @property
    def taken(self) -> int:
        """Events that consumers took, once the cell has ended; some of them twice, if a consumer was restarted."""
        return sum(count for name, count in self.counters.items() if name.startswith("by_outcome "))

    def figures(self) -> str:
        """Return the figures of a run in one line."""
        boots = sum(one.counts["Booted"] for one in self.schedulers)
        views = sum(one.views for one in self.readers)
        refused = sum(count for name, count in self.counters.items() if name.startswith("dead_letters "))
        return (
            f"{self.sent:,} events in {self.seconds:.0f} s ({self.sent / self.seconds:,.0f}/s), {self.taken:,} taken, "
            f"{refused:,} refused; {boots:,} boots; {views:,} views, {sum(len(one.stale) for one in self.readers)} "
            f"stale, largest age {max(one.largest_age_s for one in self.readers):.1f} s; {'; '.join(self.notes)}"
        )

    def require_nothing_noticed(self) -> None:
        """Assert that no reader, scheduler or agent of the cell noticed anything."""
        for reader in self.readers:
            assert reader.views > 0
            assert not reader.stale, f"{len(reader.stale)} of {reader.views} views of {reader.name}: {reader.stale[:3]}"
        for scheduler in self.schedulers:
            assert scheduler.counts["Booted"] > 0
            bad = {name: count for name, count in scheduler.counts.items() if name.startswith(("error", "failed"))}
            assert not bad, bad
            assert not {"refused unsigned", "refused bad-signature"} & scheduler.counts.keys(), scheduler.counts
