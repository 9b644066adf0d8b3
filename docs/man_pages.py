"""Writes a page of the manual for each command: ``python docs/man_pages.py build/man``."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from inspect import cleandoc
from pathlib import Path

import click
from click_man.core import write_man_pages

from nodestate import __version__
from nodestate.cli import main
from nodestate.cli.command_group import CommandGroup


def write_pages(folder: Path, date: str) -> None:
    """Write ``nodestate.1``, ``nodestate-view.1`` and so on into a folder. ``date``: the day for their headers."""
    folder.mkdir(parents=True, exist_ok=True)
    write_man_pages("nodestate", _prepared(main), version=__version__, target_dir=str(folder), date=date)
    for page in folder.glob("nodestate*.1"):
        page.write_text("\n".join(map(_protected, page.read_text().splitlines())) + "\n")


def _prepared(command: click.Command) -> click.Command:
    """Load all commands of a group, and put the example of each command into the text that becomes its page.

    Changes the command. The result is the command itself.
    """
    if isinstance(command, CommandGroup):
        command.commands = command.load_all()
    if isinstance(command, click.Group):
        for each in command.commands.values():
            _prepared(each)
    if command.epilog:
        command.help = f"{cleandoc(command.help or '')}\n\n{command.epilog}"
    return command


def _protected(line: str) -> str:
    """Return a line of a page that troff does not take for a request because of a quotation mark at its beginning."""
    return rf"\&{line}" if line.startswith("'") else line


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]), datetime.now(UTC).date().isoformat())
