"""Start Python modules as processes of their own: in new interpreters, or forked from one that has imported them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from harness.fork_server import ForkedProcess, ForkServer

COMMAND: Final = "nodestate.cli"
"""The module of the command ``nodestate``: it runs without a script on PATH."""

ModuleProcess = subprocess.Popen[bytes] | ForkedProcess

_servers: list[ForkServer] = []
"""The server that forks processes; none: each process is a new interpreter."""


def environment_without_settings() -> dict[str, str]:
    """The environment of this process without nodestate's settings, which would apply to every process it starts."""
    return {name: value for name, value in os.environ.items() if not name.startswith("NODESTATE_")}


@contextmanager
def forked_processes() -> Iterator[None]:
    """Fork all processes that are started within this context. It changes nothing where that is not possible.

    Benchmarks do not use it: they measure processes as an operator starts them.
    """
    if not ForkServer.is_possible():
        yield
        return
    _servers.append(ForkServer())
    try:
        yield
    finally:
        _servers.pop().close()


def start_module(
    module: str,
    words: Sequence[str],
    settings: Mapping[str, str],
    *,
    folder: Path | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int | IO[bytes] | None = subprocess.PIPE,
    own_session: bool = False,
) -> ModuleProcess:
    """Start ``python -m MODULE WORDS`` with these settings as environment variables; the caller waits for it.

    Args:
        module: The module.
        words: Its arguments.
        settings: nodestate's settings, which replace the settings of this process.
        folder: Where it runs; None: where this process runs.
        stdin: As for ``subprocess.Popen``.
        stdout: As for ``subprocess.Popen``.
        stderr: As for ``subprocess.Popen``.
        own_session: If true, Ctrl-C in the terminal of the test run does not reach it.
    """
    environment = {**environment_without_settings(), **settings}
    if _servers:
        return _servers[-1].start(module, words, environment, folder=folder, stdin=stdin, stdout=stdout, stderr=stderr)
    return subprocess.Popen(  # noqa: S603 - our own modules
        [sys.executable, "-m", module, *words],
        env=environment,
        cwd=folder,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=own_session,
    )
