"""The commands; the composition root."""

from __future__ import annotations

import click

from nodestate import __version__
from nodestate.cli import agent, boot, check, consume, design, doctor, publish, resync, select, sql, top, up, view
from nodestate.cli.command import Commands
from nodestate.cli.migrations import end, evacuate, move, resize
from nodestate.cli.reservations import confirm, extend, release, reservations, reserve


@click.group(cls=Commands, context_settings={"max_content_width": 110})
@click.version_option(__version__, prog_name="nodestate")
def main() -> None:
    """The state of every compute node, in memcached and a message queue.

    Try 'nodestate up'. Settings come from options, then NODESTATE_… in the environment, then a TOML file.
    """


for _command in (
    *(up.command, agent.command, publish.command, consume.command, view.command, top.command, check.command),
    *(select.command, boot.command, reserve, confirm, extend, release, reservations, move, evacuate, resize, end),
    *(design.command, sql.command, resync.command, doctor.command),
):
    main.add_command(_command)


def every_command(group: click.Group = main, before: str = "") -> dict[str, click.Command]:
    """All commands by what is typed, those of groups as ``design prepare``."""
    found: dict[str, click.Command] = {}
    for name, one in group.commands.items():
        words = f"{before} {name}".strip()
        found |= every_command(one, words) if isinstance(one, click.Group) else {words: one}
    return found
