"""The commands ``design …``: switch a cell from one design to another while it runs.

``nodestate.designs.control`` draws the steps and their order. A command that was interrupted can be repeated.
"""

from __future__ import annotations

from collections.abc import Mapping

import click
import structlog
from rich.markup import escape

from nodestate.cli.check import as_json as verdict_json
from nodestate.cli.check import show as show_verdict
from nodestate.cli.command import SECONDS, Run, cell_command, operator_name
from nodestate.cli.design_switch import DesignIncompleteError, DesignsDifferError, DesignSwitch
from nodestate.designs.connections import configured
from nodestate.designs.control import Control, author_text, cut_over, prepared, require_named, retired, rolled_back
from nodestate.designs.inspection import out_of_sync, replica_pairs
from nodestate.designs.stored_design import display_names, parse_stored_design
from nodestate.errors import ConfigError
from nodestate.text import age_text, count_text


@click.group("design", epilog="\b\nExample:\n  nodestate design status")
def command() -> None:
    """Show which designs consumers write and readers read, and switch to another design while the cell runs.

    From the database to memcached: 'prepare snapshot', 'verify snapshot', 'cutover snapshot', and after some days
    'retire sql'. Before that, 'rollback' goes back at any time.

    A second replica on other memcached servers, for the case that one fails: 'prepare snapshot_replica' and 'verify'.
    Readers find it by themselves.

    From 8 to 12 partitions: the same steps with snapshot@12, then 'retire snapshot@8'. A name without @ and a number
    means the number of partitions that readers use now.
    """


def _print_result(run: Run, control: Control, *, done: str, **more: object) -> None:
    names, partitions = control.names, control.reads.partitions
    writes, reads = [names[design] for design in control.writes], names[control.reads]
    if run.as_json:
        about = {"version": control.version, "writes": writes, "reads": reads, "partitions": partitions}
        run.print_json({**about, "done": done, **more})
    else:
        run.out.print(
            f"{done} [dim](record {control.version}: writes {', '.join(writes)}; reads {reads}, "
            f"{count_text(partitions, 'partition')})[/]",
            soft_wrap=True,
        )


_CONSUMERS_TIMEOUT_OPTION = click.option(
    "--timeout",
    type=SECONDS,
    default=60.0,
    metavar="S",
    help="Wait at most S seconds until consumers write the design in all partitions.",
)
_COMPARE_TIMEOUT_OPTION = click.option(
    "--timeout",
    type=SECONDS,
    default=10.0,
    metavar="S",
    help="Wait at most S seconds for consumers; report a difference if it persists that long.",
)
_FORCE_OPTION = click.option(
    "--force",
    is_flag=True,
    help="Also if the store that decides on the control record is down, or has a record of a later version; the other "
    "copies then decide.",
)


@cell_command(
    "status", summary="Show which designs consumers write and readers read.", example="nodestate design status --json"
)
def status(run: Run) -> None:
    """Show the control record, its copies, and for each design its nodes, its age and its complete partitions.

    JSON: {"version", "writes", "reads", "partitions", "former", "said_by", "command", "changed_at", "key", "leaving",
    "copies": {store: version}, "designs": {name: {"nodes", "age", "whole", "partitions"}}, "in_sync": {names:
    partitions}}; "key" is the id of the key that signed the record, "whole" the number of complete partitions, and
    "in_sync" has for each pair of replicas the number of partitions in which both are in sync.
    """
    with DesignSwitch(run) as switch:
        control, found = switch.record(force=True)  # another store tells as well, and this command changes nothing
        names = control.names
        statuses = dict(zip(control.writes, switch.statuses(control.writes), strict=True))
        in_sync = {
            f"{first.name} and {other.name}": (len(first.heads) - len(out_of_sync(first, other)), len(first.heads))
            for first, other in replica_pairs(list(statuses.values()))
        }
        if run.as_json:
            run.print_json(
                {
                    "version": control.version,
                    "writes": [names[design] for design in control.writes],
                    "reads": names[control.reads],
                    "partitions": control.reads.partitions,
                    "former": names[control.former] if control.former else "",
                    "said_by": control.said_by,
                    "command": control.command,
                    "changed_at": control.changed_at,
                    "key": control.key_id,
                    "leaving": [names[design] for design in control.leaving],
                    "copies": {copy.store.name: copy.control.version if copy.control else None for copy in found},
                    "designs": {
                        one.name: {
                            "nodes": len(one.view.nodes),
                            "age": one.view.age,
                            "whole": len(switch.complete_partitions(one)),
                            "partitions": design.partitions,
                        }
                        for design, one in statuses.items()
                    },
                    "in_sync": {replicas: count for replicas, (count, _) in in_sync.items()},
                }
            )
            return
        run.out.print(f"record {control.version}; reads [bold]{names[control.reads]}[/]")
        run.out.print(f"  {author_text(control)}", markup=False, soft_wrap=True)
        for design, one in statuses.items():
            state = f"{len(switch.complete_partitions(one))} of {count_text(design.partitions, 'partition')} complete"
            nodes = count_text(len(one.view.nodes), "node")
            if unread := {p.partition: p.lost for p in one.view.partitions if p.lost}:
                number, why = next(iter(unread.items()))
                partitions = count_text(len(unread), "partition")
                says = f"{nodes}, {state}; {partitions} can't be read, for example {number}: {why}"
            else:
                says = f"{nodes}, {age_text(one.view.age)}, {state}"
            run.out.print(f"  {one.name}: {says}", markup=False, soft_wrap=True)
        for replicas, (count, of) in in_sync.items():
            run.out.print(f"  {replicas} are in sync in {count} of {count_text(of, 'partition')}")
        for copy in found:
            has = f"version {copy.control.version}" if copy.control else copy.invalid or "none"
            run.out.print(f"  copy at {copy.store.name}: {copy.error or has}", markup=False, soft_wrap=True)
        if found[0].error is not None:
            run.out.print(
                f"  {found[0].store.name} decides on changes of the record: 'prepare' waits for it, other steps need "
                "--force",
                soft_wrap=True,
            )
        if control.former:
            run.out.print(f"  'nodestate design rollback' goes back to {names[control.former]}")
        for design in control.leaving:
            run.out.print(
                f"  {design} was retired, but its queues remain: run 'nodestate design retire {design}' again"
            )


