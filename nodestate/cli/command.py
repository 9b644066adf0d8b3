"""What every command shares: the common options, settings, logs, exit codes, and how errors are told.

Exit codes: 0 done, 1 refused or failed (any ``NodestateError``, or Ctrl-C), 2 bad usage (options, settings, and requests
that can't be right).
"""

from __future__ import annotations

import getpass
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
from rich.console import Console

from nodestate.cli.logs import FORMATS, LEVELS, set_up_logs
from nodestate.config import Config, load
from nodestate.designs import DESIGNS
from nodestate.errors import BadRequestError, ConfigError, NodestateError, NotFoundError
from nodestate.ports import Where

PLAIN_WIDTH_CHARS: Final = 160
"""Width of tables that go into a file or a pipe."""

SECONDS: Final = click.FloatRange(min=0.0)
"""The type of options that are a number of seconds."""

_encode = msgspec.json.Encoder(enc_hook=str).encode


@dataclass(frozen=True)
class Run:
    """One run of a command: its settings, and how it speaks.

    ``config`` are the settings; ``out`` and ``err`` print for people, on stdout and stderr; ``print_json`` prints for
    programs, where ``as_json`` is set.
    """

    config: Config
    as_json: bool
    _flags: dict[str, Any]
    _file: str | None

    @cached_property
    def out(self) -> Console:
        """stdout, for people."""
        return _console(sys.stdout)

    @cached_property
    def err(self) -> Console:
        """stderr, for people."""
        return _console(sys.stderr)

    def print_json(self, value: Any) -> None:
        """One JSON value on stdout; numbers that JSON does not have (an infinite age) are null."""
        click.echo(_encode(value))

    def settings(self, **flags: Any) -> Config:
        """The settings with a command's own flags on top. Raises ``ConfigError``."""
        return load({**self._flags, **flags}, file=self._file)

    def common_option(self, name: str) -> Any:
        """What a common option (broker, store, cell, partitions) says on the command line; None where it is not there."""
        return self._flags[name]

    def require_shared(self, *, broker: bool = False, store: bool = False, designs: Iterable[str] = ()) -> None:
        """Raise ``ConfigError`` where a ``memory://`` would be asked, for the broker, for the store or for where these designs
        live: it is this process's own, so always empty.
        """
        store |= any(DESIGNS[name].where is Where.STORE for name in designs if name in DESIGNS)
        for name, url, needed in (("broker", self.config.broker, broker), ("store", self.config.store, store)):
            if needed and url.startswith("memory:"):
                example = "amqp://user:password@host:5672//" if name == "broker" else "memcached://host:11211"
                raise ConfigError(
                    f"{name} {url} lives within one process, and this is a new one: give --{name} {example} "
                    f"(or NODESTATE_{name.upper()}), or try 'nodestate up', which is all in one process"
                )


def operator_name() -> str:
    """Who says it, for the record."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "?"
    return f"{user}@{socket.gethostname()}"


def _console(file: Any) -> Console:
    return Console(file=file, width=None if file.isatty() else PLAIN_WIDTH_CHARS, highlight=False)


def cell_command(
    name: str, *, example: str, summary: str | None = None, log_level: str = "warning"
) -> Callable[[Callable[..., int | None]], click.Command]:
    """Make a command of a function that takes a ``Run`` and its own options, and returns an exit code (None: 0).

    ``summary`` stands in the list of commands; ``example`` ends the text of ``--help``; ``log_level`` is what is
    logged where ``--log-level`` is not given.
    """

    def make(function: Callable[..., int | None]) -> click.Command:
        def run(**given: Any) -> None:
            sys.exit(_run(function, given))

        params = getattr(function, "__click_params__", [])
        return click.Command(
            name,
            callback=run,
            help=function.__doc__,
            short_help=summary,
            params=[*reversed(params), *_common_options(log_level)],
            epilog="\b\nExample:\n" + "\n".join(f"  {line}" for line in example.splitlines()),
            context_settings={"max_content_width": 110, "show_default": True},
        )

    return make


def _common_options(log_level: str) -> list[click.Option]:
    return [
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON, for programs."),
        click.Option(["--config", "settings_file"], metavar="FILE", help="TOML file of settings."),
        click.Option(["--broker"], metavar="URL", help="Message broker: amqp://…, redis://…, memory://."),
        click.Option(["--store"], metavar="URL", help="Store: memcached://host:port,…, memory://."),
        click.Option(["--cell"], metavar="NAME", help="Which cell."),
        click.Option(["--partitions"], metavar="N", type=int, help="Partitions of the cell."),
        click.Option(["--log-level"], type=click.Choice(LEVELS), default=log_level, help="Log from here on."),
        click.Option(["--log-format"], type=click.Choice(FORMATS), default="console", help="Form of logs on stderr."),
    ]


def _run(function: Callable[..., int | None], given: dict[str, Any]) -> int:
    as_json = given.pop("as_json")
    set_up_logs(given.pop("log_level"), given.pop("log_format"))
    file = given.pop("settings_file")
    flags = {name: given.pop(name) for name in ("broker", "store", "cell", "partitions")}
    try:
        with _sigterm_as_ctrl_c():
            return function(Run(load(flags, file=file), as_json, flags, file), **given) or 0
    except NodestateError as error:
        if as_json:
            click.echo(_encode({"error": str(error), "kind": error.kind, **vars(error)}), err=True)
        else:
            click.echo(f"nodestate: {error}", err=True)
        bad_usage = isinstance(error, ConfigError | BadRequestError) and not isinstance(error, NotFoundError)
        return 2 if bad_usage else 1


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """A service manager's way to end a process runs the same clean-up as a person's."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread: signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
