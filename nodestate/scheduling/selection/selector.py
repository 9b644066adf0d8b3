"""The selector: the best nodes for each instance of a request, on the fleet as it is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np

from nodestate.errors import SHOWN_COUNT
from nodestate.ports.ids import IdSource, SystemIds
from nodestate.scheduling.fleet import Flags, Fleet, OutstandingClaims, Scores
from nodestate.scheduling.request import Request
from nodestate.scheduling.selection.choice import Choice, Explanation, Lack, Remaining
from nodestate.scheduling.selection.node_preference import NodePreference
from nodestate.scheduling.selection.plugins import Policies
from nodestate.scheduling.selection.policy_guard import guarded_filter, guarded_weigher
from nodestate.scheduling.selection.ranking import Ranking, active_weighers

KEPT_RANKINGS_COUNT: Final = 64
"""Rankings that a selector keeps; the one that was used the longest time ago is dropped first."""


class Selector:
    """Chooses nodes of a fleet by filters and weighers.

    The selector keeps a ranking for each shape of request, so that the next request of the same shape costs only what
    changed on the fleet. All methods raise ``PolicyError`` if a filter or a weigher fails.

    Args:
        fleet: The fleet to choose from.
        policies: The filters and weighers.
        seed: The seed by which equally good nodes are shuffled, so that schedulers do not all take the same one.
        node_preference: The nodes that the scheduler prefers while others are active; None for no preference.
        ids: The source of ids for instances that a request does not name; None for random ids.
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
        """The fleet to choose from."""
        self.policies = policies
        """The filters and weighers."""
        self._node_preference = node_preference
        """The nodes that this scheduler prefers; None for no preference."""
        self._ids: IdSource = ids if ids is not None else SystemIds()
        """The source of ids for instances without one."""
        self._random = np.random.default_rng(seed)
        """The source of ``_shuffle``."""
        self._shuffle: Scores = np.zeros(0)
        """A random number from 0 to 1 for each row, which decides between equally good rows."""
        self._rankings: OrderedDict[bytes, Ranking] = OrderedDict()
        """The rankings by shape of request, the one that was used last at the end."""

    def check(self, request: Request) -> None:
        """Raise ``BadRequestError`` if a request gives a weight to a weigher that this selector does not have."""
        active_weighers(request, self.policies.weighers)

    def best(self, request: Request, count: int = 1, exclude: Collection[int] = ()) -> list[int]:
        """Up to ``count`` rows that pass all filters, the best first, without the rows in ``exclude``."""
        return self._ranking(request).best(count, exclude)

    def passes(self, request: Request, row: int) -> bool:
        """Whether a row passes all filters for the request."""
        return bool(self._ranking(request).score[row] != -np.inf)

    def choices(self, request: Request) -> list[Choice]:
        """Choose a node for each instance of the request, as if the instances before it were on their nodes already.
        Nothing is claimed, and the fleet is afterwards as before.
        """
        choices = []
        with self._restored() as replaced:
            for instance in request.instance_ids(self._ids):
                rows = self.best(request, 1 + request.alternates)
                names = [self.fleet.names[row] for row in rows]
                if not names:
                    remaining, unknown, lacks = self.remaining(request), self.unknown(request), self.lacks(request)
                    choices.append(Choice(instance, None, (), remaining, unknown, lacks))
                    continue
                choices.append(Choice(instance, names[0], tuple(names[1:])))
                self.assume(rows[0], instance, request, replaced)
        return choices

    def assume(self, row: int, instance: str, request: Request, replaced: dict[int, OutstandingClaims | None]) -> None:
        """Show the fleet as if the instance were on the row.

        Args:
            row: The row.
            instance: The instance's id.
            request: The request, for the instance's resources and group.
            replaced: Gets the outstanding claims that the row had before, unless an earlier call has put them there.
        """
        before = self.fleet.claim_overlay.outstanding.get(row)
        replaced.setdefault(row, before)
        amounts = dict(before.amounts) if before is not None else {}
        for name, amount in request.resources.items():
            amounts[name] = amounts.get(name, 0) + amount
        tenants = dict(before.tenants) if before is not None else {}
        tenants[instance] = request.group.name if request.group is not None else None
        self.fleet.overlay(row, OutstandingClaims(amounts, tenants, before is not None and before.blocked))

    def remaining(self, request: Request, exclude: Collection[int] = ()) -> tuple[Remaining, ...]:
        """How many nodes each filter leaves, in their order, without the rows in ``exclude``."""
        fleet = self.fleet
        left: Flags = np.ones(len(fleet), np.bool_)
        left[list(exclude)] = False
        found = [Remaining("all", int(left.sum()))]
        for name, filter_ in self.policies.filters.items():
            left = left & guarded_filter(name, filter_)(fleet, fleet.all, request)
            found.append(Remaining(name, int(left.sum())))
        return tuple(found)

    def unknown(self, request: Request) -> str:
        """A sentence about a required node, zone or instance that does not exist; empty if all of them exist."""
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
        """The resource classes of which no node has enough, among the nodes that pass the filters before ``resources``
        and whose rows are not in ``exclude``.
        """
        fleet = self.fleet
        left: Flags = np.ones(len(fleet), np.bool_)
        left[list(exclude)] = False
        for name, filter_ in self.policies.filters.items():
            if name == "resources":
                break
            left = left & guarded_filter(name, filter_)(fleet, fleet.all, request)
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
        """Explain a selection: what each filter leaves, and the weights of the ``count`` best nodes, without the rows
        in ``exclude``.
        """
        best = []
        weighed = active_weighers(request, self.policies.weighers)
        weighs = [(name, guarded_weigher(name, weigher), multiplier) for name, weigher, multiplier in weighed]
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
            bonus = self._node_preference.bonus(self.fleet.names)
            ranking.refresh(self._shuffle, bonus, self._node_preference.changes)
        return ranking

    @contextmanager
    def _restored(self) -> Iterator[dict[int, OutstandingClaims | None]]:
        replaced: dict[int, OutstandingClaims | None] = {}
        try:
            yield replaced
        finally:
            for row, before in replaced.items():
                self.fleet.overlay(row, before)


def _either(names: Sequence[str]) -> str:
    return " or ".join([*names[:SHOWN_COUNT], *("…" for _ in names[SHOWN_COUNT : SHOWN_COUNT + 1])])
