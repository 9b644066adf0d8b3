"""Run a command while other processes keep the processors busy: ``python -m harness.busy_loops COUNT COMMAND...``.

Exits with the exit code of the command. Tests that pass beside busy loops do not depend on the speed of the machine.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack

_LOOP = "while True: pass"


def run_beside_busy_loops(count: int, command: list[str]) -> int:
    """Start ``count`` processes that never wait, run ``command``, end the processes; returns the command's exit
    code.
    """
    with ExitStack() as loops:
        for _ in range(count):
            loop = loops.enter_context(subprocess.Popen([sys.executable, "-c", _LOOP]))  # noqa: S603 - a constant
            loops.callback(loop.kill)
        return subprocess.run(command, check=False).returncode  # noqa: S603 - the command that the caller typed


if __name__ == "__main__":
    sys.exit(run_beside_busy_loops(int(sys.argv[1]), sys.argv[2:]))