@cell_command(
    "prepare",
    summary="Have consumers write another design as well, or one in another number of partitions.",
    example="nodestate design prepare snapshot\nnodestate design prepare snapshot@12",
)
@click.argument("name")
@_CONSUMERS_TIMEOUT_OPTION
def prepare(run: Run, name: str, timeout: float) -> None:
    """Have consumers write design NAME as well, and wait until it has all nodes.

    NAME is journal, snapshot or sql; snapshot@12 is the snapshot design in 12 partitions, and snapshot_replica the
    second replica of the snapshot design, on other memcached servers. Consumers copy the present
    state of all nodes from the design that readers read; agents are not asked for reports. Readers stay with their
    design.
    """
    with DesignSwitch(run, f"prepare {name}") as switch:
        base = parse_stored_design(name, run.config.partitions).design
        if base not in configured(run.config):
            if base.endswith("_replica"):
                remedy = "a replica needs two memcached servers: set NODESTATE_STORE=memcached://host:port,host:port"
            else:
                remedy = "set NODESTATE_SQL or NODESTATE_STORE"
            raise ConfigError(f"the settings name no store for design {base}: {remedy}")
        design = switch.named(name)
        if switch.record()[0].has_retired(design.partitions):
            run.require_shared(broker=True)
            switch.clear_if_left(design.partitions, timeout)
        control = switch.change(lambda now: prepared(now, design, operator_name()))
        nodes = len(switch.wait_until_complete(design, timeout).view.nodes)
        _print_result(
            run,
            control,
            done=f"consumers write {control.names[design]}, which is complete: {count_text(nodes, 'node')}",
            nodes=nodes,
        )


@cell_command(
    "verify", summary="Compare a design with the one that readers read.", example="nodestate design verify snapshot"
)
@click.argument("name", required=False)
@_COMPARE_TIMEOUT_OPTION
def verify(run: Run, name: str | None, timeout: float) -> int:
    """Compare design NAME node by node with the design that readers read.

    Without NAME, each other design that consumers write is compared. If a design has two replicas, both must be in sync
    in each partition. Exit code 0 if there is no difference and all replicas are in sync, else 1.

    JSON: {"reads", "verdicts": {design: comparison}, "out_of_sync": {names: {partition: reason}}}; "out_of_sync" has
    each pair of replicas, and is empty for a pair that is in sync.
    """
    with DesignSwitch(run) as switch:
        control, _ = switch.record(force=True)
        others = [switch.named(name, force=True)] if name else [one for one in control.writes if one != control.reads]
        names = display_names([*control.writes, *others])
        verdicts = {names[other]: switch.verdict(control.reads, other, timeout) for other in others}
        replicas = switch.wait_until_in_sync([control.reads, *others], timeout)
        if run.as_json:
            verdicts_json = {other: verdict_json(verdict) for other, verdict in verdicts.items()}
            lacking = {pair: {str(number): why for number, why in found.items()} for pair, found in replicas}
            run.print_json({"reads": names[control.reads], "verdicts": verdicts_json, "out_of_sync": lacking})
        elif not others:
            run.out.print(f"consumers write {names[control.reads]} only, so there is nothing to compare it with")
        else:
            for verdict in verdicts.values():
                show_verdict(run, verdict)
            for pair, found in replicas:
                _print_sync(run, pair, found)
        return 0 if all(verdict.agree for verdict in verdicts.values()) and not any(one for _, one in replicas) else 1


