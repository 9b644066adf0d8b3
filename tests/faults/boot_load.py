"""Clients in threads that boot and terminate instances until the test ends them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from threading import Event, Thread
from typing import Final

from harness.waiting import wait_until

BOOTS_COUNT: Final = 50
"""Instances for which ``wait_for_more`` waits: more than all clients of a test boot at a time."""


class BootLoad:
    """The threads.

    Args:
        clients: each is called again and again in a thread of its own, with the load and the number of the call. It
            adds the nodes of the instances that it boots to ``nodes``. If it fails for a known reason, it calls
            ``pause``.
    """

    def __init__(self, clients: Sequence[Callable[[BootLoad, int], None]]) -> None:
        self.nodes: list[str] = []
        """The nodes of all instances that were booted."""
        self._stop = Event()
        self._threads = [Thread(target=self._run, args=(client,)) for client in clients]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def pause(self) -> None:
        """Wait a moment, or until the load ends."""
        self._stop.wait(0.1)

    def wait_for_more(self) -> None:
        """Wait until more instances were booted."""
        before = len(self.nodes)
        wait_until(lambda: len(self.nodes) >= before + BOOTS_COUNT, "no more instances are booted")

    def _run(self, client: Callable[[BootLoad, int], None]) -> None:
        for count in itertools.count():
            if self._stop.is_set():
                return
            client(self, count)
