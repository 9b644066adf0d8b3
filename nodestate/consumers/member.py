"""One member of a cell's consumers: does what the control record says, in every layout that it names.

    (record not known) --a place has it, or this is the first and makes it from the settings--> following
    following --a layout is named that was not--> one ``Consumer`` more, which begins with what another layout has
    following --a layout is named no more, and what is read is whole--> its consumer leaves
    following --the record changed, or the broker broke off--> following, and soon after it sets aside the queues of the settings'
        layout if the record does not name it: whoever published first to a broker that was built anew made them, for nobody

Each layout has a connection to the broker and an owner's name of its own; so one knows nothing of the other, and in the usual
case, of one layout, there is nothing that another would cost.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from nodestate.config import Config
from nodestate.consumers.loop import Consumer, Stats
from nodestate.consumers.seed_layout import SeedLayout
from nodestate.consumers.transition_log import TransitionLog
from nodestate.designs import DESIGNS
from nodestate.designs.control import Control, first
from nodestate.designs.control_store import ControlStore, newest
from nodestate.designs.stored_design import StoredDesign
from nodestate.errors import BrokerUnavailableError
from nodestate.ports import Clock, Layouts, ResyncSender
from nodestate.store.round_trips import Stores

ASIDE_RENEWALS_COUNT: Final = 5
"""So many renewals after such a change all consumers have their queues, and publishers have made theirs."""
ASK_AGAIN_S: Final = 0.2
"""Pause before the record is looked for again while nothing is known of it."""


class Member:
    """Runs as many consumers as the cell has layouts."""

    def __init__(
        self,
        config: Config,
        layouts: Layouts,
        stores: Stores,
        resync: ResyncSender,
        clock: Clock,
        rng: random.Random,
        name: str,
    ) -> None:
        self.config = config
        self.control: Control | None = None
        self.consumers: dict[int, Consumer] = {}
        """By layout."""
        self.stats = Stats()
        self._layouts = layouts
        self._stores = stores
        self._resync = resync
        self._clock = clock
        self._rng = rng
        self._name = name
        self._places = ControlStore(config.cell, stores)
        self._seed_layouts: dict[StoredDesign, SeedLayout] = {}
        self._log = structlog.get_logger("nodestate.consumer").bind(member=name)
        self._transitions = TransitionLog(self._log)
        self._follow_at = clock.monotonic()
        self._let_go: set[StoredDesign] = set()
        self._aside_at = math.inf
        self._aside_after = (0, 0)

    @property
    def designs(self) -> tuple[str, ...]:
        """What the record says to write, as far as it is known."""
        return tuple(self.control.names[kept] for kept in self.control.writes) if self.control is not None else ()

    def step(self) -> int:
        """A step in each layout, after a look at the record if one is due. Returns how many messages came."""
        now = self._clock.monotonic()
        if self.control is None or now >= self._follow_at:
            self._follow_at = now + self.config.renew_s
            self._follow()
        if not self.consumers:
            self._clock.sleep(ASK_AGAIN_S)
        return sum(consumer.step() for consumer in list(self.consumers.values()))

    def run(self, until: Callable[[], bool]) -> None:
        """Step until told to stop."""
        while not until():
            self.step()

    def close(self) -> None:
        """Give the connections back; what is not acked goes to the next owner."""
        for consumer in self.consumers.values():
            consumer.close()
        self._stores.close()

    # -- inside

    def _follow(self) -> None:
        """Go along with the newest record; make it from the settings where there is none yet, and put it back where it got
        lost. Nothing is written before it is known: the settings may be out of date, and what they don't say would be forgotten.
        """
        found = self._places.read()
        for copy in found:
            if copy.error is not None:
                self._transitions.failing(f"control record at {copy.store.name}", str(copy.error))
            else:
                self._transitions.recovered(f"control record at {copy.store.name}")
        known = newest(found)
        if known is None and self.control is None:
            if any(copy.error for copy in found):
                return  # who does not answer may know
            known = first(self.config, self._clock.time())
            if not self._places.begin(known, found):
                return  # another consumer was faster: its record counts
        # One of the same version that is another than we know: ours was lost with its place, and somebody made this one since.
        if known is not None and (
            self.control is None or (known.version >= self.control.version and known != self.control)
        ):
            self._adopt(known)
        if self.control is not None:
            self._go_along(self.control)
            self._set_aside(self.control)
            self._places.put_back(self.control, found)

    def _adopt(self, control: Control) -> None:
        absent = [one.design for one in control.writes if not self._has_place(one)]
        if absent:
            self._transitions.failing(
                "control record", f"it says to write {absent[0]}, and the settings name no place for it"
            )
            return
        self._transitions.recovered("control record")
        self._log.info(
            "control record", version=control.version, writes=list(map(str, control.writes)), reads=str(control.reads)
        )
        self.control = control

    def _go_along(self, control: Control) -> None:
        """Take part in every layout that is to be written, and no other. What was retired is written until what is read is
        whole: nothing may be acked that only a layout in the making has. What was let go stays so until it is written again: its queues
        may be gone, so it would be of no use.
        """
        self._let_go.difference_update(control.writes)
        leaving = [one for one in control.leaving if self._has_place(one) and one not in self._let_go]
        if leaving and self._seed_layout(control.reads).is_whole():
            self._let_go.update(leaving)
            leaving = []
        kept = [*control.writes, *leaving]
        layouts = {one.partitions: tuple(k.design for k in kept if k.partitions == one.partitions) for one in kept}
        for partitions in self.consumers.keys() - layouts.keys():
            self._leave(partitions)
        for partitions, designs in layouts.items():
            consumer = self.consumers.get(partitions)
            if consumer is None:
                consumer = self.consumers[partitions] = self._consumer(partitions, designs)
            consumer.adopt(designs)
            others = [one for one in (control.reads, control.former, *kept) if one and one.partitions != partitions]
            consumer.seed_layout = self._seed_layout(others[0]) if others else None
            consumer.serves_readers = partitions == control.reads.partitions
        if len(layouts) == 1:
            self._seed_layouts.clear()

    def _consumer(self, partitions: int, designs: tuple[str, ...]) -> Consumer:
        return Consumer(
            msgspec.structs.replace(self.config, partitions=partitions, designs=designs),
            self._layouts.open(partitions),
            self._stores,
            self._resync,
            self._clock,
            random.Random(self._rng.getrandbits(64)),
            self._name,
            stats=self.stats,
        )

    def _leave(self, partitions: int) -> None:
        """The last member to leave a layout takes its queues away, or they would fill for ever. (An operator's command looks
        after them, too: the last one may have died.) The record is read again before each step, as whoever was slow finds the layout
        back in use; it is gone along with at the next look.
        """
        if self._is_used(partitions):
            return
        self.consumers.pop(partitions).leave()
        if self._is_used(partitions):
            return
        try:
            deleted = self._layouts.delete(partitions)
        except BrokerUnavailableError as error:
            self._log.warning("could not delete queues", layout=partitions, why=str(error))
        else:
            self._log.info("left a layout", layout=partitions, deleted=deleted)

    def _set_aside(self, control: Control) -> None:
        """Events that only a layout has which nobody consumes are in no view."""
        now, after = self._clock.monotonic(), (control.version, self.stats.broker_errors)
        if after != self._aside_after:
            self._aside_after, self._aside_at = after, now + ASIDE_RENEWALS_COUNT * self.config.renew_s
        ours = self.config.partitions
        if now < self._aside_at or ours in {kept.partitions for kept in (*control.writes, *control.leaving)}:
            return
        try:
            waiting = self._layouts.set_aside(ours, control.reads.partitions)
        except BrokerUnavailableError as error:
            self._transitions.failing("queues of the settings' layout", str(error))
            return
        self._transitions.recovered("queues of the settings' layout")
        self._aside_at = math.inf
        if waiting:
            self._log.warning(
                "events wait in queues that nobody consumes from", layout=ours, waiting=waiting, do="nodestate doctor"
            )

    def _is_used(self, partitions: int) -> bool:
        known = newest(self._places.read())
        return known is not None and partitions in known.layouts

    def _seed_layout(self, kept: StoredDesign) -> SeedLayout:
        if kept not in self._seed_layouts:
            self._seed_layouts[kept] = SeedLayout(self.config, kept, self._stores, self._clock)
        return self._seed_layouts[kept]

    def _has_place(self, kept: StoredDesign) -> bool:
        return kept.design in DESIGNS and self._stores.has(DESIGNS[kept.design].where)
