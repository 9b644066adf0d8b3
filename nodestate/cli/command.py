"""Parts that every command shares: common options, settings, logs, exit codes and the printing of errors.

Exit codes: 0 done; 1 refused or failed (any ``NodestateError``, or Ctrl-C); 2 bad usage (a wrong option, a wrong
setting or a request that breaks its format).
"""

from __future__ import annotations

import getpass
import json
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import click
import msgspec
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from nodestate.cli.logs import FORMATS, LEVELS, mask_secrets_of, set_up_logs
from nodestate.config import Config, LoadedConfig, load, load_with_sources
from nodestate.designs import DESIGNS
from nodestate.errors import BadRequestError, ConfigError, NodestateError, NotFoundError
from nodestate.ports import StoreRole
from nodestate.text import printable, printable_json

PLAIN_WIDTH_CHARS: Final = 160
"""Width of tables that are printed into a file or a pipe."""

SECONDS: Final = click.FloatRange(min=0.0)
"""Type of options that are a number of seconds."""

_encoder: Final = msgspec.json.Encoder(enc_hook=str)


def _encode(value: Any) -> bytes:
    """Encode a value as JSON. Bytes of an argument or variable that are not UTF-8 become escapes."""
    try:
        return printable_json(_encoder.encode(value))
    except UnicodeEncodeError:
        return json.dumps(value, default=str).encode()


@dataclass(frozen=True)
class Run:
    """One run of a command: its settings and its output.

    Commands print for people on ``out`` and ``err``. If ``as_json`` is true, they call ``print_json`` instead.
    """

    config: Config
    """The settings, with the common options on top."""
    as_json: bool
    """True if ``--json`` was given."""
    _flags: dict[str, Any]
    """Values of the common options that are settings (broker, store, cell, partitions); None if not given."""
    _file: str | None
    """Value of ``--config``; None if not given."""

    @cached_property
    def out(self) -> Console:
        """Console for people on stdout."""
        return _console(sys.stdout)

    @cached_property
    def err(self) -> Console:
        """Console for people on stderr."""
        return _console(sys.stderr)

    def print_json(self, value: Any) -> None:
        """Print one JSON value on stdout. An infinite number, such as the age of an empty view, is null."""
        click.echo(_encode(value))

    def settings(self, **flags: Any) -> Config:
        """Return the settings with a command's own options on top. Raises ``ConfigError`` if one does not fit."""
        return _load({**self._flags, **flags}, self._file)

    def loaded_settings(self) -> LoadedConfig:
        """Return the settings and where each of them came from."""
        return load_with_sources(self._flags, file=self._file)

    def common_option(self, name: str) -> Any:
        """Return the value of a common option (broker, store, cell or partitions), None if it was not given."""
        return self._flags[name]

    def require_shared(self, *, broker: bool = False, store: bool = False, designs: Iterable[str] = ()) -> None:
        """Raise ``ConfigError`` if the command would connect to a ``memory://`` broker or store.

        Such a broker or store exists within one process, so in a command of its own it is always empty.

        Args:
            broker: The command connects to the broker.
            store: The command connects to the store.
            designs: The command connects to the store if one of these designs is kept there.
        """
        store |= any(DESIGNS[name].store_role is StoreRole.STORE for name in designs if name in DESIGNS)
        for name, url, needed in (("broker", self.config.broker, broker), ("store", self.config.store, store)):
            if needed and url.startswith("memory:"):
                example = "amqp://user:password@host:5672//" if name == "broker" else "memcached://host:11211"
                raise ConfigError(
                    f"give --{name} {example} (or NODESTATE_{name.upper()}): {url} exists only within one process, and "
                    f"this command is a process of its own. {url} is also the default if no {name} is set; "
                    "'nodestate up' runs a cell in one process"
                )


def operator_name() -> str:
    """Return ``user@host`` of this process, which the control record and reservations keep as their author."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a user id that has no name
        user = "?"
    return f"{user}@{socket.gethostname()}"


class PrintableConsole(Console):
    """A console that prints any text with ``printable``. Colours and cursor movements of rich itself stay."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, with escapes in place of characters that are not printable."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control or text.isprintable() else Segment(printable(text), style)