def _print_sync(run: Run, pair: str, lacking: Mapping[int, str]) -> None:
    if not lacking:
        run.out.print(f"{pair}: [green]in sync[/]")
        return
    number, why = next(iter(lacking.items()))
    partitions = count_text(len(lacking), "partition")
    run.out.print(
        f"{pair}: [red]{partitions} not in sync[/], for example {number}: {escape(why)}; run 'nodestate doctor'",
        soft_wrap=True,
    )


@cell_command(
    "cutover",
    summary="Have readers read another design, or one in another number of partitions.",
    example="nodestate design cutover snapshot\nnodestate design cutover snapshot@12",
)
@click.argument("name")
@click.option(
    "--force",
    is_flag=True,
    help="Also if NAME differs or is not complete, or the store that decides on the control record is down.",
)
@_COMPARE_TIMEOUT_OPTION
def cutover(run: Run, name: str, force: bool, timeout: float) -> None:
    """Have readers read design NAME from their next refresh on.

    Refuses if NAME is not complete, or differs from the design that readers read now. No reader needs a restart.
    """
    with DesignSwitch(run, f"cutover {name}") as switch:
        control, _ = switch.record(force=force)
        design = switch.named(name, force=force)
        cut_over(control, design, operator_name())  # refuse an impossible step before the designs are compared
        if control.reads != design:
            try:
                switch.wait_until_complete(design, timeout)
                switch.require_equal(control.reads, design, timeout)
            except (DesignIncompleteError, DesignsDifferError) as error:
                if not force:
                    raise
                structlog.get_logger("nodestate.design").warning(
                    "step forced", step="cutover", design=str(design), why=str(error)
                )
        after = switch.change(lambda now: cut_over(now, design, operator_name()), force=force)
        _print_result(run, after, done=f"readers read {after.names[design]}")


@cell_command(
    "rollback", summary="Have readers read the design of before the last cutover.", example="nodestate design rollback"
)
@_FORCE_OPTION
def rollback(run: Run, force: bool) -> None:
    """Have readers read the design that they read before the last cutover. Consumers keep writing the present one."""
    with DesignSwitch(run, "rollback") as switch:
        before, _ = switch.record(force=force)
        control = switch.change(lambda now: rolled_back(now, operator_name()), force=force)
        reads = control.names[control.reads]
        nothing = f"there is no cutover to undo: readers read {reads}"
        _print_result(
            run, control, done=f"readers read {reads} again" if control.version != before.version else nothing
        )


@cell_command(
    "retire",
    summary="Have consumers no longer write a design.",
    example="nodestate design retire sql\nnodestate design retire snapshot@8",
)
@click.argument("name")
@click.option(
    "--force",
    is_flag=True,
    help="Also if the design that readers read is not complete, or the store that decides on the control record is "
    "down.",
)
@_COMPARE_TIMEOUT_OPTION
def retire(run: Run, name: str, force: bool, timeout: float) -> None:
    """Have consumers no longer write design NAME.

    Refuses if readers read NAME, or if the design that they read is not complete. If NAME is the last design in its
    number of partitions, the command waits until consumers have left the queues of these partitions; then it deletes
    the queues and removes the stored state.
    """
    with DesignSwitch(run, f"retire {name}") as switch:
        control, _ = switch.record(force=force)
        design = switch.named(name, force=force)
        if "@" not in name:
            require_named(control, design)
        was_written = design in (*control.writes, *control.leaving)
        after = retired(control, design, operator_name())
        last = design.partitions in {one.partitions for one in after.leaving}
        if last:
            run.require_shared(broker=True)
        if after is not control and not force:
            switch.wait_until_complete(control.reads, timeout)
        after = switch.change(lambda now: retired(now, design, operator_name()), force=force)
        if last:
            after = switch.clear(design.partitions, timeout)
        names = display_names([*after.writes, design])
        done = f"consumers {'no longer write' if was_written else 'did not write'} {names[design]}"
        _print_result(run, after, done=done)


@cell_command(
    "sign",
    summary="Sign the control record with the operators' newest key.",
    example="nodestate design sign",
)
@click.option(
    "--force",
    is_flag=True,
    help="Also if the present signature is refused or missing; the record that is printed is then yours.",
)
def sign(run: Run, force: bool) -> None:
    """Sign the control record with the operators' newest key, without another change of it.

    If no store has a record, makes the first one from the settings. See 'nodestate key init --operator'.
    """
    with DesignSwitch(run, "sign") as switch:
        _print_result(run, switch.sign(force=force), done="signed the control record")


for _step in (status, prepare, verify, cutover, rollback, retire, sign):
    command.add_command(_step)
