"""Members end in order only after they can: a signal that comes during the start would end them at once."""

from __future__ import annotations

import signal
import subprocess
import sys

from harness.members import catches_sigterm
from harness.waiting import wait_until

_LATE_HANDLER = """
import signal, sys
sys.stdin.readline()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("ready", flush=True)
signal.pause()
"""


def test_process_catches_sigterm_only_after_it_installed_a_handler() -> None:
    """Regression: on a busy machine a member was ended before its handler stood, and had no counters to print."""
    with subprocess.Popen(  # noqa: S603 - a constant program
        [sys.executable, "-c", _LATE_HANDLER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert not catches_sigterm(process.pid)
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
        assert catches_sigterm(process.pid)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: catches_sigterm(process.pid) and process.poll() is not None, "it does not end")
        assert process.returncode == 0
        assert catches_sigterm(process.pid)
