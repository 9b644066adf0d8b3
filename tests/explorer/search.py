"""The search: all sequences of choices in a world, shortest first, with equal states merged; and random walks."""

from __future__ import annotations

import gc
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from tests.explorer.snapshots import load, save

CHUNK_STATES_COUNT: Final = 24
"""States that a worker expands at a time."""

Path = tuple[str, ...]
"""The choices that lead to a state, from the beginning of the world."""


class World(Protocol):
    """A small world. Two worlds of one kind that take the same choices are in the same state."""

    known: bytes | None
    """The digest of the present state; None if it was not computed."""

    def choices(self) -> Sequence[str]:
        """Return the choices that are possible now."""

    def take(self, choice: str) -> None:
        """Carry out a choice. Raises an exception if an invariant is broken."""

    def fingerprint(self) -> bytes:
        """Return a digest of the state: two states with the same digest have the same futures."""

    def describe(self) -> str:
        """Describe the state in one line, for a reader of a counterexample."""

    @property
    def must_settle(self) -> bool:
        """True if this state must be settled and judged, because an outcome was told."""

    def settle(self) -> None:
        """End all faults, let all processes run, and judge the result. The world is used up afterwards."""

    @property
    def is_idle(self) -> bool:
        """True if no process is paused. Only then can a snapshot of the world be taken."""

    def close(self) -> None:
        """End all processes."""


class State(NamedTuple):
    """A state that was reached: how to come back to it."""

    path: Path
    """The choices from the beginning."""
    snapshot: bytes
    """The last state on the path in which no process was paused."""
    since: tuple[tuple[str, bytes], ...]
    """The choices after the snapshot, each with the digest of the state that it led to."""


MakeWorld = Callable[[], World]


class Violation(NamedTuple):
    """A sequence of choices that breaks an invariant, and the text of the judge."""

    path: Path
    reason: str


class Expansion(NamedTuple):
    """The successors of one state."""

    choices_count: int
    """Choices that were carried out."""
    successors: list[tuple[bytes, State]]
    """Each state that a choice leads to, with its digest, except states that were known before."""
    violations: list[Violation]


@dataclass
class Result:
    """The result of a search."""

    states_count: int = 0
    """Different states that were reached."""
    transitions_count: int = 0
    """Choices that were carried out in search of new states."""
    merged_count: int = 0
    """How many of them led to a state that was reached before."""
    depth: int = 0
    """All sequences of this length were taken."""
    next_share: float = 0.0
    """Share of the states at this depth whose choices were taken, too."""
    exhausted: bool = False
    """True if there is no state beyond ``depth``."""
    violations: list[Violation] = field(default_factory=list)


def judge_path(
    make: MakeWorld,
    path: Iterable[str],
    *,
    settle: bool = False,
    on_choice: Callable[[str, World], None] = lambda _choice, _world: None,
) -> Violation | None:
    """Take a sequence of choices, and skip impossible choices. Returns the violation, if there is one.

    Args:
        make: makes the world.
        path: the choices. ``settle`` may be the last one.
        settle: settle and judge the world at the end.
        on_choice: called after each choice.
    """
    taken: list[str] = []
    world = make()
    try:
        for choice in path:
            if choice == "settle":
                settle = True
            elif choice in world.choices():
                taken.append(choice)
                world.take(choice)
                on_choice(choice, world)
        if settle:
            taken.append("settle")
            world.settle()
    except Exception as error:  # noqa: BLE001 - judges raise AssertionError, and any error of the product is a finding
        return Violation(tuple(taken), f"{type(error).__name__}: {error}")
    finally:
        world.close()
    return None


def expand(state: State, known: set[bytes], settle_one_in: int = 0) -> Expansion:
    """Take each choice that is possible in a state.

    If ``settle_one_in`` is not 0, one in this number of reached states is settled and judged. The digest chooses it.

    Args:
        state: the state.
        known: digests of states that are not returned again. The digests of the returned states are added.
        settle_one_in: see above.
    """
    violations: list[Violation] = []
    successors: list[tuple[bytes, State]] = []
    world = _at(state)
    choices = list(world.choices())
    for number, choice in enumerate(choices):
        if number:
            world = _at(state)
        path = (*state.path, choice)
        try:
            world.take(choice)
            digest = world.fingerprint()
            if digest in known:
                continue
            known.add(digest)
            if world.is_idle:
                successors.append((digest, State(path, save(world), ())))
            else:
                successors.append((digest, State(path, state.snapshot, (*state.since, (choice, digest)))))
            if world.must_settle or (settle_one_in and digest[0] % settle_one_in == 0):
                path = (*path, "settle")
                world.settle()
        except Exception as error:  # noqa: BLE001 - see judge_path
            violations.append(Violation(path, f"{type(error).__name__}: {error}"))
        finally:
            world.close()
    if not choices:
        world.close()
    return Expansion(len(choices), successors, violations)


