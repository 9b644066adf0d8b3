"""One fault while it is caused: its steps, the readers that observe it, and the reports of nodestate meanwhile."""

from __future__ import annotations

import json
import re
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import amqp

from bench.memcached_environment import MemcachedEnvironment
from bench.record import Measure
from bench.recovery_times import BOUND_S, PATIENCE_S, FaultTarget, measure_recovery
from bench.view_observer import ViewObserver
from bench.workload import require
from harness.commands import start_command
from harness.processes import ModuleProcess
from nodestate.broker import Topology

HEALED: Final = "healed, from the fault"
HEALED_FROM_END: Final = "healed, from the end of its cause"
ERRORS: Final = "errors meanwhile"
AGE_ERROR: Final = "worst age error"
WINDOW_S: Final = 10.0
"""Longest time for which a cause that does not end by itself lasts."""
FREEZE_S: Final = 8.0
BRIEF_S: Final = 1.0
DOCTOR_TIMEOUT_S: Final = 60.0
RETRY_S: Final = 0.5
"""Pause between two failed boots or requests."""
DOCTOR_FINDINGS_COUNT: Final = 3
FINDING_CHARACTERS: Final = 100
WARNINGS_COUNT: Final = 2
"""Number of different log entries that are shown."""


class FaultRun:
    """One fault while it is caused and observed."""

    def __init__(self, target: FaultTarget, seconds: float) -> None:
        self.target, self.cell, self.config = target, target.cell, target.cell.config
        self.topology = Topology.of(self.config)
        self.window_s = min(WINDOW_S, seconds)
        self.freeze_s = min(FREEZE_S, seconds)
        self.asks_doctor = seconds >= BRIEF_S
        self.measures: dict[str, Measure] = {}
        """Figures of this fault alone."""
        self.errors: list[str] = []
        """Reasons why boots and requests failed."""
        self.observers = [ViewObserver(self.cell, target.design, BOUND_S)]
        """Readers that observe the fault. The first one reads all the time."""
        self._fault_at = self._cause_ended_at = self._healed_at = 0.0
        self._unconfirmed = 0
        self._doctor: ModuleProcess | None = None
        # The findings of the doctor.
        self._findings: list[str] = []
        # Characters of each member's log from before the fault.
        self._logged = [len(member.log_text()) for member in self.cell.members]

    @contextmanager
    def channel(self) -> Iterator[Any]:
        """A channel of an operator's connection to the broker."""
        with amqp.Connection(self.target.rabbit.address) as connection:
            yield connection.channel()

    @property
    def memcached(self) -> MemcachedEnvironment:
        """The environment of the cell."""
        assert isinstance(self.target.environment, MemcachedEnvironment), "these faults need memcached"
        return self.target.environment

    # -- steps of a fault

    def begin(self, *, ask_doctor: bool = True) -> None:
        """Note that the fault has been caused; the cause is over unless ``end_cause`` says otherwise."""
        self._fault_at = self._cause_ended_at = time.monotonic()
        self._unconfirmed = self.cell.fleet.sink.unconfirmed
        if ask_doctor:
            self.ask_doctor()

    def ask_doctor(self) -> None:
        """Start ``nodestate doctor``, unless the run is brief or the doctor was asked before."""
        if self.asks_doctor and self._doctor is None:
            self._doctor = start_command(self.cell.environment, "doctor", "--json")

    def end_cause(self) -> None:
        """Note that the cause is over."""
        self._cause_ended_at = time.monotonic()

    def heal(self) -> None:
        """Note that nodestate works again."""
        self._healed_at = time.monotonic()

    def heal_views(self) -> None:
        """Wait until the views of an existing and of a new reader are complete, fresh and show new changes."""
        measure_recovery(self.target)
        self.heal()

    def note(self, name: str, value: float, unit: str) -> None:
        """Keep a figure of this fault alone."""
        self.measures[name] = Measure.of(unit, [value])

    def confirms_of(self, partitions: Sequence[int]) -> int:
        """Return how many events of these partitions the broker has confirmed so far."""
        fleet = self.cell.fleet
        return sum(len(fleet.confirms[name]) for number in partitions for name in fleet.names_of_partition[number])

    def confirms_per_s(self, partitions: Sequence[int]) -> float:
        """Count the confirmed events of these partitions for the length of the window."""
        before, began = self.confirms_of(partitions), time.monotonic()
        time.sleep(self.window_s)
        return (self.confirms_of(partitions) - before) / (time.monotonic() - began)

    def retry(self, error_of: Callable[[], str], what: str) -> None:
        """Call a probe until it returns no error, and keep its errors."""
        began = time.monotonic()
        while error := error_of():
            self.errors.append(error)
            require(time.monotonic() - began < PATIENCE_S, f"{what} after {PATIENCE_S:g} s: {error}")
            time.sleep(RETRY_S)

    # -- results

    def figures(self) -> dict[str, Measure]:
        """Return all figures of the fault."""
        unconfirmed = self.cell.fleet.sink.unconfirmed - self._unconfirmed
        age_error_s = max(observer.age_error_s for observer in self.observers)
        return {
            HEALED: Measure.of("s", [self._healed_at - self._fault_at]),
            HEALED_FROM_END: Measure.of("s", [self._healed_at - self._cause_ended_at]),
            ERRORS: Measure.of("errors", [float(len(self.errors) + unconfirmed)]),
            AGE_ERROR: Measure.of("s", [age_error_s]),
            **self.measures,
        }

    def said(self, usual: Sequence[str]) -> list[str]:
        """Return lines from the views, the errors, the consumers' logs and the doctor.

        Args:
            usual: Findings of the doctor without a fault, by ``without_figures``; they are left out.
        """
        first = self.observers[0]
        said = []
        if first.stale:
            oldest_s = max(first.oldest_s.values())
            age = f"up to {oldest_s:.1f} s old" if oldest_s > BOUND_S else "of unknown age"
            said.append(f"views: {len(first.stale)} of {self.config.partitions} partitions stale, {age}")
        if first.incomplete:
            partitions = sorted(name for name in first.incomplete if name.startswith("partition "))
            named = f"{partitions[0]}{' and others' if len(partitions) > 1 else ''}" if partitions else ""
            nodes = len(first.incomplete) - len(partitions)
            said.append("views: incomplete, " + ", ".join(filter(None, [named, f"{nodes} nodes" if nodes else ""])))
        said += [f"error: {one}" for one in dict.fromkeys(self.errors[:1])]
        warnings = {without_figures(one): one for one in self._warnings()}
        said += [f"log: {_shortened(one)}" for one in list(warnings.values())[:WARNINGS_COUNT]]
        findings = [one for one in self.doctor_findings() if without_figures(one) not in usual]
        return [*said, *(f"doctor: {_shortened(one)}" for one in findings[:DOCTOR_FINDINGS_COUNT])]

    def _warnings(self) -> Iterator[str]:
        """Yield the warnings and errors that consumers logged since the fault began, each without its details."""
        for member, logged in zip(self.cell.members, self._logged, strict=True):
            text = member.log_text()
            for line in text[logged if len(text) >= logged else 0 :].splitlines():  # another life has another log
                if '"warning"' in line or '"error"' in line:
                    with suppress(ValueError):  # the last line may be incomplete
                        entry = json.loads(line)
                        yield f"{entry['event']}{f': {reason}' if (reason := entry.get('reason')) else ''}"

    def doctor_findings(self) -> list[str]:
        """Wait for the doctor, if it was asked, and return its findings other than OK."""
        self.finish_doctor()
        findings, self._findings = self._findings, []
        return findings

    def finish_doctor(self) -> None:
        """Wait for the doctor, if it was asked."""
        if self._doctor is None:
            return
        with self._doctor as process:
            out, err = (told.decode() for told in process.communicate(timeout=DOCTOR_TIMEOUT_S))
        self._doctor = None
        if not out.strip():
            self._findings = err.strip().splitlines()[-1:]
            return
        findings = json.loads(out)["findings"]
        self._findings = [f"{one['level']} {one['about']}: {one['says']}" for one in findings if one["level"] != "OK"]

    def close(self) -> None:
        """End observers and the doctor."""
        for observer in self.observers:
            observer.stop()
        if self._doctor is not None:
            self._doctor.kill()
            self._doctor.communicate()


def without_figures(finding: str) -> str:
    """Return the finding without numbers, to compare it with another one."""
    return re.sub(r"[\d.,]+", "#", finding)


def _shortened(finding: str) -> str:
    """Return the finding without addresses, which differ in each run, and without its end if it is long."""
    return textwrap.shorten(re.sub(r"127\.0\.0\.1:\d+", "SERVER", finding), FINDING_CHARACTERS, placeholder=" …")
