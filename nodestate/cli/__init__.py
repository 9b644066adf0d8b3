"""The commands of nodestate: each reads the settings, connects the parts that it needs, and prints the result."""

from __future__ import annotations

from typing import Final

import click

from nodestate import __version__
from nodestate.cli.command_group import CommandEntry, CommandGroup
from nodestate.cli.command_group import every_command as _commands_of

COMMANDS: Final = {
    "up": CommandEntry("nodestate.cli.up", "command", "Run a whole cell in one process, with a live table."),
    "agent": CommandEntry(
        "nodestate.cli.agent", "command", "Report the state of this host, of its hypervisor or of a simulated fleet."
    ),
    "publish": CommandEntry("nodestate.cli.publish", "command", "Publish events from a file of JSON lines."),
    "consume": CommandEntry("nodestate.cli.consume", "command", "Write events from the broker into the store."),
    "view": CommandEntry("nodestate.cli.view", "command", "Print the state of all nodes, within an accepted age."),
    "top": CommandEntry(
        "nodestate.cli.top", "command", "Watch the partitions: owner, term, offset, how far behind, age."
    ),
    "check": CommandEntry("nodestate.cli.check", "command", "Compare the designs with each other and with the agents."),
    "serve": CommandEntry("nodestate.cli.serve", "command", "Serve the HTTP API of a cell."),
    "select": CommandEntry(
        "nodestate.cli.select", "command", "Show which nodes a request would get, without claiming them."
    ),
    "boot": CommandEntry("nodestate.cli.boot", "command", "Claim nodes for instances and have agents build them."),
    "reserve": CommandEntry(
        "nodestate.cli.reservations", "reserve", "Hold nodes for all members of a group, or for none."
    ),
    "confirm": CommandEntry("nodestate.cli.reservations", "confirm", "Build all members of a reservation, or none."),
    "extend": CommandEntry("nodestate.cli.reservations", "extend", "Change how long a reservation is held."),
    "release": CommandEntry("nodestate.cli.reservations", "release", "Release the nodes that a reservation holds."),
    "reservations": CommandEntry("nodestate.cli.reservations", "reservations", "List all reservations of the cell."),
    "migrate": CommandEntry("nodestate.cli.migrations", "migrate", "Move an instance to another node."),
    "evacuate": CommandEntry("nodestate.cli.migrations", "evacuate", "Move all instances off a node."),
    "resize": CommandEntry("nodestate.cli.migrations", "resize", "Change the resources of an instance."),
    "update": CommandEntry("nodestate.cli.migrations", "update", "Change the request of an instance."),
    "terminate": CommandEntry("nodestate.cli.migrations", "terminate", "Terminate instances."),
    "capacity": CommandEntry(
        "nodestate.cli.capacity", "capacity", "Show the room of the fleet, and how many instances of a request fit."
    ),
    "what-if": CommandEntry(
        "nodestate.cli.capacity", "what_if_command", "Answer a request as if some nodes were gone or empty."
    ),
    "node": CommandEntry("nodestate.cli.node", "command", "Show, cordon, uncordon, drain and forget nodes."),
    "design": CommandEntry(
        "nodestate.cli.design", "command", "Show which designs are written and read; switch while the cell runs."
    ),
    "key": CommandEntry("nodestate.cli.key", "command", "Create, replace and revoke the keys of a cell and its nodes."),
    "retag": CommandEntry("nodestate.cli.retag", "command", "Renew the tags of allocations after a change of secrets."),
    "sql": CommandEntry("nodestate.cli.sql", "command", "Create the database's tables, or bring them up to date."),
    "resync": CommandEntry("nodestate.cli.resync", "command", "Ask agents for full reports."),
    "config": CommandEntry("nodestate.cli.config", "command", "Show and check the settings; print a settings file."),
    "completion": CommandEntry(
        "nodestate.cli.completion", "command", "Print a script with which a shell completes commands and nodes."
    ),
    "doctor": CommandEntry("nodestate.cli.doctor", "command", "Report the faults of the cell, each with a remedy."),
}
"""All commands, in the order of ``nodestate --help``."""


@click.group(cls=CommandGroup, entries=COMMANDS, context_settings={"max_content_width": 110})
@click.version_option(__version__, prog_name="nodestate")
def main() -> None:
    """The state of every compute node, in memcached and a message queue.

    To try it: 'nodestate up', which needs no server. A setting comes from its option, else from the environment
    variable NODESTATE_… (NODESTATE_BROKER, NODESTATE_STORE), else from a TOML file (--config). Each command has
    --help with an example, and --json for programs.
    """


def every_command() -> dict[str, click.Command]:
    """Load all commands; the keys are the words that an operator types, such as ``design prepare``."""
    return _commands_of(main)
