"""Programs, ports, folders and users of this machine that servers need."""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from harness.servers.errors import ServerFailedError, ServerMissingError

# Linux gives the ports from 32768 up to outgoing connections. A server must not have one of these: while the server is
# down, the kernel could give its port to a client that retries, and the client would connect to itself.
PORT_MIN: Final = 15_000
PORT_MAX: Final = 32_000


def find_program(name: str, *first: str) -> str | None:
    """The path of an installed program, looked for in ``first``, PATH, and where Debian keeps servers."""
    path = [*first, os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"]
    return shutil.which(name, path=os.pathsep.join(path))


def require_program(name: str, package: str, *first: str) -> str:
    """The path of a program; raises ServerMissingError with the Debian package that has it."""
    if program := find_program(name, *first):
        return program
    raise ServerMissingError(f"{name} is not installed: apt-get install {package}")


def version_of(program: str, *arguments: str) -> str:
    """The first number with a dot in what a program says of itself."""
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=True)  # noqa: S603 - a server's own tool
    found = re.search(r"\d+\.[\w.+~-]+", done.stdout)
    return found.group() if found else "unknown"


def free_ports(count: int) -> list[int]:
    """Return ``count`` different ports of 127.0.0.1 on which nothing listens."""
    with ExitStack() as held:  # all are held until the last is found, so that none is given out twice
        ports: list[int] = []
        while len(ports) < count:
            port = random.randrange(PORT_MIN, PORT_MAX)
            probe = held.enter_context(socket.socket())
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
        return ports


def make_folder(name: str) -> Path:
    """Create an empty temporary folder whose name says which server it is for."""
    return Path(tempfile.mkdtemp(prefix=f"nodestate-{name}-"))


def run_as(user: str, package: str, folder: Path) -> list[str]:
    """What to put before a command so that it runs as ``user``, who is given the folder; nothing unless run by root."""
    if os.geteuid() != 0:
        return []
    try:
        shutil.chown(folder, user, user)
        # It becomes the command instead of waiting for it as its parent, so the pid started is the server's own.
        setpriv = require_program("setpriv", "util-linux")
    except (LookupError, ServerMissingError) as error:
        folder.rmdir()
        raise ServerMissingError(
            f"there is no user {user}, or no setpriv: apt-get install {package} util-linux"
        ) from error
    return [setpriv, f"--reuid={user}", f"--regid={user}", "--init-groups", "--"]


def prepare(command: Sequence[str], folder: Path) -> None:
    """Run what makes a server's data folder."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)  # noqa: S603 - ditto
    if done.returncode != 0:
        shutil.rmtree(folder, ignore_errors=True)
        raise ServerFailedError(f"{Path(command[0]).name} failed:\n{done.stdout[-2_000:]}{done.stderr[-2_000:]}")
