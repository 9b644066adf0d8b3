"""``nodestate design``: move a cell from one design to another while it runs.

The steps and what each may follow are drawn in ``nodestate.designs.control``. A command that is interrupted is given
again: each step is taken whole, by one compare-and-swap of the control record, or not at all.
"""

from __future__ import annotations

import click
import structlog

from nodestate.cli.check import as_json as verdict_json
from nodestate.cli.check import show as show_verdict
from nodestate.cli.command import SECONDS, Run, cell_command, operator_name
from nodestate.cli.design_switch import DesignIncompleteError, DesignsDifferError, DesignSwitch
from nodestate.designs.connections import configured
from nodestate.designs.control import Control, cut_over, prepared, require_named, retired, rolled_back
from nodestate.designs.stored_design import display_names, parse_stored_design
from nodestate.errors import ConfigError


@click.group("design", short_help="Say which design is written and read, and switch while the cell runs.")
def command() -> None:
    """Say which design is written and read, and switch while the cell runs.

    From the database to memcached: prepare snapshot, verify, cutover snapshot; back at any time: rollback. In the end:
    retire sql.

    From 8 partitions to 12: the same with snapshot@12 in place of snapshot@8. A name without a number is of the number of
    partitions that is read.
    """


def _print_result(run: Run, control: Control, *, done: str, **more: object) -> None:
    names, partitions = control.names, control.reads.partitions
    writes, reads = [names[kept] for kept in control.writes], names[control.reads]
    if run.as_json:
        about = {"version": control.version, "writes": writes, "reads": reads, "partitions": partitions}
        run.print_json({**about, "done": done, **more})
    else:
        run.out.print(
            f"{done} [dim](record {control.version}: writes {', '.join(writes)}; reads {reads}, "
            f"{partitions} partitions)[/]",
            soft_wrap=True,
        )


_CONSUMERS_TIMEOUT_OPTION = click.option(
    "--timeout", type=SECONDS, default=60.0, metavar="S", help="How long to wait for consumers."
)
_COMPARE_TIMEOUT_OPTION = click.option(
    "--timeout", type=SECONDS, default=10.0, metavar="S", help="What differs for so long is a difference, not a delay."
)
_FORCE_OPTION = click.option("--force", is_flag=True, help="Also if the place that decides on the record is down.")


@cell_command("status", summary="Show which designs are written and read.", example="nodestate design status --json")
def status(run: Run) -> None:
    """Show the control record, where its copies are, and how each design is."""
    with DesignSwitch(run) as switch:
        control, found = switch.record()
        names = control.names
        looks = dict(zip(control.writes, switch.looks(control.writes), strict=True))
        if run.as_json:
            run.print_json(
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
                            "whole": len(switch.complete_partitions(look)),
                            "partitions": kept.partitions,
                        }
                        for kept, look in looks.items()
                    },
                }
            )
            return
        run.out.print(f"record {control.version}, by {control.said_by}; reads [bold]{names[control.reads]}[/]")
        for kept, look in looks.items():
            state = f"{len(switch.complete_partitions(look))} of {kept.partitions} partitions whole"
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
@_CONSUMERS_TIMEOUT_OPTION
def prepare(run: Run, name: str, timeout: float) -> None:
    """Have consumers write NAME, too, beginning with all nodes that there are; returns when it is whole.

    NAME is a design, or as snapshot@12 a design in so many partitions. Agents are asked for nothing.
    """
    with DesignSwitch(run) as switch:
        design = parse_stored_design(name, run.config.partitions).design
        if design not in configured(run.config):
            raise ConfigError(f"the settings name no place for {design}: see NODESTATE_SQL and NODESTATE_STORE")
        kept = switch.kept(name)
        if switch.record()[0].has_left(kept.partitions):
            run.require_shared(broker=True)
            switch.clear_if_left(kept.partitions, timeout)
        control = switch.change(lambda now: prepared(now, kept, operator_name()))
        look = switch.wait_until_complete(kept, timeout)
        nodes = len(look.view.nodes)
        _print_result(run, control, done=f"{control.names[kept]} is written, and whole: {nodes:,} nodes", nodes=nodes)


