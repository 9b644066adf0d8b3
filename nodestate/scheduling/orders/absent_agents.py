"""Boots that wait for agents that were absent for a moment, as after the death of a node of a RabbitMQ cluster.

An order to a node without an agent comes back at once. While all agents of a broker node connect to another one, a boot
would ask every node within milliseconds and fail, although there is room. Instead it waits, and asks them again::

    no node is left, and agents were absent --hold--> waiting --0.25, 0.5, 1, 2 s--> unplaced
    the same, ``answer_timeout_s`` after the first wait --> failed, as without this module
"""

from __future__ import annotations

from typing import Final

from nodestate.ports import Clock
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.orders.boot import Boot
from nodestate.scheduling.orders.refusals import NO_AGENT

FIRST_WAIT_S: Final = 0.25
"""Seconds until a boot asks absent agents again. Each further wait is twice as long."""


class AbsentAgents:
    """The boots of one scheduler that wait for absent agents.

    Args:
        fleet: The nodes as the last view shows them.
        clock: The time.
        patience_s: Maximum time in seconds from the first to the last wait of a boot.
    """

    def __init__(self, fleet: Fleet, clock: Clock, patience_s: float) -> None:
        self._fleet = fleet  # the nodes as the last view shows them
        self._clock = clock  # the time
        self._patience_s = patience_s  # see the class
        self._waiting: list[tuple[float, Boot]] = []  # each boot with the monotonic time at which it asks again

    def __len__(self) -> int:
        return len(self._waiting)

    def idle_s(self, longest_s: float) -> float:
        """Return the seconds until a boot asks again; ``longest_s`` if that is less, or if no boot waits."""
        now = self._clock.monotonic()
        return min([longest_s, *(max(0.0, at - now) for at, _ in self._waiting)])

    def hold(self, boot: Boot) -> bool:
        """Let a boot wait that would fail, if agents of nodes that it asked were absent.

        Returns False if no agent was absent, or if the boot has waited for long enough: it fails then. A member of an
        affinity group does not wait, because the other members depend on its node.
        """
        absent = [refusal.node for refusal in boot.refusals if refusal.reason == NO_AGENT]
        now = self._clock.monotonic()
        if not absent or boot.follows_others or now >= boot.wait_until(now + self._patience_s):
            return False
        boot.ask_again([row for node in absent if (row := self._fleet.rows.get(node)) is not None], NO_AGENT)
        self._waiting.append((now + FIRST_WAIT_S * 2**boot.waits_count, boot))
        boot.waits_count += 1
        return True

    def release(self) -> list[Boot]:
        """Return the boots that are to ask again now; they no longer wait."""
        now = self._clock.monotonic()
        due = [boot for at, boot in self._waiting if at <= now]
        self._waiting = [(at, boot) for at, boot in self._waiting if at > now]
        return due
