"""A small cell whose operator switches designs or layouts, while consumers and readers follow the control record.

The operator takes the steps of ``nodestate.designs.control`` without the checks that the commands make first: a cutover
may come before the design is complete. Each step is a read of the control record and one compare-and-swap.

Choices, in addition to the choices of ``cell_world``:

=========================  ============================================================================================
``prepare journal@1`` …    the operator takes a step: ``prepare``, ``cutover``, ``rollback``, ``retire`` or ``clear``
``rollback:pause`` …       the operator reads the record, and pauses before the compare-and-swap
``operator``               the operator goes on
=========================  ============================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import ClassVar, Final

import msgspec

from nodestate.designs.control import CONTROL, Control, cleared, cut_over, prepared, retired, rolled_back
from nodestate.designs.control_store import ControlStore, newest
from nodestate.designs.layout_removal import remove_layout_epochs
from nodestate.designs.stored_design import StoredDesign, parse_stored_design
from nodestate.errors import ControlLostError, DesignStepError, StoreError
from nodestate.store import keys
from nodestate.testing import MemoryStore
from tests.explorer.cell_world import PROCESSES, CellWorld
from tests.explorer.digest import Digest
from tests.machines.following_reader import FollowingReader, stored_design_of
from tests.machines.simulated_cell import CELL, CONVERGE_S, JudgedReader

OPERATOR: Final = "operator"
"""The name of the operator's process."""


class SwitchingWorld(CellWorld):
    """See the module.

    Args:
        targets: designs that the operator may prepare, in the form ``journal@1``.
        most_steps: how many steps the operator takes at most.
        faults, most_faults, pausing, left_out, designs: see ``CellWorld``. ``operator`` may pause, too.
    """

    processes: ClassVar[tuple[str, ...]] = (*PROCESSES, OPERATOR)
    follows_control: ClassVar[bool] = True

    def __init__(
        self,
        targets: Sequence[str] = (),
        most_steps: int = 3,
        faults: Sequence[str] = (),
        most_faults: int = 1,
        pausing: Sequence[str] = (),
        left_out: Sequence[str] = (),
        designs: tuple[str, ...] = ("snapshot",),
    ) -> None:
        self._targets = [parse_stored_design(target, 1) for target in targets]
        self._steps_left = most_steps
        self._step = ""  # the step at which the operator is paused
        super().__init__(faults, most_faults, pausing, left_out, designs)
        self._control_store = ControlStore(CELL, self.cell.connected(MemoryStore)[1])

    def choices(self) -> list[str]:
        """See ``World``."""
        found = super().choices()
        if not self._processes[OPERATOR].is_idle:
            return [*found, OPERATOR]
        steps = self._possible_steps() if self._steps_left and self._server.frozen_at is None else []
        if OPERATOR in self._pausing:
            steps += [f"{step}:pause" for step in steps]
        return found + [step for step in steps if step not in self._left_out]

    def _possible_steps(self) -> list[str]:
        entry = self._server._entries.get(keys.control(CELL))  # a fetch would change the order of the items
        if entry is None:
            return []
        known = CONTROL.unpack(entry.value)
        others = [one for one in known.writes if one != known.reads]
        steps = [f"prepare {one}" for one in self._targets if one not in known.writes]
        steps += [f"{verb} {one}" for one in others for verb in ("cutover", "retire")]
        steps += ["rollback"] if known.former is not None else []
        return steps + [f"clear {one}" for one in known.leaving]

    def take(self, choice: str) -> None:
        """See ``World``."""
        words, _, paused = choice.partition(":")
        if words.split()[0] in ("prepare", "cutover", "rollback", "retire", "clear"):
            self._steps_left -= 1
            self._step = words
            self._run(OPERATOR, pause_at=1 if paused else None)
            self.known = None
        elif choice == OPERATOR:
            self._run(OPERATOR, pause_at=None)
            self.known = None
        else:
            super().take(choice)

    def _work_of(self, name: str) -> Callable[[], object]:
        return self._change if name == OPERATOR else super()._work_of(name)

    def _change(self) -> None:
        found = self._control_store.read()
        known = newest(found)
        if known is not None:
            with suppress(DesignStepError, ControlLostError, StoreError):
                self._control_store.change(found, self._after(known))

    def _after(self, known: Control) -> Control:
        verb, _, name = self._step.partition(" ")
        if verb == "rollback":
            return rolled_back(known, OPERATOR)
        design = parse_stored_design(name, 1)
        if verb == "clear":
            return self._clear(known, design)
        return {"prepare": prepared, "cutover": cut_over, "retire": retired}[verb](known, design, OPERATOR)

    def _clear(self, known: Control, design: StoredDesign) -> Control:
        of_layout = msgspec.structs.replace(self.cell.config, partitions=design.partitions)
        stores = self.cell.connected(MemoryStore)[1]
        if self.cell.broker.delete(design.partitions) and not remove_layout_epochs(
            of_layout, stores, "", self.cell.clock
        ):
            return cleared(known, design.partitions, OPERATOR)
        return known

    def _new_reader(self) -> JudgedReader:
        return FollowingReader(self.cell)

    def _add_more(self, digest: Digest) -> Digest:
        return digest.add(self._step if not self._processes[OPERATOR].is_idle else "").add(self._steps_left)

    def settle(self) -> None:
        """See ``World``. Readers must read the design of the record, and all written designs must be equal (I4)."""
        self._finish()
        self.cell.be_well()
        problem, until = "not compared", self.clock.monotonic() + CONVERGE_S
        while problem and self.clock.monotonic() < until:
            self.cell.run_well(1.0)
            problem = self._unfinished()
        assert not problem, problem
        known = newest(self._control_store.read())
        assert known is not None, "the control record is lost"
        self.cell.readers += [JudgedReader(self.cell, one.design) for one in known.writes if one.partitions == 1]
        self.cell.converge()

    def _unfinished(self) -> str:
        """Return the part of the last step that is not done; empty if all is done.

        If the store lost a change of the record before a consumer read it, a reader that saw the change keeps to it
        until the next change.
        """
        known = newest(self._control_store.read())
        if known is None:
            return "the control record is lost"
        for design in known.leaving:
            if not self.cell.broker.delete(design.partitions):
                return f"{design} is retired, and a consumer reads its queues"
        design, followed = stored_design_of(self._reader.read(5.0)), self._reader._reader._control
        if followed is None:
            return "the reader never saw a control record"
        if followed.version <= known.version and design != known.reads:
            return f"the reader reads {design}, and the record says {known.reads}"
        return ""
