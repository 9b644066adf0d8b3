"""The delivery of one node's events: whether its newest state must be sent again, and when."""

from __future__ import annotations

from collections.abc import Callable

from nodestate.ports import Clock
from nodestate.ports.backoff import FIRST_PAUSE_S, next_pause_s


class DeliveryState:
    """Whether the newest full state of a node, and every change after it, are confirmed or on their way::

        clean --an event could not be sent, or was lost or refused--> dirty --a full state is sent--> clean

    The first time an event is lost, the state may be sent again at once. If the broker refuses it again, for example
    because a queue was deleted, the pause doubles up to ``longest_s``; events of other nodes are sent meanwhile.
    """

    __slots__ = ("_clock", "_full_state_generation", "_longest_s", "_next_pause_s", "_on_dirty", "_retry_at", "dirty")

    def __init__(self, clock: Clock, longest_s: float, on_dirty: Callable[[], object]) -> None:
        self.dirty = False
        """True if an event was lost and the newest state was not sent since."""
        self._clock = clock
        """Monotonic time."""
        self._longest_s = longest_s
        """The longest pause in seconds."""
        self._on_dirty = on_dirty
        """Called when an event was lost, unless one was lost before."""
        self._full_state_generation = 0
        """Generation of the last full state that was sent: a report or a leave."""
        self._next_pause_s = 0.0
        """Pause after the next refusal, in seconds."""
        self._retry_at = clock.monotonic()
        """When the state may be sent again, in monotonic seconds."""

    @property
    def may_send_again(self) -> bool:
        """True if the pause after the last refusal is over."""
        return self._clock.monotonic() >= self._retry_at

    def sending_full_state(self, generation: int) -> None:
        """Record that a full state is sent, which supersedes all earlier events. Call it before the event is sent."""
        self._full_state_generation, self.dirty = generation, False

    def lost(self, generation: int) -> None:
        """Record that the event of this generation was not sent."""
        if generation >= self._full_state_generation and not self.dirty:
            self.dirty = True
            self._on_dirty()

    def settled(self, generation: int, ok: bool) -> None:
        """Record the broker's result for the event of this generation. ``ok`` is False if it was lost or refused."""
        if ok:
            self._next_pause_s = 0.0
        elif generation >= self._full_state_generation and not self.dirty:
            self._retry_at = self._clock.monotonic() + self._next_pause_s
            self._next_pause_s = next_pause_s(self._next_pause_s, FIRST_PAUSE_S, self._longest_s)
            self.lost(generation)
