"""Switching a cell from one design to another while it runs, as the commands ``design …`` do it.

``nodestate.designs.control`` draws the steps and their order. Each step is one compare-and-swap of the control record,
so it is done in full or not at all: a command that was interrupted can be repeated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import ClassVar, Final, Self

import msgspec
import structlog
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from nodestate.broker import KombuLayouts
from nodestate.cli.check import Verdict, compare
from nodestate.cli.command import Run, operator_name
from nodestate.designs.connections import configured, open_stores
from nodestate.designs.control import Control, cleared, dated, record_from_settings, renewed
from nodestate.designs.control_auth import control_auth
from nodestate.designs.control_store import ControlStore, Copy, newest
from nodestate.designs.inspection import CellInspector, DesignStatus, out_of_sync, replica_pairs
from nodestate.designs.layout_removal import delete_queues, remove_layout_epochs
from nodestate.designs.stored_design import StoredDesign, parse_stored_design
from nodestate.errors import ConfigError, ControlLostError, DesignStepError
from nodestate.ports import SystemClock
from nodestate.store.liveness import fresh_s
from nodestate.text import count_text

RETRY_INTERVAL_S: Final = 0.1
"""Time between two looks at a condition that a command waits for."""
MAX_TRIES_COUNT: Final = 8
"""Attempts to change the control record while other commands change it as well."""
LOST_WAIT_S: Final = 5.0
"""How long a command waits until consumers write a lost control record again, which they do at each renewal."""


class DesignIncompleteError(DesignStepError):
    """Raised when readers are to read a design that is not yet written in all partitions."""

    kind: ClassVar[str] = "design-incomplete"


class DesignsDifferError(DesignStepError):
    """Raised when readers are to read a design that differs from the one that they read now."""

    kind: ClassVar[str] = "design-differs"


class LayoutInUseError(DesignStepError):
    """Raised when consumers still read the queues of a retired layout, or its stored state can't be removed."""

    kind: ClassVar[str] = "layout-in-use"


