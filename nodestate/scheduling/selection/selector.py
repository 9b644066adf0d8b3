"""Selection: the best node for each instance of a request, on one state of the fleet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np

from nodestate.errors import SHOWN_COUNT
from nodestate.ports.ids import IdSource, SystemIds
from nodestate.scheduling.fleet import Fleet, OutstandingClaims
from nodestate.scheduling.fleet.row_types import Flags, Scores
from nodestate.scheduling.request import Request
from nodestate.scheduling.selection import policy_guard as asking
from nodestate.scheduling.selection.choice import Choice, Explanation, Lack, Remaining
from nodestate.scheduling.selection.node_preference import NodePreference
from nodestate.scheduling.selection.plugins import Policies
from nodestate.scheduling.selection.ranking import Ranking, active

KEPT_RANKINGS_COUNT: Final = 64


class Selector:
    """Chooses rows of a fleet; ``seed`` shuffles nodes that are equally good, so that schedulers do not all take the same, and
    ``sharing`` says which of them to prefer while others are at work.

    What it works out for a request it keeps, so the next of the same shape costs what changed on the fleet. Where a filter or a
    weigher fails, whoever asked gets a ``PolicyError``.
    """

    def __init__(
        self,
        fleet: Fleet,
        policies: Policies,
        seed: int,
        node_preference: NodePreference | None = None,
        ids: IdSource | None = None,
    ) -> None:
        self.fleet = fleet
        self.policies = policies
        self._node_preference = node_preference
        self._ids: IdSource = ids if ids is not None else SystemIds()
        self._random = np.random.default_rng(seed)
        self._shuffle: Scores = np.zeros(0)
        self._rankings: OrderedDict[bytes, Ranking] = OrderedDict()

    def check(self, request: Request) -> None:
        """Raises ``BadRequestError`` where a request names a weigher that there is not: only who has them can tell."""
        active(request, self.policies.weighers)

    def best(self, request: Request, count: int = 1, exclude: Collection[int] = ()) -> list[int]:
        """Up to ``count`` rows that the request may go to, the best first, none of those in ``exclude``."""
        return self._ranking(request).best(count, exclude)

    def passes(self, request: Request, row: int) -> bool:
        """Whether the request may go to a row."""
        return bool(self._ranking(request).score[row] != -np.inf)

    def choices(self, request: Request) -> list[Choice]:
        """A node for each instance, as if those before it were there already. Nothing is claimed."""
        choices = []
        with self._restored() as laid_over:
            for instance in request.instance_ids(self._ids):
                rows = self.best(request, 1 + request.alternates)
                names = [self.fleet.names[row] for row in rows]
                if not names:
                    remaining, unknown, lacks = self.remaining(request), self.unknown(request), self.lacks(request)
                    choices.append(Choice(instance, None, (), remaining, unknown, lacks))
                    continue
                choices.append(Choice(instance, names[0], tuple(names[1:])))
                self.lay_over(rows[0], instance, request, laid_over)
        return choices

    def lay_over(
        self, row: int, instance: str, request: Request, laid_over: dict[int, OutstandingClaims | None]
    ) -> None:
        """Act as if the instance were on the row; ``laid_over`` gets what was there before."""
        before = self.fleet.claim_overlay.outstanding.get(row)
        laid_over.setdefault(row, before)
        amounts = dict(before.amounts) if before is not None else {}
        for name, amount in request.resources.items():
            amounts[name] = amounts.get(name, 0) + amount
        tenants = dict(before.tenants) if before is not None else {}
        tenants[instance] = request.group.name if request.group is not None else None
        self.fleet.overlay(row, OutstandingClaims(amounts, tenants, before is not None and before.blocked))

    def remaining(self, request: Request, exclude: Collection[int] = ()) -> tuple[Remaining, ...]:
        """How many nodes each filter left, one after the other."""
        fleet = self.fleet
        left: Flags = np.ones(len(fleet), np.bool_)
        left[list(exclude)] = False
        found = [Remaining("all", int(left.sum()))]
        for name, filter_ in self.policies.filters.items():
            left = left & asking.guarded_filter(name, filter_)(fleet, fleet.all, request)
            found.append(Remaining(name, int(left.sum())))
        return tuple(found)

    def unknown(self, request: Request) -> str:
        """What a request insists on that is nowhere: the nodes, the zone, the instances. Empty where there is no such thing."""
        fleet = self.fleet
        if not len(fleet):
            return ""
        if request.force_nodes and not any(name in fleet.rows for name in request.force_nodes):
            return f"no node {_either(request.force_nodes)} is known"
        if request.zone and not np.any(fleet.zone[fleet.all] == fleet.zones.get(request.zone, -1)):
            return f"no node is in zone {request.zone}"
        if request.same_host and not any(fleet.instances.rows_with(instance) for instance in request.same_host):
            return f"no node has {_either(request.same_host)}"
        return ""

    def lacks(self, request: Request, exclude: Collection[int] = ()) -> tuple[Lack, ...]:
        """The classes that no node has enough of, of those that ``resources`` was asked of; without the rows in ``exclude``."""
        fleet = self.fleet
        left: Flags = np.ones(len(fleet), np.bool_)
        left[list(exclude)] = False
        for name, filter_ in self.policies.filters.items():
            if name == "resources":
                break
            left = left & asking.guarded_filter(name, filter_)(fleet, fleet.all, request)
        if not left.any():
            return ()
        most = {
            name: int(fleet.free[name][fleet.all][left].max()) if name in fleet.free else 0
            for name in request.resources
        }
        return tuple(
            Lack(name, amount, max(0, most[name])) for name, amount in request.resources.items() if most[name] < amount
        )

    def explain(self, request: Request, count: int = 5, exclude: Collection[int] = ()) -> Explanation:
        """Why: filter by filter, and the best nodes weigher by weigher; without the rows in ``exclude``."""
        best = []
        weighed = active(request, self.policies.weighers)
        weighs = [(name, asking.guarded_weigher(name, weigher), multiplier) for name, weigher, multiplier in weighed]
        for row in self.best(request, count, exclude):
            rows = np.array([row])
            parts = {
                name: round(float(np.sum(multiplier * weigh(self.fleet, rows, request))), 4)
                for name, weigh, multiplier in weighs
            }
            best.append((self.fleet.names[row], parts))
        return Explanation(self.remaining(request, exclude), tuple(best))

    def _ranking(self, request: Request) -> Ranking:
        ranking = self._rankings.get(request.shape)
        if ranking is None:
            ranking = self._rankings[request.shape] = Ranking(
                self.fleet, request, self.policies.filters, self.policies.weighers
            )
            if len(self._rankings) > KEPT_RANKINGS_COUNT:
                self._rankings.popitem(last=False)
        else:
            self._rankings.move_to_end(request.shape)
        if len(self._shuffle) < len(self.fleet):
            more = self._random.random(max(len(self._shuffle), len(self.fleet) - len(self._shuffle)))
            self._shuffle = np.concatenate([self._shuffle, more])
        if self._node_preference is None:
            ranking.refresh(self._shuffle)
        else:
            worth = self._node_preference.bonus(self.fleet.names)
            ranking.refresh(self._shuffle, worth, self._node_preference.changes)
        return ranking

    @contextmanager
    def _restored(self) -> Iterator[dict[int, OutstandingClaims | None]]:
        laid_over: dict[int, OutstandingClaims | None] = {}
        try:
            yield laid_over
        finally:
            for row, before in laid_over.items():
                self.fleet.overlay(row, before)


def _either(names: Sequence[str]) -> str:
    return " or ".join([*names[:SHOWN_COUNT], *("…" for _ in names[SHOWN_COUNT : SHOWN_COUNT + 1])])
