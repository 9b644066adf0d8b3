r"""Boots: an instance from its request to its allocation, by messages; nothing passes through the scheduler but these.

::

    wanted --a node is claimed--> claimed --Build sent--> sent --agent: done, or a view shows it--> booted
      ^                                                     |
      |<--agent: refused: the claim is given back, and ---- +
      |   the node passed over for this instance alone      |
      \<--no answer in answer_timeout_s: its claim is left to ----- /      no node is left, or MAX_NODES_COUNT tried --> failed
          expire, as it may have been built

An agent refuses what it reads after the order's deadline, and does what it is told in order: so where the answer was lost,
and not the order, an End undoes it. What a boot may have left is told at once to end. What a move may have left is not, as it may be
what counts (``identities``), and others, who see both, may be ending what the instance had so far::

    move sent, no answer --booted elsewhere--> left --End--> gone         --a view shows it--> booted there
    move sent, no answer --failed--> what the instance has so far gets a later order --a view shows that--> left --End--> gone
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Final, NamedTuple

import msgspec

from nodestate.config import Config
from nodestate.errors import BrokerUnavailableError
from nodestate.model import NEVER, Version
from nodestate.model.orders import Answer, Build, End, Order
from nodestate.ports import Clock, Courier
from nodestate.ports.ids import IdSource
from nodestate.scheduling.claims import REASSERT_S
from nodestate.scheduling.claims.claim_table import ClaimTable
from nodestate.scheduling.claims.placer import Placer
from nodestate.scheduling.claims.placing import NoHostFound, Placing
from nodestate.scheduling.fleet import Exclusion, Fleet
from nodestate.scheduling.order_ids import lifetime_id_of, new_order_id, order_id_of

MAX_NODES_COUNT: Final = 8
"""Nodes that are asked for one instance."""
TERMINATION_RETRY_S: Final = 60.0
"""How long what was told to end is told again where a view shows it still: so long at least, and ``ENDING_CLAIMS_COUNT`` times
``claim_ttl_s``, as a move that was decided on a view from before is built within one …
"""
ENDING_CLAIMS_COUNT: Final = 2
TERMINATION_UNCONFIRMED_S: Final = 3600.0
"""… and where nothing was heard of the node since: it may come back with what it built before."""


class Termination(NamedTuple):
    """An instance to be ended on a node, if the order ``of`` this id built it there; empty: whoever did. ``life``: wherever else
    this life of it goes on, too.
    """

    node: str
    instance: str
    of: str = ""
    life: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """A node that did not take it, with the reason (``orders.Refusal``, or ``silent``)."""

    node: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Booted:
    """The instance is on ``node``, whose state of ``version`` shows it. ``refused``: who was asked before."""

    instance: str
    node: str
    version: Version
    refused: tuple[Refused, ...] = ()
    conflicts: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """The instance is nowhere; ``why`` says which filter left none, and ``refused`` which agents did not take it."""

    instance: str
    why: NoHostFound
    refused: tuple[Refused, ...] = ()
    conflicts: int = 0


Outcome = Booted | Failed


def _begun() -> Future[Outcome]:
    """A future that can't be cancelled any more: an order that was sent is not called back by that."""
    future: Future[Outcome] = Future()
    future.set_running_or_notify_cancel()
    return future


@dataclass(slots=True)
class Boot:
    """One instance on its way. ``outcome`` is there when it ended, and so is that of ``future``. ``fixed``: it goes to the
    node that it is claimed on, or nowhere. ``hints``: what is kept with the allocation beyond the request. ``after``: an order
    that its own come later than; ``again``: the one that
    built it before, by which it is known where it is; it gets a later one. ``left``: what nodes that did not answer may have built.
    """

    placing: Placing
    fixed: bool = False
    hints: dict[str, Any] = field(default_factory=dict)
    after: str = ""
    again: str = ""
    left: list[Termination] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    order: Build | None = None
    answer_by: float = 0.0
    outcome: Outcome | None = None
    future: Future[Outcome] = field(default_factory=_begun)


@dataclass(frozen=True, slots=True)
class _Supersede:
    """An instance that stays where it is, by a later ``order`` than those of ``left``."""

    original: Exclusion
    order: str
    left: tuple[Termination, ...]
    since: float


