"""One member of a cell's consumers: follows the control record, and runs a ``Consumer`` for each layout of the record.

    (control record unknown) --a store has it, or this member is the first and writes it from the settings--> following
    following --the record names a new layout--> one more ``Consumer``, which begins with the nodes of another layout
    following --a layout is retired, and the layout that readers use is complete--> its ``Consumer`` is removed, and so
        are the layout's stored state and queues

Each layout has its own connection to the broker and its own owner name, so the consumers of two layouts are
independent. In the usual case there is one layout, and this module costs nothing.

The broker may have queues of a layout that the control record does not name, and from which no consumer takes
messages: a publisher with other settings declared them on a new broker, or the record that named them was lost with its
stores. They would fill until the broker has no memory left. So ``UNBIND_RENEWALS_COUNT`` renewal intervals after its
start, each change of the record and each loss of the broker, the owner of partition 0 of the layout that is read looks
for such queues, and unbinds them (ADR 41 in ``docs/adr``).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from nodestate.auth import event_auth
from nodestate.config import Config
from nodestate.consumers.loop import Consumer
from nodestate.consumers.seed_layout import SeedLayout
from nodestate.consumers.statistics import ConsumerStats
from nodestate.consumers.transition_log import TransitionLog
from nodestate.designs import DESIGNS
from nodestate.designs.control import Control, record_from_settings
from nodestate.designs.control_auth import control_auth
from nodestate.designs.control_store import ControlStore, newest, newest_copy
from nodestate.designs.stored_design import StoredDesign
from nodestate.errors import BrokerUnavailableError, NodestateError, StoreError
from nodestate.ports import Clock, Layouts, ResyncSender
from nodestate.store.round_trips import Stores

UNBIND_RENEWALS_COUNT: Final = 5
"""Number of renewal intervals to wait before unused queues are unbound, after a change of the record or a loss of the
broker. By then all consumers and publishers have declared their queues.
"""
CONTROL_RETRY_S: Final = 0.2
"""Pause before the control record is read again while it is unknown."""
CONTROL_RECORD: Final = "control record"
"""Name of an operation in log entries about failures: to follow the control record."""
UNNAMED_LAYOUTS: Final = "queues of layouts that the control record does not name"
"""Name of an operation in log entries about failures: to find and unbind such queues."""


class Member:
    """Runs one ``Consumer`` for each layout that the control record says to write.

    Args:
        config: settings of the cell.
        layouts: opens and deletes the queues of layouts.
        stores: the servers of the cell. ``close`` closes them.
        resync: sends resync requests to the agents.
        clock: wall-clock and monotonic time.
        rng: seeds the random numbers of each consumer.
        name: first part of the consumers' owner names.
    """

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
        """Settings of the cell. Their layout and designs count only until there is a control record."""
        self.control: Control | None = None
        """The control record that this member follows; None until one was read."""
        self.consumers: dict[int, Consumer] = {}
        """The running consumers, by the number of partitions of their layout."""
        self.stats = ConsumerStats()
        """Counters of all consumers together."""
        self._layouts = layouts
        """Opens and deletes the queues of layouts."""
        self._stores = stores
        """The servers of the cell."""
        self._resync = resync
        """Broadcasts to the agents."""
        self._clock = clock
        """Monotonic time."""
        self._rng = rng
        """Seeds each consumer's random numbers."""
        self._auth = event_auth(config, clock)
        """Checks the signatures of messages, for all consumers."""
        self._name = name
        """First part of the consumers' owner names."""
        self._control_auth = control_auth(config, clock)
        """Checks the signatures of control records."""
        self._control_store = ControlStore(config.cell, stores, clock, self._control_auth)
        """All stored copies of the control record."""
        self._control_value = b""
        """The stored value of ``control``, with its signature; empty if this member made the record."""
        self._seed_layouts: dict[StoredDesign, SeedLayout] = {}
        """Readers of the designs from which other layouts begin; empty while there is only one layout."""
        self._log = structlog.get_logger("nodestate.consumer").bind(member=name)
        """The member's logger."""
        self._transitions = TransitionLog(self._log)
        """Logs failures that persist."""
        self._read_control_at = clock.monotonic()
        """When the control record is read next, in monotonic seconds."""
        self._stopped: set[StoredDesign] = set()
        """Retired designs that this member has stopped writing. If the record says to write one of these designs again,
        the design is removed from this set.
        """
        self._unbind_at = math.inf
        """When to unbind the queues of layouts that the record does not name, in monotonic seconds; infinity if that is
        done.
        """
        self._unbind_cause = (0, 0)
        """The record's version and the count of broker errors when ``_unbind_at`` was set. If one of them differs now,
        the wait begins again.
        """

    @property
    def designs(self) -> tuple[str, ...]:
        """Names of the designs that the control record says to write; empty while the record is unknown."""
        return tuple(self.control.names[design] for design in self.control.writes) if self.control is not None else ()

    def step(self) -> int:
        """Follow the control record if due, then step each consumer. Returns the number of messages received."""
        now = self._clock.monotonic()
        if self.control is None or now >= self._read_control_at:
            self._read_control_at = now + self.config.renew_s
            self._follow_control()
        if not self.consumers:
            self._clock.sleep(CONTROL_RETRY_S)
        return sum(consumer.step() for consumer in list(self.consumers.values()))

    def run(self, until: Callable[[], bool]) -> None:
        """Step until ``until`` returns True."""
        while not until():
            self.step()

    def close(self) -> None:
        """Close the connections. The broker delivers the unacknowledged messages to the next owners."""
        for consumer in self.consumers.values():
            consumer.close()
        self._stores.close()

    # -- the control record

    def _follow_control(self) -> None:
        """Read the control record from all stores, and follow the newest copy.

        If no store has a record, writes one from the settings, unless only signed records are followed: then an
        operator makes the first one. Writes missing and older copies again. No consumer runs before a record is known:
        the settings may be out of date, and a consumer deletes every design that it is not told to write.
        """
        copies = self._control_store.read()
        auth = self._control_auth
        self.stats.unsigned_controls, self.stats.refused_controls = auth.unsigned, auth.refused
        for copy in copies:
            if copy.error is not None or copy.invalid:
                self._transitions.failing(f"control record at {copy.store.name}", str(copy.error or copy.invalid))
            else:
                self._transitions.recovered(f"control record at {copy.store.name}")
        copy_read = newest_copy(copies)
        known = copy_read.control if copy_read is not None else None
        if known is None and self.control is None:
            if any(copy.error or copy.may_be_right or copy.is_refused for copy in copies):
                return  # the store that does not answer may have the record, or an invalid record may be right
            if auth.mode == "require":
                reason = "auth_control is require, and no store has a record: an operator makes it"
                self._transitions.failing(CONTROL_RECORD, f"{reason} with 'nodestate design sign'")
                return
            known = record_from_settings(self.config, self._clock.time())
            first = copies[0].store.name
            try:
                is_written = self._control_store.begin(known, copies)
            except StoreError as error:
                self._transitions.failing(f"write of the control record to {first}", str(error))
                return
            if not is_written:
                return  # another member wrote one first: read again at the next step
        # A different record of the version that we know is followed, too: ours was lost with its only store, and an
        # operator made the other one afterwards.
        if known is not None and (
            self.control is None or (known.version >= self.control.version and known != self.control)
        ):
            self._adopt(known, copy_read.value if copy_read is not None else b"")
        if self.control is not None:
            self._apply(self.control)
            self._unbind_unused_queues(self.control)
            errors = self._control_store.put_back(self.control, copies, self._control_value)
            for copy in copies:
                operation = f"write of the control record to {copy.store.name}"
                if copy.store.name in errors:
                    self._transitions.failing(operation, str(errors[copy.store.name]))
                elif copy.error is None:
                    self._transitions.recovered(operation)

    def _adopt(self, control: Control, value: bytes) -> None:
        """Follow this record from now on.

        If the settings name no store for one of its designs, logs an error and keeps following the record before.

        Args:
            control: the record.
            value: its stored value; empty if this member made the record.
        """
        absent = [design.design for design in control.writes if not self._has_store(design)]
        if absent:
            self._transitions.failing(
                CONTROL_RECORD,
                f"version {control.version} says to write design {absent[0]}, for which the settings name no store: "
                "set the store; this member keeps following the record before",
            )
            return
        self._transitions.recovered(CONTROL_RECORD)
        self._log.info(
            "control record", version=control.version, writes=list(map(str, control.writes)), reads=str(control.reads)
        )
        self.control, self._control_value = control, value

    def _apply(self, control: Control) -> None:
        """Run a consumer in every layout that is to be written, and in no other.

        A retired design is written until the design that readers use is complete. Otherwise an event could be
        acknowledged although only an incomplete layout stores it. Once this member has stopped writing a retired
        design, it begins again only if the record lists the design under ``writes``. The queues of the design's layout
        may be deleted by then, so writing it would be of no use.
        """
        self._stopped.difference_update(control.writes)
        retiring = [design for design in control.leaving if self._has_store(design) and design not in self._stopped]
        if retiring and self._seed_layout(control.reads).is_complete():
            self._stopped.update(retiring)
            retiring = []
        written = [*control.writes, *retiring]
        layouts = {
            one.partitions: tuple(each.design for each in written if each.partitions == one.partitions)
            for one in written
        }
        for partitions in self.consumers.keys() - layouts.keys():
            self._retire_layout(partitions, control.reads.partitions)
        for partitions, designs in layouts.items():
            consumer = self.consumers.get(partitions)
            if consumer is None:
                consumer = self.consumers[partitions] = self._consumer(partitions, designs)
            others = [one for one in (control.reads, control.former, *written) if one and one.partitions != partitions]
            consumer.follow(
                designs,
                seed_layout=self._seed_layout(others[0]) if others else None,
                serves_readers=partitions == control.reads.partitions,
            )
        if len(layouts) == 1:
            self._seed_layouts.clear()

    def _has_store(self, design: StoredDesign) -> bool:
        """True if the settings name a store for the design."""
        return design.design in DESIGNS and self._stores.has(DESIGNS[design.design].store_role)

    # -- layouts

    def _consumer(self, partitions: int, designs: tuple[str, ...]) -> Consumer:
        """Make a consumer for the layout of ``partitions`` partitions."""
        return Consumer(
            msgspec.structs.replace(self.config, partitions=partitions, designs=designs),
            self._layouts.open(partitions),
            self._stores,
            self._resync,
            self._clock,
            random.Random(self._rng.getrandbits(256)),
            self._name,
            stats=self.stats,
            auth=self._auth,
        )

    def _retire_layout(self, partitions: int, used: int) -> None:
        """Stop consuming a layout, delete its stored state, and set its queues aside if no other member consumes them.

        Queues that stayed bound would fill without end. Queues in which messages wait are not deleted: another program
        may have written the control record. Only the operator's ``nodestate design retire`` deletes them.

        An operator may take the layout back into use at any time, so the control record is read again before each of
        the two deletions. If the record names the layout again, nothing more is deleted, and this member consumes the
        layout again after its next reading of the record.

        Args:
            partitions: the layout, named by its number of partitions.
            used: number of partitions of the layout that readers use.
        """
        if self._is_used(partitions):
            return
        self.consumers.pop(partitions).retire_layout()
        if self._is_used(partitions):
            return
        try:
            waiting = self._layouts.set_aside(partitions, used)
        except BrokerUnavailableError as error:
            self._log.warning("could not delete the queues of a layout", layout=partitions, reason=str(error))
        else:
            self._log.info("stopped consuming a layout", layout=partitions, waiting=waiting)

    def _is_used(self, partitions: int) -> bool:
        """True if the stored control record says to write the layout of ``partitions`` partitions."""
        known = newest(self._control_store.read())
        return known is not None and partitions in known.layouts

    def _unbind_unused_queues(self, control: Control) -> None:
        """Once ``_unbind_at`` has come, unbind the queues of layouts that the record does not name.

        Only the owner of partition 0 of the layout that is read does this, so that one member looks for them. Queues
        with a consumer stay as they are.
        """
        now, cause = self._clock.monotonic(), (control.version, self.stats.broker_errors)
        if cause != self._unbind_cause:
            self._unbind_cause, self._unbind_at = cause, now + UNBIND_RENEWALS_COUNT * self.config.renew_s
        consumer = self.consumers.get(control.reads.partitions)
        if now < self._unbind_at or consumer is None or 0 not in consumer.owned:
            return
        try:
            layouts = self._layouts.found()
            if layouts is None:
                return
            for partitions in layouts:
                self._set_aside_unnamed(partitions)
        except NodestateError as error:
            self._transitions.failing(UNNAMED_LAYOUTS, str(error))
            self._unbind_at = now + UNBIND_RENEWALS_COUNT * self.config.renew_s
        else:
            self._transitions.recovered(UNNAMED_LAYOUTS)
            self._unbind_at = math.inf

    def _set_aside_unnamed(self, partitions: int) -> None:
        """Unbind the queues of a layout unless the stored control record names it.

        An event that is only in such queues is in no view. Messages that are in the queues already stay there and are
        logged. An operator may prepare the layout at any time, and its consumers declare the queues after the record
        names it. So the record is read right before the queues are unbound.

        Raises ``BrokerUnavailableError``, or ``StoreError`` if a store that may have a newer record does not answer.
        """
        copies = self._control_store.read()
        for copy in copies:
            if copy.error is not None:
                raise copy.error
        known = newest(copies)
        if known is None or partitions in {design.partitions for design in (*known.writes, *known.leaving)}:
            return
        waiting = self._layouts.set_aside(partitions, known.reads.partitions)
        if waiting:
            self._log.warning(
                "events wait in queues of a layout that no consumer takes from",
                layout=partitions,
                waiting=waiting,
                remedy="nodestate doctor",
            )

    def _seed_layout(self, design: StoredDesign) -> SeedLayout:
        """Return the reader of a design from which another layout begins. It is made at the first call."""
        if design not in self._seed_layouts:
            self._seed_layouts[design] = SeedLayout(self.config, design, self._stores, self._clock)
        return self._seed_layouts[design]
