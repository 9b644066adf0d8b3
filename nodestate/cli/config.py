"""The commands ``config …``: show where each setting came from, check the settings, print a file of all settings."""

from __future__ import annotations

import json
import textwrap
from typing import Any, Final

import click
from rich.table import Table
from rich.text import Text

from nodestate import __version__
from nodestate.auth.message_auth import open_keyring
from nodestate.cli.command import Run, cell_command
from nodestate.cli.setting_docs import SettingDoc, setting_docs
from nodestate.config import Config
from nodestate.designs.control_auth import control_auth
from nodestate.ports import SystemClock
from nodestate.text import count_text

DEFAULT: Final = "default"
"""The source of a setting that was not given."""
_WIDTH_CHARS: Final = 100


@click.group("config", epilog="\b\nExample:\n  nodestate config show")
def command() -> None:
    """Show the settings of this machine, check them, or print a settings file to begin with.

    A setting comes from its option, else from the environment variable NODESTATE_…, else from a TOML file: the one that
    --config or NODESTATE_CONFIG names, else nodestate.toml, else /etc/nodestate/nodestate.toml.
    """


@cell_command("show", summary="Show each setting and where it came from.", example="nodestate config show --json")
def show(run: Run) -> None:
    """Show each setting, its value and where the value came from. Passwords are masked."""
    loaded = run.loaded_settings()
    values = {name: (value, loaded.sources.get(name, DEFAULT)) for name, value in loaded.config.__rich_repr__()}
    if run.as_json:
        settings = {name: {"value": value, "source": source} for name, (value, source) in values.items()}
        run.print_json({"file": loaded.file or None, "settings": settings})
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("setting", "value", "from"):
        table.add_column(title, overflow="fold")
    for name, (value, source) in values.items():
        cells = (Text(name), Text(_text(value)), Text(source))  # no markup: it may come from a file
        table.add_row(*cells, style="dim" if source == DEFAULT else None)
    run.out.print(table)
    run.out.print(f"settings file: {loaded.file or 'none'}", markup=False)


@cell_command(
    "check",
    summary="Check the settings and the files that they name.",
    example="nodestate config check --config /etc/nodestate/nodestate.toml",
)
def check(run: Run) -> None:
    """Check the settings and the files of secrets, keys and certificates that they name. Connects to no server.

    Exits with 2 and says the remedy if a setting is wrong. 'nodestate doctor' examines the servers and the cell.
    """
    loaded = run.loaded_settings()
    config, clock = loaded.config, SystemClock()
    for setting in ("auth_events", "auth_orders", "auth_store"):
        open_keyring(config, setting, getattr(config, setting), clock)
    control_auth(config, clock, signs=True)
    notes = _notes(config)
    if run.as_json:
        run.print_json({"file": loaded.file or None, "given": sorted(loaded.sources), "notes": notes})
        return
    given = count_text(len(loaded.sources), "setting")
    run.out.print(f"valid: {given} given; settings file: {loaded.file or 'none'}", markup=False)
    for note in notes:
        run.out.print(f"note: {note}", markup=False)


def _notes(config: Config) -> list[str]:
    """Return sentences about settings that are valid, but rarely meant."""
    inside = [name for name in ("broker", "store") if getattr(config, name).startswith("memory:")]
    return [
        f"{name} is memory://, which exists only within one process: set {name} unless you use 'nodestate up' alone"
        for name in inside
    ]


@cell_command(
    "sample",
    summary="Print a settings file with all settings, their defaults and meanings.",
    example="nodestate config sample > nodestate.toml",
)
def sample(run: Run) -> None:
    """Print a TOML file with all settings, their defaults and meanings. All settings are commented out."""
    docs = setting_docs()
    if run.as_json:
        run.print_json(
            [{"name": doc.name, "default": doc.default, "allowed": doc.allowed, "meaning": doc.meaning} for doc in docs]
        )
        return
    head = (
        f"Settings of nodestate {__version__} with their defaults. To change one, remove the # before its name. Text "
        "stands in quotation marks. A file with passwords must be readable by its owner alone (chmod 600)."
    )
    click.echo("\n\n".join([_comment(head), *map(_sample_of, docs)]))


def _sample_of(doc: SettingDoc) -> str:
    """Return the lines of one setting: its meaning, its values, and the setting with its default."""
    allowed = f" Allowed: {doc.allowed}." if doc.allowed != "text" else ""
    lines = [_comment(f"{doc.meaning}{allowed}"), f"#{doc.name} = {_toml(doc.default)}"]
    if doc.has_file:
        lines.append(f'#{doc.name}_file = "/path/of/a/file/that/has/the/value"')
    return "\n".join(lines)


def _comment(text: str) -> str:
    return textwrap.fill(
        text, _WIDTH_CHARS, initial_indent="# ", subsequent_indent="# ", break_long_words=False, break_on_hyphens=False
    )


def _toml(value: Any) -> str:
    """Return a default as a TOML value. JSON's texts, numbers and lists are TOML's, too."""
    return json.dumps(value)


def _text(value: Any) -> str:
    """Return a value of a setting as it is written in an environment variable."""
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(value) if isinstance(value, tuple) else str(value)


for _command in (show, check, sample):
    command.add_command(_command)
