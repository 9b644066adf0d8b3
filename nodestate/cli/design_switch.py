"""``nodestate design``: move a cell from one design to another while it runs.

The steps and what each may follow are drawn in ``nodestate.designs.control``. A command that is interrupted is given
again: each step is taken whole, by one compare-and-swap of the control record, or not at all.
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
from nodestate.cli.inspection import CellInspector, DesignStatus
from nodestate.designs.connections import configured, open_stores
from nodestate.designs.control import Control, cleared, dated
from nodestate.designs.control_store import ControlStore, Copy, newest
from nodestate.designs.layout_removal import delete_queues, forget_layout
from nodestate.designs.stored_design import StoredDesign, parse_stored_design
from nodestate.errors import ConfigError, ControlLostError, DesignStepError
from nodestate.ports import SystemClock

RETRY_INTERVAL_S: Final = 0.1
MAX_TRIES_COUNT: Final = 8
AGE_RENEWALS_COUNT: Final = 5
"""A design that was renewed so many times ago at most is being written; ages are known to …"""
AGE_ROUNDING_S: Final = 2.0
"""… so many seconds."""
LOST_WAIT_S: Final = 5.0
"""How long a command waits for consumers to put back a record that is lost: they do with each renewal."""


class DesignIncompleteError(DesignStepError):
    """Raised when a design that is to be read is not written in all partitions yet."""

    kind: ClassVar[str] = "design-incomplete"


class DesignsDifferError(DesignStepError):
    """Raised when a design that is to be read differs from the one that is."""

    kind: ClassVar[str] = "design-differs"


class LayoutInUseError(DesignStepError):
    """Raised when consumers still read the queues of a layout that is to go, or what it leaves in the stores can't be taken away."""

    kind: ClassVar[str] = "layout-in-use"


