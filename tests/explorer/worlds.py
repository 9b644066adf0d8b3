"""The worlds that are explored, by name, and the counterexamples of faults that were fixed."""

from __future__ import annotations

from functools import partial
from typing import Final, NamedTuple

from tests.explorer.cell_world import WORK, CellWorld
from tests.explorer.replica_world import ReplicaWorld
from tests.explorer.scheduling_world import SchedulingWorld
from tests.explorer.search import MakeWorld, Path
from tests.explorer.switching_world import OPERATOR, SwitchingWorld

CONSUMERS: Final = ("A", "B")
ONE_CONSUMER: Final = ("B", "agents", WORK)
"""Choices that are left out in order to explore one consumer and its readers further."""

BOTH: Final = ("snapshot", "journal")
ONE_FAULT: Final = ("crash", "lost reply", "late reply", "eviction", "flush", "disconnect")
"""Faults in worlds with a switch of designs."""

WORLDS: Final[dict[str, MakeWorld]] = {
    "freezes of the owner": partial(CellWorld, (), 0, ("A",), (*ONE_CONSUMER, "reader")),
    "two owners": partial(CellWorld, ("disconnect",), 2, CONSUMERS),
    "crashes": partial(CellWorld, ("crash",), 2, CONSUMERS),
    "lost replies": partial(CellWorld, ("lost reply", "late write"), 1, CONSUMERS),
    "lost items": partial(CellWorld, ("eviction", "flush"), 1),
    "lost items of a journal": partial(CellWorld, ("eviction", "flush"), 1, designs=("journal",)),
    "reboot of the servers": partial(CellWorld, ("reboot", "disconnect"), 2, ()),
    "frozen server": partial(CellWorld, ("frozen server",), 1, ("reader",), (*ONE_CONSUMER, "new reader", "8 s")),
    "frozen server and crash": partial(CellWorld, ("frozen server", "crash"), 2),
    "deleted queue": partial(CellWorld, ("queue deleted", "crash", "disconnect"), 2, ("A",)),
    "duplicates": partial(CellWorld, ("duplicate", "crash"), 2, ("A",)),
    "late replies": partial(CellWorld, ("late reply",), 2, ("A", "reader"), (*ONE_CONSUMER, "8 s")),
    "switch of designs": partial(SwitchingWorld, (), 3, ONE_FAULT, 1, CONSUMERS, designs=BOTH),
    "prepare and cutover": partial(SwitchingWorld, ("journal@1",), 3, ("crash", "flush"), 1, (), ("new reader",)),
    "switch of a journal": partial(SwitchingWorld, (), 4, ONE_FAULT, 2, (), ("agents",), designs=BOTH[::-1]),
    "pauses in a switch": partial(SwitchingWorld, (), 3, (), 0, ("reader", OPERATOR), ONE_CONSUMER, designs=BOTH),
    "switch of layouts": partial(SwitchingWorld, ("snapshot@2",), 4, ("crash", "flush"), 1, (), ("new reader",)),
    "replicas": partial(
        ReplicaWorld,
        "snapshot",
        left_out=("B", "agents", "reader", "new reader", "1 s", "8 s", "new consumers, all servers"),
    ),
    "two boots": partial(SchedulingWorld, ("s1 boots a", "s2 boots b")),
    "boot and reservation": partial(SchedulingWorld, ("s1 boots a large", "s2 reserves b"), pausing=False),
    "late answers": partial(SchedulingWorld, ("s1 boots a", "s2 evacuates a"), ("answers are late",), pausing=False),
    "crashes of schedulers": partial(SchedulingWorld, ("s1 boots a", "s2 evacuates a"), ("crash",), 2),
    "end of a booting instance": partial(
        SchedulingWorld, ("s1 boots a", "s2 terminates a"), ("answers are late", "the agent is killed"), pausing=False
    ),
    "refusals": partial(SchedulingWorld, ("s1 boots a", "s2 evacuates a"), ("n0 drains",), pausing=False),
    "lost claims": partial(SchedulingWorld, ("s1 boots a large", "s2 reserves b"), ("claims are lost",), pausing=False),
}
"""Each is small in another way: the fewer choices a world has, the longer are the sequences that can all be taken."""


class Counterexample(NamedTuple):
    """A sequence of choices that broke an invariant before a fix."""

    world: str
    """A key of ``WORLDS``."""
    path: Path
    """The choices."""


COUNTEREXAMPLES: Final[dict[str, Counterexample]] = {
    "V1": Counterexample(
        "frozen server", ("1 s", "A", "event", "frozen server", "reader", "the server wakes", "reader")
    ),
    "V3": Counterexample("deleted queue", ("event", "queue deleted", WORK, "reader")),
    "V4": Counterexample(
        "boot and reservation", ("s1 boots a large", "s1:order", "12 s", "s2 reserves b", "s1", "agents")
    ),
    "V8": Counterexample(
        "late answers", ("s1 boots a", "s1", "answers are late", "agents", "s2 evacuates a", "12 s", "s1")
    ),
    "V9": Counterexample("reboot of the servers", ("reboot", WORK, "reader")),
    "early cutover": Counterexample("prepare and cutover", ("prepare journal@1", "cutover journal@1", "reader")),
    "early acknowledgement": Counterexample(
        "replicas",
        (
            "only server 1",
            WORK,
            "new consumers, only server 0",
            "event",
            "A",
            "new consumers, only server 1",
            WORK,
        ),
    ),
    "V10": Counterexample("freezes of the owner", ("1 s", "A:pause", "event", "8 s", "A", "new reader")),
}
"""By the name of a fix (``fixes.FIXES``), the shortest sequence that breaks an invariant without it."""
