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
    """Return the path of an installed program, or None.

    Looks in ``first``, PATH, and the folders of Debian's servers.
    """
    path = [*first, os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"]
    return shutil.which(name, path=os.pathsep.join(path))


def require_program(name: str, package: str, *first: str) -> str:
    """Return the path of a program. Raises ServerMissingError, which names the Debian package that contains it."""
    if program := find_program(name, *first):
        return program
    raise ServerMissingError(f"{name} is not installed: apt-get install {package}")


def version_of(program: str, *arguments: str) -> str:
    """Return the first number with a dot in the output of a program, or "unknown"."""
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=True)  # noqa: S603 - a server's own tool
    found = re.search(r"\d+\.[\w.+~-]+", done.stdout)
    return found.group() if found else "unknown"


def free_ports(count: int) -> list[int]:
    """Return ``count`` different ports of 127.0.0.1 on which nothing listens."""
    with ExitStack() as held:  # each port stays bound until the last is found, so that all differ
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
    """Make ``user`` the owner of the folder; returns the words to put before a command so that it runs as this user.

    Returns no words, and changes nothing, unless this process runs as root. Raises ServerMissingError if there is no
    such user.
    """
    if os.geteuid() != 0:
        return []
    try:
        shutil.chown(folder, user, user)
        # setpriv replaces itself by the command, so its process id becomes that of the server.
        setpriv = require_program("setpriv", "util-linux")
    except (LookupError, ServerMissingError) as error:
        folder.rmdir()
        raise ServerMissingError(
            f"there is no user {user}, or no setpriv: apt-get install {package} util-linux"
        ) from error
    return [setpriv, f"--reuid={user}", f"--regid={user}", "--init-groups", "--"]


def prepare(command: Sequence[str], folder: Path) -> None:
    """Run the command that creates a server's data folder. Raises ServerFailedError with its output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)  # noqa: S603 - a server's own tool
    if done.returncode != 0:
        shutil.rmtree(folder, ignore_errors=True)
        raise ServerFailedError(f"{Path(command[0]).name} failed:\n{done.stdout[-2_000:]}{done.stderr[-2_000:]}")
