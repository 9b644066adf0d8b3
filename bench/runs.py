"""Runs of a scenario: one design after the other, each in an environment of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from bench.design_names import INSTALL_EXTRA, design_label, full_design_name
from bench.environments import Environment
from bench.memcached_environment import MemcachedEnvironment, memcached_for
from bench.record import Case, Goal
from bench.scenario import Findings
from harness.servers import ServerMissingError


@contextmanager
def open_environment(names: Sequence[str], state_bytes: int) -> Iterator[Environment]:
    """Start an environment for these designs. Several designs must all be designs of memcached.

    ``state_bytes`` is the size of the states of all nodes. Raises ServerMissingError if a server or a driver is not
    installed.
    """
    design, _, database = full_design_name(names[0]).partition(":")
    if not database:
        with memcached_for(state_bytes) as server:
            yield MemcachedEnvironment(names, server)
        return
    assert len(names) == 1, "a database has one design"
    try:
        from bench.database_environment import open_database_environment  # noqa: PLC0415 - drivers may be missing
    except ImportError as error:
        raise ServerMissingError(f"{error}: {INSTALL_EXTRA}") from error
    with open_database_environment(design, database) as environment:
        yield environment


@dataclass(slots=True)
class Runs:
    """The results of measuring designs one after the other."""

    cases: list[Case] = field(default_factory=list)
    servers: dict[str, str] = field(default_factory=dict)
    """Versions of servers and drivers, by name."""
    skipped: dict[str, None] = field(default_factory=dict)
    """Lines about designs that were not measured, each once."""

    def measure_in(
        self, names: Sequence[str], state_bytes: int, measure: Callable[[Environment], Sequence[Case]]
    ) -> None:
        """Call ``measure`` with an environment for these designs; if none can be started, note the reason."""
        with ExitStack() as stack:
            try:
                environment = stack.enter_context(open_environment(names, state_bytes))
            except ServerMissingError as error:
                self.skipped[f"{design_label(names)}: {error}"] = None
                return
            self.servers |= environment.versions
            self.cases += measure(environment)

    def findings(self, across: Mapping[str, float] | None = None, goals: Sequence[Goal] = ()) -> Findings:
        """Return all results. Raises ServerMissingError if nothing was measured."""
        if not self.cases:
            raise ServerMissingError("; ".join(self.skipped))
        return Findings(self.cases, across or {}, goals, self.servers, tuple(self.skipped))