class DesignSwitch:
    """A cell's control record in an operator's hands, and what the designs look like. A context manager."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.config = run.config
        places = configured(run.config)
        if not places:
            raise ConfigError(
                "the settings name no place where this cell lives: give --store memcached://host:11211 (or NODESTATE_STORE), "
                "NODESTATE_SQL, or both"
            )
        self._stores = open_stores(run.config, SystemClock(), places)
        self._places = ControlStore(run.config.cell, self._stores)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stores.close()

    def record(self, *, force: bool = False) -> tuple[Control, list[Copy]]:
        """The record and its copies. Raises ``ControlLostError`` where none comes up within a few seconds. ``force``: any
        copy will do where the place that decides does not answer.
        """
        deadline = time.monotonic() + LOST_WAIT_S
        while True:
            found = self._places.read()
            known = newest(found)
            if known is not None and (found[0].control == known or (force and found[0].error is not None)):
                return known, found
            if time.monotonic() > deadline:
                raise found[0].error or ControlLostError(found[0].store.name)
            time.sleep(RETRY_INTERVAL_S)

    def change(self, step: Callable[[Control], Control], *, force: bool = False) -> Control:
        """Take a step, again where somebody else changed the record meanwhile; the record after it."""
        for _ in range(MAX_TRIES_COUNT):
            before, found = self.record(force=force)
            after = step(before)
            if after is before:
                return before
            after = dated(after, time.time())
            if self._places.change(found, after, force=force):
                if found[0].error is not None:
                    structlog.get_logger("nodestate.design").warning(
                        "forced", why=str(found[0].error), decided="by another place"
                    )
                structlog.get_logger("nodestate.design").info(
                    "control record", version=after.version, writes=after.writes, reads=after.reads, by=after.said_by
                )
                return after
        raise DesignStepError(f"the record was changed {MAX_TRIES_COUNT} times meanwhile", "nodestate design status")

    def kept(self, name: str, *, force: bool = False) -> StoredDesign:
        """What a command's NAME means: ``snapshot@16``, or ``snapshot`` of the layout that is read. Raises ``ConfigError``."""
        parse_stored_design(name, self.config.partitions)  # refuses what means nothing, before anybody is asked
        return parse_stored_design(name, self.record(force=force)[0].reads.partitions)

    def looks(self, every: Sequence[StoredDesign]) -> list[DesignStatus]:
        """Views and heads of designs."""
        inspector = CellInspector(self.config, every)
        try:
            return inspector.look()
        finally:
            inspector.close()

    def complete_partitions(self, look: DesignStatus) -> list[int]:
        """The partitions of a design that readers could go over to: whole, and kept up by somebody now."""
        since = time.monotonic() - AGE_RENEWALS_COUNT * self.config.renew_s - AGE_ROUNDING_S
        return [s.partition for s in look.view.partitions if s.vouched and not s.lost and s.confirmed_at > since]

    def wait_until_complete(self, kept: StoredDesign, timeout: float) -> DesignStatus:
        """Return when every partition of a design is written by an owner that vouches for it."""
        deadline = time.monotonic() + timeout
        inspector = CellInspector(self.config, [kept])
        try:
            with self._bar(f"{kept}: partitions", kept.partitions) as done:
                while True:
                    [look] = inspector.look()
                    whole = self.complete_partitions(look)
                    done(len(whole))
                    if len(whole) == kept.partitions:
                        return look
                    if time.monotonic() > deadline:
                        missing = sorted(set(range(kept.partitions)) - set(whole))
                        raise DesignIncompleteError(
                            f"{kept} is not whole in {len(missing)} of {kept.partitions} partitions after {timeout:g} s, "
                            f"as {missing[0]}: {look.view.partitions[missing[0]].lost or 'its owner does not vouch for it yet'}",
                            "nodestate doctor, then the same command again",
                        )
                    time.sleep(RETRY_INTERVAL_S)
        finally:
            inspector.close()

    def verdict(self, left: StoredDesign, right: StoredDesign, timeout: float) -> Verdict:
        """Compare two designs node by node, as schedulers read them."""
        inspector = CellInspector(self.config, [left, right])
        try:
            with self._bar(f"{left} and {right}: compares", None):
                return compare(inspector.views, timeout)
        finally:
            inspector.close()

    def require_equal(self, left: StoredDesign, right: StoredDesign, timeout: float) -> None:
        """Raise ``DesignsDifferError`` where two designs differ."""
        if not self.verdict(left, right, timeout).agree:
            raise DesignsDifferError(f"{right} differs from {left}, which is read", f"nodestate design verify {right}")

    def clear(self, partitions: int, timeout: float) -> Control:
        """Delete the queues of a layout that was retired, when no consumer reads them any more, and forget it; the record after it."""
        deadline = time.monotonic() + timeout
        with self._bar(f"{partitions} partitions: consumers leave", None):
            while not self._delete_queues(partitions):
                if time.monotonic() > deadline:
                    raise LayoutInUseError(
                        f"retired, but after {timeout:g} s consumers still read the queues of {partitions} partitions, which are "
                        "left behind",
                        "nodestate doctor, then the same command again",
                    )
                time.sleep(RETRY_INTERVAL_S)
        return self._forget(partitions, deadline)

    def clear_if_left(self, partitions: int, timeout: float) -> None:
        """The same where no consumer is there any more. Where one is, it keeps the layout up."""
        if self._delete_queues(partitions):
            self._forget(partitions, time.monotonic() + timeout)

    def _delete_queues(self, partitions: int) -> bool:
        """Where the broker can't tell who consumes, the stores do: whoever does renews what is written."""
        layouts = KombuLayouts(self.config, 1, 1, SystemClock())
        if delete_queues(partitions, self.record()[0], layouts.delete):
            return True
        config = msgspec.structs.replace(self.config, partitions=partitions)
        if layouts.sees_consumers or forget_layout(config, self._stores, "", SystemClock()):
            return False
        return delete_queues(partitions, self.record()[0], partial(layouts.delete, unseen=True))

    def _forget(self, partitions: int, deadline: float) -> Control:
        """What a consumer left behind that died must not pass for fresh when the layout is written again; so only when it is gone
        the record says so.
        """
        config = msgspec.structs.replace(self.config, partitions=partitions)
        with self._bar(f"{partitions} partitions: are forgotten", None):
            while self.record()[0].has_left(partitions) and (
                left := forget_layout(config, self._stores, "", SystemClock())
            ):
                if time.monotonic() > deadline:
                    (number, name), why = next(iter(left.items()))
                    raise LayoutInUseError(
                        f"retired, and its queues are deleted, but {len(left)} of its partitions could not be forgotten, as "
                        f"{number} of {name}: {why}",
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