def _console(file: Any) -> Console:
    return PrintableConsole(file=file, width=None if file.isatty() else PLAIN_WIDTH_CHARS, highlight=False)


def cell_command(
    name: str, *, example: str, summary: str | None = None, log_level: str = "warning", embedded: bool = False
) -> Callable[[Callable[..., int | None]], click.Command]:
    """Make a command from a function that takes a ``Run`` and the values of the command's own options.

    The function returns the exit code; None is 0. Its docstring is the text of ``--help``.

    Args:
        name: The word that an operator types.
        example: One or more command lines; they end the text of ``--help``.
        summary: Line in the list of commands of a group. Commands of ``nodestate`` itself have theirs in ``COMMANDS``.
        log_level: Level if ``--log-level`` is not given.
        embedded: Whether the command embeds a broker and a store if none is given; for the text of ``--help`` only.
    """

    def make(function: Callable[..., int | None]) -> click.Command:
        def run(**values: Any) -> None:
            sys.exit(_run(function, values))

        params = getattr(function, "__click_params__", [])
        return click.Command(
            name,
            callback=run,
            help=function.__doc__,
            short_help=summary,
            params=[*reversed(params), *_common_options(log_level, embedded=embedded)],
            epilog="\b\nExample:\n" + "\n".join(f"  {line}" for line in example.splitlines()),
            context_settings={"max_content_width": 110, "show_default": True},
        )

    return make


def _common_options(log_level: str, *, embedded: bool) -> list[click.Option]:
    return [
        click.Option(
            ["--json", "as_json"],
            is_flag=True,
            help="Print JSON for programs instead of text; errors as well, on stderr.",
        ),
        click.Option(
            ["--config", "settings_file"],
            metavar="FILE",
            help="TOML file of settings.",
            show_default="NODESTATE_CONFIG, else nodestate.toml, else /etc/nodestate/nodestate.toml",
        ),
        click.Option(
            ["--broker"],
            metavar="URL",
            help="URL of the message broker, as amqp://user:password@host:5672// or redis://host:6379.",
            show_default="embedded" if embedded else "NODESTATE_BROKER",
        ),
        click.Option(
            ["--store"],
            metavar="URL",
            help="Servers of the store, as memcached://host1:11211,host2:11211.",
            show_default="embedded" if embedded else "NODESTATE_STORE",
        ),
        click.Option(["--cell"], metavar="NAME", help="Name of the cell.", show_default="NODESTATE_CELL, else cell1"),
        click.Option(
            ["--partitions"],
            metavar="N",
            type=int,
            help="Number of partitions of a new cell; an existing cell has the number in its control record.",
            show_default="NODESTATE_PARTITIONS, else 8",
        ),
        click.Option(
            ["--log-level"],
            type=click.Choice(LEVELS),
            default=log_level,
            help="Log events of this level and above, on stderr.",
        ),
        click.Option(
            ["--log-format"],
            type=click.Choice(FORMATS),
            default="console",
            help="Print logs as text (console) or as one JSON object a line (json).",
        ),
    ]


def _run(function: Callable[..., int | None], values: dict[str, Any]) -> int:
    as_json = values.pop("as_json")
    set_up_logs(values.pop("log_level"), values.pop("log_format"))
    file = values.pop("settings_file")
    flags = {name: values.pop(name) for name in ("broker", "store", "cell", "partitions")}
    try:
        with _sigterm_as_interrupt():
            return function(Run(_load(flags, file), as_json, flags, file), **values) or 0
    except NodestateError as error:
        if as_json:
            click.echo(_encode({"error": str(error), "kind": error.kind, **error.json_fields()}), err=True)
        else:
            click.echo(printable(f"nodestate: {error}"), err=True)
        bad_usage = isinstance(error, ConfigError | BadRequestError) and not isinstance(error, NotFoundError)
        return 2 if bad_usage else 1


def _load(flags: dict[str, Any], file: str | None) -> Config:
    config = load(flags, file=file)
    mask_secrets_of(config)
    return config


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM: a service manager then causes the same clean-up as Ctrl-C."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # Python allows signal handlers in the main thread only
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