@cell_command(
    "verify", summary="Compare a design with the one that is read.", example="nodestate design verify snapshot"
)
@click.argument("name", required=False)
@_COMPARE_TIMEOUT_OPTION
def verify(run: Run, name: str | None, timeout: float) -> int:
    """Compare NAME, or each design that is written, with the one that is read, node by node. Exit code 0: no difference."""
    with DesignSwitch(run) as switch:
        control, _ = switch.record()
        others = [switch.kept(name)] if name else [one for one in control.writes if one != control.reads]
        names = display_names([*control.writes, *others])
        verdicts = {names[other]: switch.verdict(control.reads, other, timeout) for other in others}
        if run.as_json:
            verdicts_json = {other: verdict_json(verdict) for other, verdict in verdicts.items()}
            run.print_json({"reads": names[control.reads], "verdicts": verdicts_json})
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
@_COMPARE_TIMEOUT_OPTION
def cutover(run: Run, name: str, force: bool, timeout: float) -> None:
    """Have readers read NAME from their next refresh on. Refuses unless it is whole and equal to what is read now."""
    with DesignSwitch(run) as switch:
        control, _ = switch.record(force=force)
        kept = switch.kept(name, force=force)
        cut_over(control, kept, operator_name())  # refuses what can't be, before anything is compared
        if control.reads != kept:
            try:
                switch.wait_until_complete(kept, timeout)
                switch.require_equal(control.reads, kept, timeout)
            except (DesignIncompleteError, DesignsDifferError) as error:
                if not force:
                    raise
                structlog.get_logger("nodestate.design").warning(
                    "forced", step="cutover", design=str(kept), why=str(error)
                )
        after = switch.change(lambda now: cut_over(now, kept, operator_name()), force=force)
        _print_result(run, after, done=f"readers read {after.names[kept]}")


@cell_command("rollback", summary="Have readers read what they read before.", example="nodestate design rollback")
@_FORCE_OPTION
def rollback(run: Run, force: bool) -> None:
    """Have readers read the design from before the last cutover. The present one stays written."""
    with DesignSwitch(run) as switch:
        before, _ = switch.record(force=force)
        control = switch.change(lambda now: rolled_back(now, operator_name()), force=force)
        reads = control.names[control.reads]
        nothing = f"nothing to go back to: readers read {reads}"
        _print_result(
            run, control, done=f"readers read {reads} again" if control.version != before.version else nothing
        )


@cell_command(
    "retire",
    summary="Have consumers write a design no longer.",
    example="nodestate design retire sql\nnodestate design retire snapshot@8",
)
@click.argument("name")
@click.option("--force", is_flag=True, help="Also if what is read is not whole, or the place that decides is down.")
@_COMPARE_TIMEOUT_OPTION
def retire(run: Run, name: str, force: bool, timeout: float) -> None:
    """Have consumers write NAME no longer, and forget it. Refuses what is read, and as long as what is read is not whole.

    With the last design of a number of partitions its queues go, too, when all consumers have left them.
    """
    with DesignSwitch(run) as switch:
        control, _ = switch.record(force=force)
        kept = switch.kept(name, force=force)
        if "@" not in name:
            require_named(control, kept)
        was_written = kept in (*control.writes, *control.leaving)
        after = retired(control, kept, operator_name())
        ends = kept.partitions in {one.partitions for one in after.leaving}
        if ends:
            run.require_shared(broker=True)
        if after is not control and not force:
            switch.wait_until_complete(control.reads, timeout)
        after = switch.change(lambda now: retired(now, kept, operator_name()), force=force)
        if ends:
            after = switch.clear(kept.partitions, timeout)
        names = display_names([*after.writes, kept])
        _print_result(
            run, after, done=f"{names[kept]} is not written{' any more' if was_written else ', nor was it just now'}"
        )


for _step in (status, prepare, verify, cutover, rollback, retire):
    command.add_command(_step)
