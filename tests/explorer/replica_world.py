"""A cell with two replicas of its partition on two servers, of which one or the other is away.

Choices, in addition to the choices of ``cell_world``:

===================================  ==================================================================================
``only server 0`` …                  the other server goes away
``all servers``                      both servers answer, with the contents that they had
``new consumers, only server 0`` …   likewise, and all consumers die; new ones do one step
===================================  ==================================================================================

Each of these choices is a fault; each sequence has a limited number of them. After ``4 s of work`` the reader reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from tests.explorer.cell_world import WORK, CellWorld
from tests.explorer.digest import Digest
from tests.machines.replica_reader import ReplicaReader
from tests.machines.simulated_cell import JudgedReader

ANSWERING: Final = {"all servers": (0, 1), "only server 0": (0,), "only server 1": (1,)}
"""By choice, the servers that answer."""
SUCCESSION: Final = "new consumers, "
"""First words of a choice in which all consumers die."""


class ReplicaWorld(CellWorld):
    """See the module.

    Args:
        design: the design that has two replicas.
        faults, most_faults, pausing, left_out: see ``CellWorld``.
    """

    follows_control: ClassVar[bool] = True
    servers_count: ClassVar[int] = 2
    events: ClassVar[tuple[str, ...]] = ("b leaves",)

    def __init__(
        self,
        design: str,
        faults: Sequence[str] = (),
        most_faults: int = 3,
        pausing: Sequence[str] = (),
        left_out: Sequence[str] = (),
    ) -> None:
        super().__init__(faults, most_faults, pausing, left_out, (design, f"{design}_replica"))

    def take(self, choice: str) -> None:
        """See ``World``."""
        super().take(choice)
        if choice == WORK and self._processes["reader"].is_idle:
            self._reader.read(5.0)
            self.known = None

    def _possible_faults(self) -> list[str]:
        answering = tuple(number for number, server in enumerate(self.cell.servers) if server.running)
        found = [choice for choice, numbers in ANSWERING.items() if numbers != answering]
        if self._processes["A"].is_idle and self._processes["B"].is_idle:
            found += [SUCCESSION + choice for choice in ANSWERING]
        return super()._possible_faults() + found

    def _fail(self, choice: str) -> None:
        words = choice.removeprefix(SUCCESSION)
        if words not in ANSWERING:
            super()._fail(choice)
            return
        if choice.startswith(SUCCESSION):
            for name, member in list(self._members.items()):
                member.die()
                self._members[name] = self.cell.members[-1]
        for number, server in enumerate(self.cell.servers):
            if number in ANSWERING[words]:
                server.start()
            else:
                server.stop()
        if choice.startswith(SUCCESSION):
            for member in self._members.values():
                member.step()

    def _new_reader(self) -> JudgedReader:
        return ReplicaReader(self.cell)

    def _add_more(self, digest: Digest) -> Digest:
        return digest.add(self.cell.servers[1]._entries).add([server.running for server in self.cell.servers])