class DesignSwitch:
    """Reads and changes the control record of a cell. A context manager that closes its connections.

    Args:
        run: the command that switches.
        command: its words after ``nodestate design``, which a changed record names; empty if it changes nothing.
    """

    def __init__(self, run: Run, command: str = "") -> None:
        # The command that switches.
        self._run = run
        # Its words, for the record.
        self._command = command
        # Settings of the cell.
        self.config = run.config
        # Signs and checks the record.
        self._auth = control_auth(run.config, SystemClock(), signs=bool(command))
        if command:
            self._auth.require_signer()
        places = configured(run.config)
        if not places:
            raise ConfigError(
                "the settings name no store of this cell: give --store memcached://host:11211 (or NODESTATE_STORE), "
                "NODESTATE_SQL, or both"
            )
        # Connections to all stores that the settings name.
        self._stores = open_stores(run.config, SystemClock(), places)
        # The copies of the control record in these stores.
        self._copies = ControlStore(run.config.cell, self._stores, auth=self._auth)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stores.close()

    def record(self, *, force: bool = False) -> tuple[Control, list[Copy]]:
        """Return the control record and all its copies.

        One store decides which record is valid. Raises ``ControlLostError`` if that store has none within a few
        seconds.

        Args:
            force: Accept the newest copy of another store if the store that decides does not answer, or has a record
                that this version does not follow.
        """
        deadline = time.monotonic() + LOST_WAIT_S
        while True:
            found = self._copies.read()
            known = newest(found)
            overruled = force and (found[0].error is not None or found[0].may_be_right)
            if known is not None and (found[0].control == known or overruled):
                return known, found
            if time.monotonic() > deadline:
                raise found[0].error or ControlLostError(found[0].store.name, found[0].invalid)
            time.sleep(RETRY_INTERVAL_S)

    def change(self, step: Callable[[Control], Control], *, force: bool = False) -> Control:
        """Apply a step to the control record and return the new record.

        If another command changes the record at the same time, the step is applied to the changed record.
        """
        for _ in range(MAX_TRIES_COUNT):
            before, found = self.record(force=force)
            after = step(before)
            if after is before:
                return before
            after = dated(after, time.time(), self._command)
            if self._copies.change(found, after, force=force):
                if found[0].error is not None:
                    structlog.get_logger("nodestate.design").warning(
                        "step forced", why=str(found[0].error), decided="by another store"
                    )
                elif found[0].control is None:
                    structlog.get_logger("nodestate.design").warning(
                        "step forced", why=found[0].invalid, replaced=found[0].store.name
                    )
                structlog.get_logger("nodestate.design").info(
                    "control record changed",
                    version=after.version,
                    writes=after.writes,
                    reads=after.reads,
                    by=after.said_by,
                )
                return after
        raise DesignStepError(
            f"the control record was changed by other commands at each of {MAX_TRIES_COUNT} attempts",
            "nodestate design status",
        )

    def sign(self, *, force: bool = False) -> Control:
        """Sign the control record with the newest key, in a new version. Returns the record.

        If no store has a record, the first one is made from the settings. All stores must answer then.

        Args:
            force: sign the record also if its present signature is refused.

        Raises:
            ConfigError: if this process has no operators' key.
            StoreError: if a store does not answer.
            ControlLostError: if the store that decides has no valid record, but one of the stores has one.
            DesignStepError: if another process changes the record at the same time.
        """
        if not self._auth.signs:
            raise ConfigError(
                f"auth_control is {self.config.auth_control}, operator_key_file is {self.config.operator_key_file!r}: "
                "to sign, set auth_control to accept, warn or require, and operator_key_file to the file that "
                "'nodestate key init --operator' wrote"
            )
        if force:
            self._copies = ControlStore(self.config.cell, self._stores, auth=self._auth.without_checks())
        try:
            return self.change(lambda now: renewed(now, operator_name()))
        except ControlLostError:
            found = self._copies.read()
            if (error := next((copy.error for copy in found if copy.error is not None), None)) is not None:
                raise error from None
            if any(copy.control is not None or copy.invalid for copy in found):
                raise
        wall = time.time()
        first = msgspec.structs.replace(record_from_settings(self.config, wall), said_by=operator_name())
        first = dated(first, wall, self._command)
        if not self._copies.begin(first, found):
            raise DesignStepError("another process made the first control record just now", "nodestate design status")
        self._copies.put_back(first, found[1:])
        return first

    def named(self, name: str, *, force: bool = False) -> StoredDesign:
        """Return the design that a command's NAME means. Raises ``ConfigError`` if there is none.

        ``snapshot@16`` is the snapshot design in 16 partitions; ``snapshot`` is that design in the number of partitions
        that readers use now.
        """
        parse_stored_design(name, self.config.partitions)  # refuse a wrong name before a store is asked
        return parse_stored_design(name, self.record(force=force)[0].reads.partitions)

    def statuses(self, designs: Sequence[StoredDesign]) -> list[DesignStatus]:
        """Return the status of each of these designs."""
        inspector = CellInspector(self.config, designs)
        try:
            return inspector.inspect()
        finally:
            inspector.close()

    def complete_partitions(self, status: DesignStatus) -> list[int]:
        """Return the partitions that readers could read now.

        These have no losses, and an owner that knows all nodes renewed them a moment ago.
        """
        since = time.monotonic() - fresh_s(self.config)
        return [s.partition for s in status.view.partitions if s.complete and not s.lost and s.confirmed_at > since]

    def wait_until_complete(self, design: StoredDesign, timeout: float) -> DesignStatus:
        """Wait until every partition of a design is complete, and return its status.

        Raises ``DesignIncompleteError`` after ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        inspector = CellInspector(self.config, [design])
        try:
            with self._bar(f"{design}: partitions", design.partitions) as done:
                while True:
                    [status] = inspector.inspect()
                    complete = self.complete_partitions(status)
                    done(len(complete))
                    if len(complete) == design.partitions:
                        return status
                    if time.monotonic() > deadline:
                        missing = sorted(set(range(design.partitions)) - set(complete))
                        reason = status.view.partitions[missing[0]].lost or "its owner does not know all nodes yet"
                        raise DesignIncompleteError(
                            f"{design} is not complete in {len(missing)} of "
                            f"{count_text(design.partitions, 'partition')} after {timeout:g} s, "
                            f"for example {missing[0]}: {reason}",
                            "nodestate doctor, then the same command again",
                        )
                    time.sleep(RETRY_INTERVAL_S)
        finally:
            inspector.close()

    def verdict(self, left: StoredDesign, right: StoredDesign, timeout: float) -> Verdict:
        """Compare two designs node by node. A difference counts if it persists for ``timeout`` seconds."""
        inspector = CellInspector(self.config, [left, right])
        try:
            with self._bar(f"comparing {left} and {right}", None):
                return compare(inspector.views, timeout)
        finally:
            inspector.close()

    def wait_until_in_sync(self, designs: Sequence[StoredDesign], timeout: float) -> list[tuple[str, dict[int, str]]]:
        """Wait at most ``timeout`` seconds until the replicas of these designs are in sync.

        Returns for each pair of replicas the names of both, and the partitions that are not in sync with the reason.
        """
        deadline = time.monotonic() + timeout
        inspector = CellInspector(self.config, designs)
        try:
            while True:
                pairs = replica_pairs(inspector.inspect())
                found = [(f"{first.name} and {other.name}", out_of_sync(first, other)) for first, other in pairs]
                if not any(lacking for _, lacking in found) or time.monotonic() > deadline:
                    return found
                time.sleep(RETRY_INTERVAL_S)
        finally:
            inspector.close()

    def require_equal(self, left: StoredDesign, right: StoredDesign, timeout: float) -> None:
        """Raise ``DesignsDifferError`` if two designs differ for ``timeout`` seconds."""
        if not self.verdict(left, right, timeout).agree:
            raise DesignsDifferError(
                f"{right} differs from {left}, which readers read", f"nodestate design verify {right}"
            )

    def clear(self, partitions: int, timeout: float) -> Control:
        """Wait until consumers have left the queues of a retired layout, delete the queues and remove its stored state.

        Returns the control record without the layout. Raises ``LayoutInUseError`` after ``timeout`` seconds.

        Args:
            partitions: Number of partitions of the layout.
            timeout: Seconds to wait for consumers and for the stores.
        """
        deadline = time.monotonic() + timeout
        with self._bar(f"waiting until consumers leave the queues of {count_text(partitions, 'partition')}", None):
            while not self._delete_queues(partitions):
                if time.monotonic() > deadline:
                    raise LayoutInUseError(
                        f"retired, but after {timeout:g} s consumers still read the queues of "
                        f"{count_text(partitions, 'partition')}, so the queues were not deleted",
                        "nodestate doctor, then the same command again",
                    )
                time.sleep(RETRY_INTERVAL_S)
        return self._remove_state(partitions, deadline)

    def clear_if_left(self, partitions: int, timeout: float) -> None:
        """Do the same as ``clear`` if no consumer reads the queues; do nothing if one does, as it keeps the layout."""
        if self._delete_queues(partitions):
            self._remove_state(partitions, time.monotonic() + timeout)

    def _delete_queues(self, partitions: int) -> bool:
        """Delete the queues of a layout. Returns False if consumers still read them.

        Some brokers cannot tell whether a queue has consumers. The stores then show it: a consumer renews its
        partitions.
        """
        layouts = KombuLayouts(self.config, 1, 1, SystemClock())
        if delete_queues(partitions, self.record()[0], layouts.delete):
            return True
        config = msgspec.structs.replace(self.config, partitions=partitions)
        if layouts.sees_consumers or remove_layout_epochs(config, self._stores, "", SystemClock()):
            return False
        return delete_queues(partitions, self.record()[0], partial(layouts.delete, unseen=True))

    def _remove_state(self, partitions: int, deadline: float) -> Control:
        """Remove the stored state of a layout whose queues are deleted, then remove the layout from the control record.

        State that a dead consumer left behind would look current if the layout were written again. So the record keeps
        naming the layout until its state is removed.
        """
        config = msgspec.structs.replace(self.config, partitions=partitions)
        with self._bar(f"removing the stored state of {count_text(partitions, 'partition')}", None):
            while self.record()[0].has_retired(partitions) and (
                left := remove_layout_epochs(config, self._stores, "", SystemClock())
            ):
                if time.monotonic() > deadline:
                    (number, name), why = next(iter(left.items()))
                    raise LayoutInUseError(
                        f"retired, and its queues are deleted, but the stored state of {len(left)} of its partitions "
                        f"could not be removed, for example {number} of {name}: {why}",
                        "nodestate doctor, then the same command again",
                    )
                time.sleep(RETRY_INTERVAL_S)
        return self.change(lambda now: cleared(now, partitions, operator_name()))

    @contextmanager
    def _bar(self, what: str, total: int | None) -> Iterator[Callable[[int], None]]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=self._run.err, transient=True, disable=self._run.as_json) as progress:
            task = progress.add_task(what, total=total)
            yield lambda done: progress.update(task, completed=done)
