"""Services as processes of their own, started as an operator starts them and ended by their process id."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from harness.processes import COMMAND, ModuleProcess, start_module
from harness.waiting import PATIENCE_S, wait_until

LOG_TAIL_CHARACTERS: Final = 4_000
_SIGTERM_BIT: Final = 1 << (signal.SIGTERM - 1)


def catches_sigterm(pid: int) -> bool:
    """True once the process has a handler of its own for SIGTERM, and True if the process has ended.

    Before that, SIGTERM ends a Python process at once and without its last output. On a busy machine a process needs
    seconds from its start to its handler.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return True
    if "\nState:\tZ" in status:
        return True
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) & _SIGTERM_BIT)


class Service:
    """A command of nodestate that runs until SIGTERM and then prints its counters.

    (new) --start--> running --kill, stop--> ended --start--> running      running --pause--> paused --resume--> running

    Args:
        folder: where the files of its lives go.
        name: its name in messages of tests and in the names of its files.
        words: the command with its options.
        settings: nodestate's settings as environment variables. A change takes effect at the next start.
    """

    def __init__(self, folder: Path, name: str, words: Sequence[str], settings: dict[str, str]) -> None:
        self.name = name
        self.settings = settings
        """nodestate's settings as environment variables."""
        self._words = words
        """The command."""
        self._folder = folder
        """Where the files of its lives go: log and last output."""
        self._lives = 0
        """How often it was started."""
        self._to_live = False
        """True from ``start`` until the test ends it."""
        self._process: ModuleProcess | None = None

    @property
    def pid(self) -> int:
        """The process id of the current life."""
        assert self._process is not None, "start it first"
        return self._process.pid

    @property
    def started(self) -> bool:
        """True if it was ever started."""
        return self._lives > 0

    @property
    def running(self) -> bool:
        """True while its process lives, also while it is paused."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Begin another life, with files of its own for its log and its last output."""
        assert not self.running
        self._lives += 1
        self._to_live = True
        with self._path("log").open("wb") as log, self._path("json").open("wb") as out:
            words = [*self._words, "--json", "--log-format", "json"]
            self._process = start_module(COMMAND, words, self.settings, stdout=out, stderr=log, own_session=True)

    def kill(self) -> None:
        """End it by SIGKILL, also if it is paused. Does nothing if it does not run."""
        self._to_live = False
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def require_alive(self) -> None:
        """Raise AssertionError, with the end of its log, if it ended although the test did not end it."""
        assert self.running or not self._to_live, f"{self.name} ended by itself:\n{self._log_tail()}"

    def pause(self) -> None:
        """Freeze the process (SIGSTOP)."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let the frozen process continue (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> dict[str, Any]:
        """End it in order (SIGTERM); returns the counters that it prints at its end."""
        assert self._process is not None, "start it first"
        self.require_alive()
        self._to_live = False
        pid = self._process.pid
        wait_until(lambda: catches_sigterm(pid), f"{self.name} installs no handler for SIGTERM")
        self._process.terminate()
        try:
            code = self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} does not end on SIGTERM:\n{self._log_tail()}") from None
        assert code == 0, f"{self.name} ended with {code}:\n{self._log_tail()}"
        counters: dict[str, Any] = json.loads(self._path("json").read_bytes())
        return counters

    def log_text(self) -> str:
        """Return the log of the current life."""
        return self._path("log").read_text(errors="replace")

    def logged(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """Return the log entries of the current life with this event and these fields."""
        found = []
        for line in self.log_text().splitlines():
            if event not in line:  # parsing all lines of a long log costs more than this search
                continue
            try:
                entry = json.loads(line)
            except ValueError:  # the last line is incomplete so far
                continue
            if entry.get("event") == event and all(entry.get(name) == value for name, value in fields.items()):
                found.append(entry)
        return found

    def wait_for_log(self, event: str, count: int = 1, **fields: Any) -> list[dict[str, Any]]:
        """Wait until the current life has logged this at least ``count`` times; returns the entries."""

        def logged_often_enough() -> bool:
            self.require_alive()
            return len(self.logged(event, **fields)) >= count

        wait_until(
            logged_often_enough,
            lambda: (
                f"{self.name} logged {event!r} {len(self.logged(event, **fields))} of {count} times:\n"
                f"{self._log_tail()}"
            ),
        )
        return self.logged(event, **fields)

    def _log_tail(self) -> str:
        return self.log_text()[-LOG_TAIL_CHARACTERS:]

    def _path(self, suffix: str) -> Path:
        return self._folder / f"{self.name.replace(' ', '-').replace('/', '-of-')}-life-{self._lives}.{suffix}"


class Member(Service):
    """One consumer of a cell: ``nodestate consume --member NUMBER/MEMBERS``."""

    def __init__(self, folder: Path, number: int, members: int, settings: dict[str, str]) -> None:
        super().__init__(folder, f"member {number}/{members}", ["consume", "--member", f"{number}/{members}"], settings)
