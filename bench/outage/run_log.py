"""The merged logs of all processes of an outage run: the figures of parts of the run, and violations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from bench.outage.messages import BootSample, InstanceChange, ReadSample, ReservationSample, WorkerLog
from harness.fleet import ConfirmLog
from nodestate.model import Version

REASONS_COUNT: Final = 3
"""Number of different reasons of failures that a part of the run shows."""
VIOLATIONS_COUNT: Final = 20
"""Number of violations that are kept: the first ones say what went wrong."""


class Window(NamedTuple):
    """A part of the run, in seconds of the monotonic clock."""

    began: float
    ended: float


class Figures(NamedTuple):
    """The experience of the users of the cell in one part of the run."""

    refused_reads: int
    """Reads without a view within the bound, of all readers."""
    stale_s: float
    """Seconds without a fresh view in all, of the reader that had most of them."""
    longest_stale_s: float
    """The longest time without a fresh view, of any reader."""
    incomplete_s: float
    """Seconds with an incomplete view, of the reader that had most of them."""
    greatest_age_s: float
    """Greatest age of a view, also of refused ones; infinity if a partition was never confirmed."""
    events: int
    """Events that agents published."""
    boots: int
    """Boots that succeeded."""
    boots_failed: int
    longest_boot_s: float
    """The longest time from the request for a boot to its outcome."""
    reserved: int
    """Reservations that were made."""
    reservations_refused: int
    longest_refused_s: float
    """The longest time from a refused reservation to the next one that was made, by any scheduler."""
    confirmed: int
    """Reservations that were confirmed."""
    confirms_failed: int
    longest_twice_s: float
    """The longest time for which an instance was on two nodes."""
    reasons: Sequence[str]
    """The most frequent reasons of failures, each with its number."""


class InstanceLocations:
    """The nodes of each instance, by the logs of the agents."""

    def __init__(self) -> None:
        self._nodes: dict[str, set[str]] = {}
        # Since when an instance has been on more than one node.
        self._twice_since: dict[str, float] = {}
        # Beginning and end of each time that an instance was on more than one node.
        self._ended: list[Window] = []

    def add(self, changes: Iterable[InstanceChange]) -> None:
        """Take changes in the order of their times."""
        for change in changes:
            nodes = self._nodes.setdefault(change.instance, set())
            (nodes.add if change.built else nodes.discard)(change.node)
            if len(nodes) > 1:
                self._twice_since.setdefault(change.instance, change.at)
            elif change.instance in self._twice_since:
                self._ended.append(Window(self._twice_since.pop(change.instance), change.at))
            if not nodes:
                del self._nodes[change.instance]

    @property
    def instances(self) -> dict[str, set[str]]:
        """The nodes of each instance that exists."""
        return self._nodes

    @property
    def twice(self) -> list[str]:
        """Instances that are on two nodes now."""
        return sorted(self._twice_since)

    def longest_twice_s(self, window: Window) -> float:
        """Return the longest time within a window for which an instance was on two nodes."""
        over = [*self._ended, *(Window(since, math.inf) for since in self._twice_since.values())]
        return max((_overlap_s(one, window) for one in over), default=0.0)


class RunLog:
    """Merges the logs of all processes."""

    def __init__(self, bound_s: float) -> None:
        self.until: dict[str, float] = {}
        """By process, the moment before which its log has everything."""
        self.violations: list[str] = []
        """Violations of promises, in sentences; at most ``VIOLATIONS_COUNT``."""
        self.locations = InstanceLocations()
        # Greatest age of a view that readers accept.
        self._bound_s = bound_s
        # When the broker confirmed which version of each busy node.
        self._confirms: dict[str, ConfirmLog] = {}
        # Changes of instances that are not in ``locations``.
        self._changes: list[InstanceChange] = []
        # Number of instances that agents built.
        self._built = 0
        self._boots: list[BootSample] = []
        self._reservations: list[ReservationSample] = []
        self._reads: dict[str, list[ReadSample]] = {}
        # By reader, the version of each busy node in its last checked view, and the number of checked reads.
        self._shown: dict[str, dict[str, Version | None]] = {}
        self._checked: Counter[str] = Counter()
        # Times at which events were counted, and their numbers.
        self._events: list[tuple[float, int]] = []

    def add(self, process: str, log: WorkerLog) -> None:
        """Take the log of one process."""
        self.until[process] = log.until
        for at, node, version in log.confirms:
            self._confirms.setdefault(node, ConfirmLog()).note(at, version)
        self._changes += log.changes
        self._built += sum(change.built for change in log.changes)
        self._boots += log.boots
        self._reservations += log.reservations
        if log.reads:
            self._reads.setdefault(process, []).extend(log.reads)
        if log.events:
            self._events.append((log.until, log.events))
        for sentence in log.overfull:
            self.violate(sentence)

    def checked(self) -> str:
        """Return a sentence with the numbers of checks so far: few of them would prove little."""
        confirms = sum(map(len, self._confirms.values()))
        return (
            f"checked {self._checked.total():,} reads against {confirms:,} confirmed events of busy nodes, "
            f"and {self._built:,} built instances against the capacity of their nodes"
        )

    def violate(self, sentence: str) -> None:
        """Note a violation of a promise."""
        if len(self.violations) < VIOLATIONS_COUNT:
            self.violations.append(sentence)

    def settle(self, at: float) -> None:
        """Check everything before ``at``. All logs must reach that moment."""
        due = sorted(change for change in self._changes if change.at <= at)
        self._changes = [change for change in self._changes if change.at > at]
        self.locations.add(due)
        for reader, reads in self._reads.items():
            shown = self._shown.setdefault(reader, {})
            for read in reads[self._checked[reader] :]:
                if read.ended > at:
                    break
                self._checked[reader] += 1
                if not read.refused:
                    shown.update(read.shown)
                    self._check(reader, read, shown)

    def _check(self, reader: str, read: ReadSample, shown: dict[str, Version | None]) -> None:
        """Note a violation if a view was older than its bound, or lacked an event that it vouches for."""
        age_s = read.began - read.as_of
        if age_s > self._bound_s:
            self.violate(f"{reader} got a view that was {age_s:.2f} s old, and its bound is {self._bound_s:g} s")
        for node, version in shown.items():
            confirms = self._confirms.get(node)
            if version is None or confirms is None:
                continue
            confirmed = confirms.newest_by(read.as_of)
            if version < confirmed:
                late_s = read.as_of - confirms.newer_since(version)
                self.violate(
                    f"{reader} got a view with {node} at {tuple(version)}, but {tuple(confirmed)} was confirmed before "
                    f"the moment for which the view vouches; a newer version was confirmed {late_s:.2f} s before it"
                )

    def figures(self, window: Window) -> Figures:
        """Return the figures of a window. ``settle`` has been called for its end."""
        reads = {
            reader: [one for one in all_reads if _within(one.began, window)]
            for reader, all_reads in self._reads.items()
        }
        stale = [[_overlap_s(one, window) for one in _spans(some, refused=True)] for some in reads.values()]
        incomplete = [sum(_overlap_s(one, window) for one in _spans(some, refused=False)) for some in reads.values()]
        boots = [one for one in self._boots if _within(one.began, window)]
        calls = [one for one in self._reservations if _within(one.began, window)]
        made = sorted(one for one in calls if one.call == "reserve")
        confirms = [one for one in calls if one.call == "confirm"]
        reasons = Counter(f"boot: {one.reason}" for one in boots if one.reason)
        reasons.update(f"{one.call}: {one.reason}" for one in calls if one.reason)
        return Figures(
            refused_reads=sum(bool(one.refused) for some in reads.values() for one in some),
            stale_s=max(map(sum, stale), default=0.0),
            longest_stale_s=max((one for some in stale for one in some), default=0.0),
            incomplete_s=max(incomplete, default=0.0),
            greatest_age_s=max((one.began - one.as_of for some in reads.values() for one in some), default=0.0),
            events=sum(count for at, count in self._events if _within(at, window)),
            boots=sum(not one.reason for one in boots),
            boots_failed=sum(bool(one.reason) for one in boots),
            longest_boot_s=max((one.ended - one.began for one in boots), default=0.0),
            reserved=sum(not one.reason for one in made),
            reservations_refused=sum(bool(one.reason) for one in made),
            longest_refused_s=max(_refused_times(made, window), default=0.0),
            confirmed=sum(not one.reason for one in confirms),
            confirms_failed=sum(bool(one.reason) for one in confirms),
            longest_twice_s=self.locations.longest_twice_s(window),
            reasons=[f"{count} x {reason}" for reason, count in reasons.most_common(REASONS_COUNT)],
        )


def _within(at: float, window: Window) -> bool:
    return window.began <= at < window.ended


def _overlap_s(span: Window, window: Window) -> float:
    return max(0.0, min(span.ended, window.ended) - max(span.began, window.began))


def _spans(reads: Sequence[ReadSample], *, refused: bool) -> Iterator[Window]:
    """Yield the times from the first of several bad reads to the end of the next good one.

    Args:
        reads: The reads of one reader, in their order.
        refused: If true, refused reads are bad; otherwise incomplete views are, and refused reads do not count.
    """
    since: float | None = None
    last = 0.0
    for read in reads:
        last = read.ended
        if not refused and read.refused:
            continue
        if read.refused if refused else read.incomplete:
            since = read.began if since is None else since
        elif since is not None:
            yield Window(since, read.ended)
            since = None
    if since is not None:
        yield Window(since, last)


def _refused_times(calls: Sequence[ReservationSample], window: Window) -> Iterator[float]:
    """Yield the seconds from each first refused reservation to the next one that was made."""
    since: float | None = None
    for call in calls:
        if call.reason:
            since = call.began if since is None else since
        elif since is not None:
            yield call.ended - since
            since = None
    if since is not None:
        yield window.ended - since
