"""Consumers as processes of their own, started as an operator starts them and ended by their process id."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

STOP_TIMEOUT_S: Final = 20.0
_MAIN: Final = "from nodestate.cli import main; main()"


class Member:
    """``nodestate consume --member i/n``::

    (new) --start--> running --kill, stop--> ended --start--> running      running --pause--> paused --resume--> running
    """

    def __init__(self, folder: Path, number: int, members: int, settings: dict[str, str]) -> None:
        self.name = f"{number}/{members}"
        self.settings = settings
        self._folder = folder
        self._lives = 0
        self._to_live = False
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the current life."""
        assert self._process is not None, "start it first"
        return self._process.pid

    @property
    def running(self) -> bool:
        """True while its process lives, also while it is paused."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Begin another life; its log and its last words stand in files of their own."""
        assert not self.running
        self._lives += 1
        self._to_live = True
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NODESTATE_")}
        with self._path("log").open("wb") as log, self._path("json").open("wb") as out:
            self._process = subprocess.Popen(  # noqa: S603  our own command
                [sys.executable, "-c", _MAIN, "consume", "--member", self.name, "--json", "--log-format", "json"],
                env={**environment, **self.settings},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL, also of a paused one."""
        self._to_live = False
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def require_alive(self) -> None:
        """Nothing ended it that was not the test."""
        assert self.running or not self._to_live, f"member {self.name} ended by itself:\n{self.log_text()[-4000:]}"

    def pause(self) -> None:
        """Freeze the process (SIGSTOP)."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let the frozen process continue (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> dict[str, Any]:
        """SIGTERM; returns the counters that it prints at its end."""
        assert self._process is not None, "start it first"
        self.require_alive()
        self._to_live = False
        self._process.terminate()
        try:
            code = self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"member {self.name} does not end on SIGTERM:\n{self.log_text()[-4000:]}") from None
        assert code == 0, f"member {self.name} ended with {code}:\n{self.log_text()[-4000:]}"
        counters: dict[str, Any] = json.loads(self._path("json").read_bytes())
        return counters

    def log_text(self) -> str:
        """Return the log of the current life."""
        return self._path("log").read_text(errors="replace")

    def logged(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """Log lines of this life with this event and these fields."""
        found = []
        for line in self.log_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry.get("event") == event and all(entry.get(name) == value for name, value in fields.items()):
                found.append(entry)
        return found

    def wait_for(self, event: str, count: int = 1, timeout_s: float = 30.0, **fields: Any) -> list[dict[str, Any]]:
        """Wait until it logged this so often."""
        deadline = time.monotonic() + timeout_s
        while len(found := self.logged(event, **fields)) < count:
            self.require_alive()
            assert time.monotonic() < deadline, (
                f"{self.name} logged {len(found)} x {event!r}:\n{self.log_text()[-4000:]}"
            )
            time.sleep(0.02)
        return found

    def _path(self, suffix: str) -> Path:
        return self._folder / f"member-{self.name.replace('/', '-of-')}-life-{self._lives}.{suffix}"
