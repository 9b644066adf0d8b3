"""The commands; the composition root."""

from __future__ import annotations

import click

from nodestate import __version__
from nodestate.cli import agent, check, consume, design, doctor, publish, resync, top, up, view


@click.group(context_settings={"max_content_width": 110})
@click.version_option(__version__, prog_name="nodestate")
def main() -> None:
    """The state of every compute node, in memcached and a message queue.

    Try 'nodestate up'. Settings come from options, then NODESTATE_… in the environment, then a TOML file.
    """


for _module in (up, agent, publish, consume, view, top, check, design, resync, doctor):
    main.add_command(_module.command)