class Boots:
    """The boots under way of one scheduler. ``step`` never waits."""

    def __init__(
        self,
        placer: Placer,
        fleet: Fleet,
        claim_table: ClaimTable,
        courier: Courier,
        clock: Clock,
        ids: IdSource,
        config: Config,
    ) -> None:
        self._placer = placer
        self._fleet = fleet
        self._claim_table = claim_table
        self._courier = courier
        self._clock = clock
        self._ids = ids
        self._answer_timeout_s = config.answer_timeout_s
        self._ending_s = max(TERMINATION_RETRY_S, ENDING_CLAIMS_COUNT * config.claim_ttl_s)
        self._wanted: list[Boot] = []
        self._beginning = Lock()
        self._sent: dict[str, Boot] = {}
        self._unacknowledged: set[str] = set()
        self._staying: list[_Supersede] = []
        self._again_at = 0.0
        self._unseen: dict[tuple[str, str], tuple[Termination, Version]] = {}  # what was built, until a view has it
        self._ending: dict[Termination, tuple[Version, float]] = {}  # with the state that was known, and since when

    @property
    def under_way(self) -> int:
        """How many have no outcome yet."""
        return len(self._wanted) + len(self._sent)

    @property
    def wanting(self) -> bool:
        """Whether some need a node, and so a view."""
        return bool(self._wanted)

    def loosest(self, max_age: float) -> float:
        """How old a view may be for at least one of those that need one; ``max_age`` for those that say nothing."""
        return max(boot.placing.request.max_age or max_age for boot in self._wanted)

    @property
    def idle_s(self) -> float:
        """Seconds until the next one has waited long enough."""
        due = min((boot.answer_by for boot in self._sent.values()), default=None)
        return max(0.0, due - self._clock.monotonic()) if due is not None else self._answer_timeout_s

    def begin(self, boots: Iterable[Boot]) -> None:
        """Take these on. May be called from any thread."""
        boots = list(boots)
        with self._beginning:
            self._wanted += boots

    def step(self) -> None:
        """Choose and claim nodes for those that want one, and send their orders."""
        wanted = [boot for boot in self._all_wanted() if not self._is_there(boot)]
        if not wanted:
            if self._claim_table.edited:
                self._claim_table.flush()
            return
        for boot in wanted:
            self._refuse_vain(boot.placing)
        try:
            self._placer.place(boot.placing for boot in wanted)
        except Exception as error:  # a filter or a weigher of somebody's: each has its outcome all the same
            for boot in wanted:
                self._not_chosen(boot, error)
            raise
        claimed = [boot for boot in wanted if boot.placing.claim is not None]
        for boot in wanted:
            if boot.placing.failure is not None:
                self._fail(boot, boot.placing.failure)
        self._send(claimed)

    def answered(self, answers: Sequence[Answer]) -> None:
        """Take in what agents say; of orders that nobody waits for any more it is passed over."""
        for answer in answers:
            self._unacknowledged.discard(answer.id)
            boot = self._sent.pop(answer.id, None)
            if boot is None:
                continue
            if answer.refused:
                self._refused(boot, Refused(answer.node, answer.refused, answer.detail), answer.version)
            else:
                self._booted(boot, answer.version)

    def look(self) -> None:
        """After the fleet advanced: those that a view shows are booted, whatever became of the answer."""
        self._unseen = {key: one for key, one in self._unseen.items() if one[1] > self._version(key[0])}
        now = self._clock.monotonic()
        if now >= self._again_at:
            self._again_at = now + REASSERT_S
            self._end_again()
            self._retry_supersedes()
        for order_id, boot in list(self._sent.items()):
            row = self._fleet.rows.get(boot.placing.node or "")
            if row is not None and self._shows(row, boot, order_id):
                del self._sent[order_id]
                self._booted(boot, self._fleet.version[row])

    def _shows(self, row: int, boot: Boot, order_id: str) -> bool:
        """Whether the last view has on a row what an order built, or what somebody made of it since."""
        if boot.placing.instance not in self._fleet.instances.reported[row]:
            return False
        hints = self._fleet.reports.hints(row, boot.placing.instance)
        return lifetime_id_of(hints) == boot.hints.get("boot", order_id) and order_id_of(hints) >= order_id

    def fail_if_too_stale(self, age: float) -> None:
        """Those that need a fresher view than one of this age fail; the others go on."""
        wanted = self._all_wanted()
        for boot in wanted:
            bound = boot.placing.request.max_age
            if bound is None or age <= bound:
                self._wanted.append(boot)
                continue
            why = NoHostFound(reason=f"the view is {age:.1f} s old, over the {bound:g} s that were asked")
            self._fail(boot, why)

    def expire(self) -> None:
        """Those that heard nothing for too long try another node."""
        now = self._clock.monotonic()
        silent = [order_id for order_id, boot in self._sent.items() if boot.answer_by <= now]
        undo: list[Termination] = []
        for order_id in silent:
            boot = self._sent.pop(order_id)
            assert boot.order is not None, "it was sent"
            assert boot.placing.claim is not None, "sent with a claim"
            left = Termination(boot.order.node, boot.placing.instance, boot.order.id)
            if boot.placing.original is None:
                undo.append(left)
            elif not boot.placing.claim.resize:  # that had the instance before, and has it still
                boot.left.append(left)
            self._refused(boot, Refused(boot.order.node, "silent"), NEVER)
        self.end(undo)

    def end(self, endings: Iterable[Termination]) -> None:
        """Tell agents to end these, again for ``TERMINATION_RETRY_S`` while views show them, and for ``TERMINATION_UNCONFIRMED_S`` where no view shows
        a newer state of the node. Of a life it is told wherever a view shows it.
        """
        endings = list(endings)
        now = self._clock.monotonic()
        self._ending.update(
            (ending, (self._version(ending.node), now)) for ending in endings if ending.of or ending.life
        )
        self._send_ends(endings)

    def built(self, node: str, instance: str) -> Termination | None:
        """How to end what was built lately and no view has yet; None where that is nothing."""
        return self._unseen.get((node, instance), (None, NEVER))[0]

    def shows(self, endings: Iterable[Termination]) -> bool:
        """Whether the last view shows any of these yet."""
        return any(map(self._shown, endings))

    def _end_again(self) -> None:
        now = self._clock.monotonic()
        left: list[Termination] = []
        for ending, (before, since) in list(self._ending.items()):
            shown = self._shown(ending)
            left += shown
            heard = self._version(ending.node) > before
            if now > since + TERMINATION_UNCONFIRMED_S or (not shown and heard and now > since + self._ending_s):
                del self._ending[ending]
        self._send_ends(left)

    def _shown(self, ending: Termination) -> list[Termination]:
        """What the last view shows yet of what is to end."""
        left = []
        for row in self._fleet.instances.reporting_rows(ending.instance):
            hints = self._fleet.reports.hints(row, ending.instance)
            there = Termination(self._fleet.names[row], ending.instance, order_id_of(hints))
            if there == ending._replace(life="") or (ending.life and ending.life == lifetime_id_of(hints)):
                left.append(there)
        return left

    def _version(self, node: str) -> Version:
        row = self._fleet.rows.get(node)
        return self._fleet.version[row] if row is not None else NEVER

    def _send_ends(self, endings: Iterable[Termination]) -> None:
        self._try_to_send(
            [
                End(id=self._ids.message_id(), node=ending.node, instance=ending.instance, of=ending.of)
                for ending in endings
            ]
        )

    def tell(self, order: Build, hints: Mapping[str, Any]) -> str:
        """Tell an agent to keep these hints with what the order built, if it is there still. Returns an id for ``acknowledged``."""
        told = self._in_place(
            order.node, order.instance, order.resources, order.group, {**order.hints, **hints}, order.id
        )
        with suppress(BrokerUnavailableError):
            told = msgspec.structs.replace(told, reply_to=self._courier.reply_to)
        self._unacknowledged.add(told.id)
        self._try_to_send([told])
        return told.id

    def acknowledged(self, ids: Collection[str]) -> bool:
        """Whether all of these were answered."""
        return self._unacknowledged.isdisjoint(ids)

    def forget(self, ids: Collection[str]) -> None:
        """Nobody waits for the answers any more."""
        self._unacknowledged -= set(ids)

    def mark(
        self, node: str, instance: str, resources: Mapping[str, int], group: str | None, hints: Mapping[str, Any]
    ) -> None:
        """Tell an agent what holds for an instance, if it has it still as the order among ``hints`` built it; who must know
        repeats it until a view shows it.
        """
        self._try_to_send([self._in_place(node, instance, resources, group, hints, order_id_of(hints))])

    # -- inside

    def _in_place(
        self,
        node: str,
        instance: str,
        resources: Mapping[str, int],
        group: str | None,
        hints: Mapping[str, Any],
        of: str,
    ) -> Build:
        return Build(
            id=self._ids.message_id(),
            node=node,
            instance=instance,
            resources=dict(resources),
            group=group,
            hints=dict(hints),
            deadline=self._clock.time() + self._answer_timeout_s,
            in_place=True,
            of=of,
        )

    def _supersede_original(self, original: Exclusion, after: str, left: Sequence[Termination]) -> None:
        """Nodes that did not answer may have what counts: so what the instance has on its row gets a later order."""
        self._resolve_superseded(
            _Supersede(original, new_order_id(self._clock, self._ids, after), tuple(left), self._clock.monotonic())
        )

    def _retry_supersedes(self) -> None:
        staying, self._staying = self._staying, []
        for one in staying:
            self._resolve_superseded(one)

    def _resolve_superseded(self, one: _Supersede) -> None:
        """Give the order again, or end what it outranks once a view shows it, or leave it: what else is there counts."""
        fleet, row, instance = self._fleet, one.original.row, one.original.instance
        allocation = fleet.reports.allocations(row).get(instance, {})
        hints = allocation.get("hints") or {}
        counting = fleet.authoritative_row(instance)
        if order_id_of(hints) == one.order or not fleet.instances.reporting_rows(
            instance
        ):  # it stays, or its user ended it
            self.end(one.left)
        elif counting not in (row, None) and fleet.is_responsive(counting) and not fleet.is_responsive(row):
            return  # its node is dead, and it turned up elsewhere after all
        elif (
            order_id_of(hints) == one.original.order and self._clock.monotonic() < one.since + TERMINATION_UNCONFIRMED_S
        ):
            hints = {**hints, "boot": lifetime_id_of(hints) or one.order, "order": one.order}
            resources, group = allocation["resources"], allocation.get("group")
            self._try_to_send([self._in_place(fleet.names[row], instance, resources, group, hints, one.original.order)])
            self._staying.append(one)

    def _is_there(self, boot: Boot) -> bool:
        """Whether the last view shows that one of the nodes that did not answer built it: then that is where it is."""
        for number, left in reversed(list(enumerate(boot.left))):
            row = self._fleet.rows.get(left.node)
            if row is not None and self._shows(row, boot, left.of):
                boot.left, later = boot.left[:number], boot.left[number + 1 :]
                boot.placing.locate(left.node)
                self._booted(boot, self._fleet.version[row])
                if later:  # they outrank it where they are built: it is to outrank them
                    order = order_id_of(self._fleet.reports.hints(row, left.instance))
                    self._supersede_original(Exclusion(row, left.instance, {}, order), boot.after, later)
                return True
        return False

    def _all_wanted(self) -> list[Boot]:
        with self._beginning:
            wanted, self._wanted = self._wanted, []
        return wanted

    def _not_chosen(self, boot: Boot, error: Exception) -> None:
        placing = boot.placing
        if placing.claim is not None and placing.node is not None:
            self._claim_table.drop_claim(placing.node, placing.claim.id)
        why = placing.failure or NoHostFound(reason=f"no node could be chosen: {error}")
        self._fail(boot, why)

    def _refuse_vain(self, placing: Placing) -> None:
        """An id is one instance: who boots it again while a node has it is told where it is, and who moves it that it is not
        there any more as it was.
        """
        if placing.settled:
            return
        original = placing.original
        if original is None:
            there = self._fleet.instances.reporting_node(placing.instance, placing.avoided_rows)
            if there:
                placing.fail(NoHostFound(reason=f"{placing.instance} is on {there} already"))
        elif (
            self._fleet.authoritative_row(original.instance) != original.row
            or order_id_of(self._fleet.reports.hints(original.row, original.instance)) != original.order
        ):
            placing.fail(
                NoHostFound(
                    reason=f"{placing.instance} was ended, moved or changed on {self._fleet.names[original.row]} meanwhile"
                )
            )

    def _send(self, boots: Sequence[Boot]) -> None:
        orders: list[Order] = []
        deadline = self._clock.time() + self._answer_timeout_s
        try:
            reply_to = self._courier.reply_to
        except BrokerUnavailableError as error:
            self._not_sent(boots, error)
            return
        for boot in boots:
            claim, node = boot.placing.claim, boot.placing.node
            assert claim is not None, "claimed"
            assert node is not None, "claimed"
            original = boot.placing.original
            # Not the claim's: one that is held may be built, ended, and built again, which is another life.
            again, boot.again = boot.again, ""
            order_id = new_order_id(self._clock, self._ids, max(claim.id, boot.after, again))
            boot.order = Build(
                id=order_id,
                node=node,
                instance=boot.placing.instance,
                resources=boot.placing.request.resources,
                group=claim.group,
                hints={**claim.hints, **boot.hints, "order": order_id},
                deadline=deadline,
                in_place=claim.resize or bool(again),
                of=original.order if original is not None and claim.resize else again,
                reply_to=reply_to,
            )
            boot.answer_by = self._clock.monotonic() + self._answer_timeout_s
            self._sent[order_id] = boot
            orders.append(boot.order)
        try:
            self._courier.send(orders, self._answer_timeout_s)
        except BrokerUnavailableError:
            return  # sent or not: answers or silence will tell

    def _not_sent(self, boots: Sequence[Boot], error: BrokerUnavailableError) -> None:
        self._placer.give_back(boot.placing for boot in boots)
        for boot in boots:
            why = NoHostFound(reason=f"no order can be sent: {error}")
            self._fail(boot, why)

    def _try_to_send(self, orders: Sequence[Order]) -> None:
        try:
            if orders:
                self._courier.send(orders, self._answer_timeout_s)
        except BrokerUnavailableError:
            return  # who must know it repeats it

    def _booted(self, boot: Boot, version: Version) -> None:
        placing = boot.placing
        assert placing.node is not None, "sent to a node"
        if placing.claim is not None and placing.claim.resize:  # its allocation was there before, and shows none of it
            self._claim_table.drop_claim(placing.node, placing.claim.id, version)
        elif placing.claim is not None:
            self._claim_table.own.mark_allocated(placing.node, placing.claim.id, version)
        if boot.left:
            self.end(boot.left)
        if boot.order is not None and boot.order.node == placing.node:
            key = placing.node, placing.instance
            self._unseen[key] = Termination(*key, boot.order.id, lifetime_id_of(boot.order.hints)), version
        self._end(boot, Booted(placing.instance, placing.node, version, tuple(boot.refused), placing.conflicts))

    def _refused(self, boot: Boot, refused: Refused, version: Version) -> None:
        placing = boot.placing
        assert placing.node is not None, "sent to a node"
        assert placing.claim is not None, "sent with a claim"
        assert boot.order is not None, "sent"
        boot.refused.append(refused)
        if refused.reason == "silent":  # it may have been built all the same: the later order is the one that counts
            boot.after = boot.order.id
            boot.hints.setdefault("boot", boot.order.id)
        else:
            self._claim_table.drop_claim(placing.node, placing.claim.id, version)
        row = self._fleet.rows.get(placing.node)
        if row is not None:
            placing.avoid([row])
        placing.release()
        is_elsewhere = refused.reason == "here" and placing.original is None
        if boot.fixed or is_elsewhere or len(boot.refused) >= MAX_NODES_COUNT:
            why = f"{refused.node} refused it: {refused.reason} {refused.detail}".rstrip()
            self._fail(boot, NoHostFound(reason=why))
        else:
            self._wanted.append(boot)

    def _fail(self, boot: Boot, why: NoHostFound) -> None:
        original = boot.placing.original
        if boot.left and original is not None:
            self._supersede_original(original, boot.after, boot.left)
        self._end(boot, Failed(boot.placing.instance, why, tuple(boot.refused), boot.placing.conflicts))

    @staticmethod
    def _end(boot: Boot, outcome: Outcome) -> None:
        boot.outcome = outcome
        boot.future.set_result(outcome)
