"""The group of all commands: it imports the module of a command when that command runs, and not before.

``nodestate --help`` prints names and summaries only, so it needs none of the libraries that commands need (numpy,
kombu, SQLAlchemy, rich). Importing them all costs more than half a second of CPU.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import click

from nodestate.cli.streams import OutputError, set_up_streams
from nodestate.masking import safe_text
from nodestate.text import printable

USAGE_KIND: Final = "usage"
"""The ``kind`` of errors in options and arguments. Those of nodestate's own errors stand in ``nodestate.errors``."""

_AS_JSON: Final = "nodestate.as_json"


class CommandEntry(NamedTuple):
    """Where a command is defined, and its line in the list of commands."""

    module: str
    """Module that defines the command."""
    attribute: str
    """Name of the command in its module."""
    summary: str
    """One sentence that the list of commands shows."""


class CommandGroup(click.Group):
    """Group that loads a command on its first use, and with ``--json`` prints errors of usage as JSON."""

    def __init__(self, name: str | None = None, *, entries: Mapping[str, CommandEntry], **attributes: Any) -> None:
        super().__init__(name, **attributes)
        self._entries = entries

    def main(self, *args: Any, **named: Any) -> Any:
        """Run as click does, with streams that may be closed or full. Exits with 1 if a result can't be written."""
        set_up_streams()
        try:
            return super().main(*args, **named)
        except OutputError as error:  # of a help text: commands handle their own errors
            click.echo(printable(f"nodestate: {error}"), err=True)
            sys.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order of their entries."""
        del ctx
        return list(self._entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command. Returns None if there is no command of this name."""
        del ctx
        return self.load(cmd_name) if cmd_name in self._entries else None

    def load(self, name: str) -> click.Command:
        """Import a command's module and return the command. Raises KeyError if there is no command of this name."""
        entry = self._entries[name]
        command: click.Command = getattr(importlib.import_module(entry.module), entry.attribute)
        command.short_help = entry.summary
        return command

    def load_all(self) -> dict[str, click.Command]:
        """Import and return all commands by name, in the order of their entries."""
        return {name: self.load(name) for name in self._entries}

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands into the help, from the entries alone."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in self._entries.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does, and remember whether ``--json`` was given: an error of usage does not say that later."""
        ctx.meta[_AS_JSON] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. With ``--json``, an error of usage is printed on stderr as ``{"error", "kind"}``."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            vars(error)["message"] = safe_text(error.message)  # it may repeat an argument
            if not ctx.meta[_AS_JSON]:
                raise
            answer = {"error": error.format_message(), "kind": USAGE_KIND}
            click.echo(json.dumps(answer, separators=(",", ":")), err=True)
            ctx.exit(error.exit_code)


def every_command(group: click.Group, before: str = "") -> dict[str, click.Command]:
    """Load all commands of a group; the keys are the words that an operator types, such as ``design prepare``."""
    commands = group.load_all() if isinstance(group, CommandGroup) else group.commands
    found: dict[str, click.Command] = {}
    for name, command in commands.items():
        words = f"{before} {name}".strip()
        found |= every_command(command, words) if isinstance(command, click.Group) else {words: command}
    return found
