"""``nodestate design``: move a cell from one design to another while it runs.

The steps and what each may follow are drawn in ``nodestate.designs.control``. A command that is interrupted is given
again: each step is taken whole, by one compare-and-swap of the control record, or not at all.
"""

from __future__ import annotations

import getpass
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import ClassVar, Final, Self

import click
import msgspec
import structlog
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from nodestate.broker import KombuLayouts
from nodestate.cli.check import Verdict, compare
from nodestate.cli.check import as_json as verdict_json
from nodestate.cli.check import show as show_verdict
from nodestate.cli.command import SECONDS, Run, cell_command
from nodestate.cli.inspection import CellInspector, DesignLook
from nodestate.designs.connections import configured, open_stores
from nodestate.designs.control import Control, cleared, cut_over, dated, prepared, require_named, retired, rolled_back
from nodestate.designs.control_store import ControlStore, Copy, newest
from nodestate.designs.layout_removal import delete_queues, forget_layout
from nodestate.designs.stored_design import StoredDesign, display_names, parse_stored_design
from nodestate.errors import ConfigError, ControlLostError, DesignStepError
from nodestate.ports import SystemClock

LOOK_AGAIN_S: Final = 0.1
MAX_TRIES_COUNT: Final = 8
AGE_RENEWALS_COUNT: Final = 5
"""A design that was renewed so many times ago at most is being written; ages are known to …"""
AGE_ROUNDING_S: Final = 2.0
"""… so many seconds."""
LOST_WAIT_S: Final = 5.0
"""How long a command waits for consumers to put back a record that is lost: they do with each renewal."""


class NotWholeError(DesignStepError):
    """Raised when a design that is to be read is not written in all partitions yet."""

    kind: ClassVar[str] = "design-incomplete"


class NotEqualError(DesignStepError):
    """Raised when a design that is to be read differs from the one that is."""

    kind: ClassVar[str] = "design-differs"


class LayoutInUseError(DesignStepError):
    """Raised when consumers still read the queues of a layout that is to go, or what it leaves in the stores can't be taken away."""

    kind: ClassVar[str] = "layout-in-use"


@click.group("design", short_help="Say which design is written and read, and switch while the cell runs.")
def command() -> None:
    """Say which design is written and read, and switch while the cell runs.

    From the database to memcached: prepare snapshot, verify, cutover snapshot; back at any time: rollback. In the end:
    retire sql.

    From 8 partitions to 12: the same with snapshot@12 in place of snapshot@8. A name without a number is of the number of
    partitions that is read.
    """


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
            time.sleep(LOOK_AGAIN_S)

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

    def looks(self, every: Sequence[StoredDesign]) -> list[DesignLook]:
        """Views and heads of designs."""
        lookout = CellInspector(self.config, every)
        try:
            return lookout.look()
        finally:
            lookout.close()

    def whole_partitions(self, look: DesignLook) -> list[int]:
        """The partitions of a design that readers could go over to: whole, and kept up by somebody now."""
        since = time.monotonic() - AGE_RENEWALS_COUNT * self.config.renew_s - AGE_ROUNDING_S
        return [s.partition for s in look.view.partitions if s.vouched and not s.lost and s.confirmed_at > since]

    def wait_until_whole(self, kept: StoredDesign, timeout: float) -> DesignLook:
        """Return when every partition of a design is written by an owner that vouches for it."""
        deadline = time.monotonic() + timeout
        lookout = CellInspector(self.config, [kept])
        try:
            with self._bar(f"{kept}: partitions", kept.partitions) as done:
                while True:
                    [look] = lookout.look()
                    whole = self.whole_partitions(look)
                    done(len(whole))
                    if len(whole) == kept.partitions:
                        return look
                    if time.monotonic() > deadline:
                        missing = sorted(set(range(kept.partitions)) - set(whole))
                        raise NotWholeError(
                            f"{kept} is not whole in {len(missing)} of {kept.partitions} partitions after {timeout:g} s, "
                            f"as {missing[0]}: {look.view.partitions[missing[0]].lost or 'its owner does not vouch for it yet'}",
                            "nodestate doctor, then the same command again",
                        )
                    time.sleep(LOOK_AGAIN_S)
        finally:
            lookout.close()

    def verdict(self, left: StoredDesign, right: StoredDesign, timeout: float) -> Verdict:
        """Compare two designs node by node, as schedulers read them."""
        lookout = CellInspector(self.config, [left, right])
        try:
            with self._bar(f"{left} and {right}: compares", None):
                return compare(lookout.views, timeout)
        finally:
            lookout.close()

    def require_equal(self, left: StoredDesign, right: StoredDesign, timeout: float) -> None:
        """Raise ``NotEqualError`` where two designs differ."""
        if not self.verdict(left, right, timeout).agree:
            raise NotEqualError(f"{right} differs from {left}, which is read", f"nodestate design verify {right}")

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
                time.sleep(LOOK_AGAIN_S)
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
                time.sleep(LOOK_AGAIN_S)
        return self.change(lambda now: cleared(now, partitions, operator()))

    @contextmanager
    def _bar(self, what: str, total: int | None) -> Iterator[Callable[[int], None]]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=self._run.err, transient=True, disable=self._run.as_json) as progress:
            task = progress.add_task(what, total=total)
            yield lambda done: progress.update(task, completed=done)


