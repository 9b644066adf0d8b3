"""Messages to systemd: that the process is ready, that its loop still runs, that it stops (``man sd_notify``).

They are datagrams to the socket that the variable ``NOTIFY_SOCKET`` names, which systemd sets for units of
``Type=notify``. Without it, nothing is sent. With ``WatchdogSec``, systemd restarts a process whose loop finishes no
step for that long.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

WATCHDOG_SHARE: Final = 4
"""The watchdog is told this many times within its time."""


class ServiceManager:
    """Tells systemd about the loop of this process.

    starting --the first step is done--> ready --``stopping``--> stopping

    Args:
        environ: the environment, which names the socket and the time of the watchdog.
        monotonic: the time in seconds.
    """

    def __init__(
        self, environ: Mapping[str, str] = os.environ, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._monotonic = monotonic
        # The address of the socket; empty if there is none. "@" stands for the NUL of an abstract address.
        self._address = environ.get("NOTIFY_SOCKET", "").replace("@", "\0", 1)
        self._is_ready = False
        # Pause between two messages to the watchdog, in seconds; None if no watchdog waits for them.
        self._pause_s = self._watchdog_s(environ)
        # Monotonic time from which the next one is due.
        self._due_at = monotonic()

    def step_done(self) -> None:
        """Tell that the loop has finished a step. Sends at most one message per quarter of the watchdog's time."""
        if not self._is_ready:
            self._is_ready = True
            self._send("READY=1")
        if self._pause_s is not None and (now := self._monotonic()) >= self._due_at:
            self._due_at = now + self._pause_s
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Tell that the process ends."""
        if self._is_ready:
            self._send("STOPPING=1")

    def _watchdog_s(self, environ: Mapping[str, str]) -> float | None:
        try:
            limit_us = int(environ.get("WATCHDOG_USEC", ""))
            waits = int(environ.get("WATCHDOG_PID", os.getpid())) == os.getpid()
        except ValueError:
            return None
        return limit_us / 1e6 / WATCHDOG_SHARE if self._address and waits and limit_us > 0 else None

    def _send(self, message: str) -> None:
        """Send a message. It is lost if no process reads the socket, because the work must go on."""
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sending:
            sending.setblocking(False)
            sending.sendto(message.encode(), self._address)