def _at(state: State) -> World:
    world: World = load(state.snapshot)
    for choice, digest in state.since:
        world.take(choice)
        world.known = digest
    return world


_known_to_worker: set[bytes] = set()
"""In a worker: the states that it has reached."""


def _begin_worker() -> None:
    """Leave the collection of garbage to ``_expand_all``: each world is one cycle of references."""
    gc.freeze()
    gc.disable()


def _expand_all(states: list[State], settle_one_in: int) -> list[Expansion]:
    expansions = [expand(state, _known_to_worker, settle_one_in) for state in states]
    gc.collect()
    return expansions


def explore(
    make: MakeWorld,
    *,
    max_states: int = 0,
    max_depth: int = 0,
    until: float = float("inf"),
    workers: int = 0,
    settle_one_in: int = 0,
    on_progress: Callable[[Result], None] = lambda _result: None,
    stop_at_violation: bool = True,
) -> Result:
    """Take all sequences of choices, shortest first. A state that was reached before is not expanded again.

    Args:
        make: makes the world in its first state.
        max_states: stop after this number of states; 0: no limit.
        max_depth: longest sequence; 0: no limit.
        until: monotonic time at which the search stops.
        workers: processes that expand states; 0: this process.
        settle_one_in: see ``expand``.
        on_progress: called after each group of states.
        stop_at_violation: stop at the first sequence that breaks an invariant. No shorter one does.
    """
    result = Result(states_count=1)
    world = make()
    seen = {world.fingerprint()}
    frontier = [State((), save(world), ())]
    world.close()
    pool = ProcessPoolExecutor(workers, initializer=_begin_worker) if workers else None
    try:
        while frontier:
            following: list[State] = []
            for number, expansion in enumerate(_expansions(frontier, pool, workers, settle_one_in), 1):
                result.violations += expansion.violations
                result.transitions_count += expansion.choices_count
                for digest, state in expansion.successors:
                    if digest not in seen:
                        seen.add(digest)
                        following.append(state)
                result.states_count = len(seen)
                result.next_share = number / len(frontier)
                result.merged_count = result.transitions_count - len(seen) + 1 - len(result.violations)
                on_progress(result)
                if result.violations and stop_at_violation:
                    return result
                if time.monotonic() > until or (max_states and len(seen) >= max_states):
                    return result
            result.depth += 1
            result.next_share = 0.0
            frontier = following
            if result.depth == max_depth:
                return result
        result.exhausted = True
        return result
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _expansions(
    frontier: list[State], pool: ProcessPoolExecutor | None, workers: int, settle_one_in: int
) -> Iterator[Expansion]:
    if pool is None:
        known: set[bytes] = set()
        for state in frontier:
            yield expand(state, known, settle_one_in)
        return
    chunks = [frontier[at : at + CHUNK_STATES_COUNT] for at in range(0, len(frontier), CHUNK_STATES_COUNT)]
    ahead = 4 * workers  # so that a search that stops early leaves little work behind
    waiting = deque(pool.submit(_expand_all, chunk, settle_one_in) for chunk in chunks[:ahead])
    for following in range(ahead, ahead + len(chunks)):
        yield from waiting.popleft().result()
        if following < len(chunks):
            waiting.append(pool.submit(_expand_all, chunks[following], settle_one_in))


def walk(make: MakeWorld, seed: int, steps: int) -> Violation | None:
    """Take ``steps`` random choices, and settle. The same seed gives the same walk."""
    rng = random.Random(seed)
    taken: list[str] = []
    world = make()
    try:
        for _ in range(steps):
            choices = world.choices()
            if not choices:
                break
            taken.append(rng.choice(choices))
            world.take(taken[-1])
        taken.append("settle")
        world.settle()
    except Exception as error:  # noqa: BLE001 - see judge_path
        return Violation(tuple(taken), f"{type(error).__name__}: {error}")
    finally:
        world.close()
    return None


def shrink(make: MakeWorld, violation: Violation) -> Violation:
    """Leave out choices as long as some invariant stays broken."""
    best, settles = violation, violation.path[-1:] == ("settle",)
    at = 0
    while at < len(best.path) - settles:
        shorter = judge_path(make, (*best.path[:at], *best.path[at + 1 :]), settle=settles)
        if shorter is not None and len(shorter.path) < len(best.path):
            best, settles = shorter, shorter.path[-1:] == ("settle",)
        else:
            at += 1
    return best