def operator() -> str:
    """Who says it, for the record."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "?"
    return f"{user}@{socket.gethostname()}"


def _say(run: Run, control: Control, *, done: str, **more: object) -> None:
    names, partitions = control.names, control.reads.partitions
    writes, reads = [names[kept] for kept in control.writes], names[control.reads]
    if run.as_json:
        about = {"version": control.version, "writes": writes, "reads": reads, "partitions": partitions}
        run.say_json({**about, "done": done, **more})
    else:
        run.out.print(
            f"{done} [dim](record {control.version}: writes {', '.join(writes)}; reads {reads}, "
            f"{partitions} partitions)[/]",
            soft_wrap=True,
        )


_TIMEOUT = click.option("--timeout", type=SECONDS, default=60.0, metavar="S", help="How long to wait for consumers.")
_LOOK = click.option(
    "--timeout", type=SECONDS, default=10.0, metavar="S", help="What differs for so long is a difference, not a delay."
)
_FORCE = click.option("--force", is_flag=True, help="Also if the place that decides on the record is down.")


@cell_command("status", summary="Show which designs are written and read.", example="nodestate design status --json")
def status(run: Run) -> None:
    """Show the control record, where its copies are, and how each design is."""
    with DesignSwitch(run) as board:
        control, found = board.record()
        names = control.names
        looks = dict(zip(control.writes, board.looks(control.writes), strict=True))
        if run.as_json:
            run.say_json(
                {
                    "version": control.version,
                    "writes": [names[kept] for kept in control.writes],
                    "reads": names[control.reads],
                    "partitions": control.reads.partitions,
                    "former": names[control.former] if control.former else "",
                    "said_by": control.said_by,
                    "leaving": [names[kept] for kept in control.leaving],
                    "copies": {copy.store.name: copy.control.version if copy.control else None for copy in found},
                    "designs": {
                        look.name: {
                            "nodes": len(look.view.nodes),
                            "age": look.view.age,
                            "whole": len(board.whole_partitions(look)),
                            "partitions": kept.partitions,
                        }
                        for kept, look in looks.items()
                    },
                }
            )
            return
        run.out.print(f"record {control.version}, by {control.said_by}; reads [bold]{names[control.reads]}[/]")
        for kept, look in looks.items():
            state = f"{len(board.whole_partitions(look))} of {kept.partitions} partitions whole"
            run.out.print(f"  {look.name}: {len(look.view.nodes):,} nodes, {look.view.age:.1f} s old, {state}")
        for copy in found:
            has = str(copy.error) if copy.error else f"version {copy.control.version}" if copy.control else "none"
            run.out.print(f"  copy at {copy.store.name}: {has}", markup=False)
        if control.former:
            run.out.print(f"  'nodestate design rollback' goes back to {names[control.former]}")
        for kept in control.leaving:
            run.out.print(f"  {kept} was retired; 'nodestate design retire {kept}' again deletes its queues")


@cell_command(
    "prepare",
    summary="Have consumers write one more design, or one in another number of partitions.",
    example="nodestate design prepare snapshot\nnodestate design prepare snapshot@12",
)
@click.argument("name")
@_TIMEOUT
def prepare(run: Run, name: str, timeout: float) -> None:
    """Have consumers write NAME, too, beginning with all nodes that there are; returns when it is whole.

    NAME is a design, or as snapshot@12 a design in so many partitions. Agents are asked for nothing.
    """
    with DesignSwitch(run) as board:
        design = parse_stored_design(name, run.config.partitions).design
        if design not in configured(run.config):
            raise ConfigError(f"the settings name no place for {design}: see NODESTATE_SQL and NODESTATE_STORE")
        kept = board.kept(name)
        if board.record()[0].has_left(kept.partitions):
            run.require_shared(broker=True)
            board.clear_if_left(kept.partitions, timeout)
        control = board.change(lambda now: prepared(now, kept, operator()))
        look = board.wait_until_whole(kept, timeout)
        nodes = len(look.view.nodes)
        _say(run, control, done=f"{control.names[kept]} is written, and whole: {nodes:,} nodes", nodes=nodes)


@cell_command(
    "verify", summary="Compare a design with the one that is read.", example="nodestate design verify snapshot"
)
@click.argument("name", required=False)
@_LOOK
def verify(run: Run, name: str | None, timeout: float) -> int:
    """Compare NAME, or each design that is written, with the one that is read, node by node. Exit code 0: no difference."""
    with DesignSwitch(run) as board:
        control, _ = board.record()
        others = [board.kept(name)] if name else [one for one in control.writes if one != control.reads]
        names = display_names([*control.writes, *others])
        verdicts = {names[other]: board.verdict(control.reads, other, timeout) for other in others}
        if run.as_json:
            verdicts_json = {other: verdict_json(verdict) for other, verdict in verdicts.items()}
            run.say_json({"reads": names[control.reads], "verdicts": verdicts_json})
        elif not others:
            run.out.print(f"only {names[control.reads]} is written: there is nothing to compare it with")
        else:
            for verdict in verdicts.values():
                show_verdict(run, verdict)
        return 0 if all(verdict.agree for verdict in verdicts.values()) else 1


@cell_command(
    "cutover",
    summary="Have readers read another design, or one in another number of partitions.",
    example="nodestate design cutover snapshot\nnodestate design cutover snapshot@12",
)
@click.argument("name")
@click.option("--force", is_flag=True, help="Also if it differs, is not whole, or the place that decides is down.")
@_LOOK
def cutover(run: Run, name: str, force: bool, timeout: float) -> None:
    """Have readers read NAME from their next refresh on. Refuses unless it is whole and equal to what is read now."""
    with DesignSwitch(run) as board:
        control, _ = board.record(force=force)
        kept = board.kept(name, force=force)
        cut_over(control, kept, operator())  # refuses what can't be, before anything is compared
        if control.reads != kept:
            try:
                board.wait_until_whole(kept, timeout)
                board.require_equal(control.reads, kept, timeout)
            except (NotWholeError, NotEqualError) as error:
                if not force:
                    raise
                structlog.get_logger("nodestate.design").warning(
                    "forced", step="cutover", design=str(kept), why=str(error)
                )
        after = board.change(lambda now: cut_over(now, kept, operator()), force=force)
        _say(run, after, done=f"readers read {after.names[kept]}")


@cell_command("rollback", summary="Have readers read what they read before.", example="nodestate design rollback")
@_FORCE
def rollback(run: Run, force: bool) -> None:
    """Have readers read the design from before the last cutover. The present one stays written."""
    with DesignSwitch(run) as board:
        before, _ = board.record(force=force)
        control = board.change(lambda now: rolled_back(now, operator()), force=force)
        reads = control.names[control.reads]
        nothing = f"nothing to go back to: readers read {reads}"
        _say(run, control, done=f"readers read {reads} again" if control.version != before.version else nothing)


@cell_command(
    "retire",
    summary="Have consumers write a design no longer.",
    example="nodestate design retire sql\nnodestate design retire snapshot@8",
)
@click.argument("name")
@click.option("--force", is_flag=True, help="Also if what is read is not whole, or the place that decides is down.")
@_LOOK
def retire(run: Run, name: str, force: bool, timeout: float) -> None:
    """Have consumers write NAME no longer, and forget it. Refuses what is read, and as long as what is read is not whole.

    With the last design of a number of partitions its queues go, too, when all consumers have left them.
    """
    with DesignSwitch(run) as board:
        control, _ = board.record(force=force)
        kept = board.kept(name, force=force)
        if "@" not in name:
            require_named(control, kept)
        was_written = kept in (*control.writes, *control.leaving)
        after = retired(control, kept, operator())
        ends = kept.partitions in {one.partitions for one in after.leaving}
        if ends:
            run.require_shared(broker=True)
        if after is not control and not force:
            board.wait_until_whole(control.reads, timeout)
        after = board.change(lambda now: retired(now, kept, operator()), force=force)
        if ends:
            after = board.clear(kept.partitions, timeout)
        names = display_names([*after.writes, kept])
        _say(run, after, done=f"{names[kept]} is not written{' any more' if was_written else ', nor was it just now'}")


for _step in (status, prepare, verify, cutover, rollback, retire):
    command.add_command(_step)
