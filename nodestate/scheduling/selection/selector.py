"""The selector: finds the best nodes for the instances of a request on the present fleet."""

from __future__ import annotations

import dataclasses
import itertools
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np

from nodestate.errors import SHOWN_COUNT
from nodestate.model.group_policy import GroupPolicy
from nodestate.ports.ids import IdSource, SystemIds
from nodestate.scheduling.fleet import Flags, Fleet, OutstandingClaims, Scores
from nodestate.scheduling.request import Request, joint_request, parts_of
from nodestate.scheduling.selection.choice import Choice, Explanation, Lack, Remaining
from nodestate.scheduling.selection.node_faults import NodeFaults
from nodestate.scheduling.selection.node_preference import NodePreference
from nodestate.scheduling.selection.plugins import Policies
from nodestate.scheduling.selection.policy_guard import guarded_filter, guarded_weigher
from nodestate.scheduling.selection.ranking import Ranking, active_weighers

KEPT_RANKINGS_COUNT: Final = 64
"""The largest number of rankings that a selector keeps. The least recently used ranking is dropped first."""


class Selector:
    """Chooses nodes of a fleet by filters and weighers.

    The selector keeps a ranking for each shape of request (``Request.shape``). For the next request of the same shape,
    only the rows that changed meanwhile are filtered and weighed again.

    All methods that filter or weigh nodes raise ``PolicyError`` if a filter or weigher of another package fails. The
    methods that weigh nodes also raise ``BadRequestError``, as ``check`` does.

    Args:
        fleet: The fleet to choose from.
        policies: The filters and weighers.
        seed: The seed of the random order of equally good nodes. Give schedulers different seeds, so that they do not
            all choose the same node.
        node_preference: Prefers some nodes while other schedulers are active; None for no preference.
        ids: Makes the ids of instances if a request does not name them; None for random ids.
        node_faults: Lowers the rank of nodes whose agent was gone or failed; None if no rank is lowered.
    """

    def __init__(
        self,
        fleet: Fleet,
        policies: Policies,
        seed: int,
        node_preference: NodePreference | None = None,
        ids: IdSource | None = None,
        node_faults: NodeFaults | None = None,
    ) -> None:
        self.fleet = fleet
        """The fleet whose nodes are chosen."""
        self.policies = policies
        """The filters and weighers that choose the nodes."""
        self._node_preference = node_preference
        """Prefers some nodes while other schedulers are active; None for no preference."""
        self._ids: IdSource = ids if ids is not None else SystemIds()
        """Makes the ids of instances if a request does not name them."""
        self._node_faults = node_faults
        """Lowers the rank of nodes whose agent was gone or failed; None if no rank is lowered."""
        self._random = np.random.default_rng(seed)
        """The random generator that fills ``_shuffle``."""
        self._shuffle: Scores = np.zeros(0)
        """A random number from 0 to 1 for each row, which decides the order of equally good rows."""
        self._rankings: OrderedDict[bytes, Ranking] = OrderedDict()
        """The ranking for each shape of request. The most recently used ranking is the last one."""

    def check(self, request: Request) -> None:
        """Raise ``BadRequestError`` if ``Request.weights`` names a weigher that this selector does not have."""
        active_weighers(request, self.policies.weighers)

    def best(self, request: Request, count: int = 1, exclude: Collection[int] = ()) -> list[int]:
        """Return the best rows that pass all filters for a request, the best first.

        Args:
            request: The request.
            count: The largest number of rows to return. Fewer are returned if fewer pass all filters.
            exclude: Rows that are not returned.
        """
        return self._ranking(request).best(count, exclude, self._losses())

    def removed(self, request: Request) -> Mapping[str, int]:
        """Return by filter how many nodes it excluded that no filter before it did.

        They come from the ranking of the request's shape (``Exclusions``); empty if there is none.
        """
        ranking = self._rankings.get(request.shape)
        return ranking.exclusions.removed() if ranking is not None else {}

    def passes(self, request: Request, row: int) -> bool:
        """Return whether a row passes all filters for the request."""
        return bool(self._ranking(request).score[row] != -np.inf)

    def choices(self, request: Request) -> list[Choice]:
        """Choose a node for each instance of the request, without claiming it.

        Each instance is chosen as if the earlier instances of the request were already on their nodes. The instances of
        a hard group all get a node, or none of them gets one. Those of an affinity group get the best node with room
        for all of them. When the method returns, the fleet is unchanged.
        """
        ids = request.instance_ids(self._ids)
        if request.count > 1 and request.group is not None and request.group.policy == "affinity":
            [choice] = self.choices(joint_request([request] * request.count))
            return [dataclasses.replace(choice, instance=instance) for instance in ids]
        contradiction = self.contradiction(request)
        if contradiction:
            steps = (Remaining("all", len(self.fleet)), Remaining("group", 0))
            return [Choice(instance, None, (), steps, contradiction) for instance in ids]
        choices = []
        with self._restored() as replaced:
            for instance in ids:
                rows = self.best(request, 1 + request.alternates)
                names = [self.fleet.names[row] for row in rows]
                removed = self.removed(request)
                if not names:
                    remaining, unknown, lacks = self.remaining(request), self.unknown(request), self.lacks(request)
                    choices.append(Choice(instance, None, (), remaining, unknown, lacks, removed))
                    continue
                choices.append(Choice(instance, names[0], tuple(names[1:]), removed=removed))
                self.assume(rows[0], instance, request, replaced)
        failed = next((choice for choice in choices if choice.node is None), None)
        if failed is not None and request.group is not None and request.group.policy == "anti-affinity":
            return [dataclasses.replace(failed, instance=instance) for instance in ids]
        return choices

    def fill(self, request: Request, most: int) -> tuple[int, tuple[Remaining, ...], tuple[Lack, ...]]:
        """Place instances one after the other until none fits, without claiming them. The fleet is then as before.

        Args:
            request: The request. Its ``count`` does not matter.
            most: Stop after this number of instances.

        Returns the number of instances, and for the next one the results of ``remaining`` and ``lacks``.
        """
        placed = 0
        with self._restored() as replaced:
            while placed < most and (rows := self.best(request)):
                placed += 1
                self.assume(rows[0], f"instance {placed} of a question", request, replaced)
            return placed, self.remaining(request), self.lacks(request)

    def assume(self, row: int, instance: str, request: Request, replaced: dict[int, OutstandingClaims | None]) -> None:
        """Change the fleet as if the instance were claimed on the row.

        The caller must restore the row's outstanding claims from ``replaced`` afterwards (``Fleet.overlay``).

        Args:
            row: The row.
            instance: The instance's id.
            request: The request with the instance's resources and group.
            replaced: The outstanding claims of each changed row before its first change. The method adds an entry for
                ``row``, unless an earlier call has added one.
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
        """Count the nodes that remain after each filter, in the order of the filters.

        The first element has the name ``all`` and counts the nodes before the first filter.

        Args:
            request: The request.
            exclude: Rows that are not counted.
        """
        fleet = self.fleet
        left: Flags = np.ones(len(fleet), np.bool_)
        left[list(exclude)] = False
        found = [Remaining("all", int(left.sum()))]
        for name, filter_ in self.policies.filters.items():
            left = left & guarded_filter(name, filter_)(fleet, fleet.all, request)
            found.append(Remaining(name, int(left.sum())))
        return tuple(found)

    def unknown(self, request: Request) -> str:
        """Return a sentence about something that the request requires and that does not exist in the fleet.

        This is the case if no node of ``force_nodes`` is known, if no node is in the requested zone, if each node has a
        taint that is not tolerated, if no node gives a requested amount to one instance, or if no node has an instance
        of ``same_host``. Otherwise, and if the fleet has no nodes, the sentence is empty.
        """
        fleet = self.fleet
        if not len(fleet):
            return ""
        if request.force_nodes and not any(name in fleet.rows for name in request.force_nodes):
            return f"no node {_either(request.force_nodes)} is known; 'nodestate view' lists them"
        if request.zone and not np.any(fleet.zone[fleet.all] == fleet.zones.get(request.zone, -1)):
            return f"no node is in zone {request.zone}"
        taints = fleet.taints.have_no_other(request.tolerations, fleet.all)
        if not np.any(taints):
            found = set(fleet.taints.words_on(np.ones(len(fleet), np.bool_))) - set(request.tolerations)
            return f"each node has a taint that the request does not tolerate: {_either(sorted(found))}"
        for name, amount in itertools.chain.from_iterable(amounts.items() for amounts in parts_of(request)):
            if name in fleet.free and not np.any(fleet.units.allow({name: amount}, fleet.all)):
                units = fleet.units.of(name, 0)
                return (
                    f"no node gives {amount:,} of {name} to one instance; {fleet.names[0]} has min_unit "
                    f"{units.min_unit:,}, max_unit {units.max_unit:,} and step_size {units.step_size:,}"
                )
        if request.same_host and not any(fleet.instances.rows_with(instance) for instance in request.same_host):
            return f"no node has {_either(request.same_host)}"
        return ""

    def contradiction(self, request: Request) -> str:
        """Return a sentence about a member of the request's group that was booted under another policy.

        A group has one policy. If members had several, each new member could break the policy of an earlier one. The
        sentence is empty if there is no such member, or if the request has no group.
        """
        if request.group is None:
            return ""
        policy = GroupPolicy(request.group.policy, request.group.max_per_node)
        member = self.fleet.group_policies.contradiction(request.group.name, policy)
        if member is None:
            return ""
        return (
            f"group {request.group.name} has the policy {member.policy}, under which {member.instance} is on "
            f"{self.fleet.names[member.row]}, and the request asks for {policy}; ask for the group's policy, or name "
            "another group"
        )

    def lacks(self, request: Request, exclude: Collection[int] = ()) -> tuple[Lack, ...]:
        """Return the requested resource classes that no candidate has enough of.

        Candidates are the nodes that pass every filter before the filter ``resources``, without the rows in
        ``exclude``. If there are no candidates, nothing is returned: an earlier filter is the reason that no node was
        found.

        Args:
            request: The request.
            exclude: Rows that are no candidates.
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
            name: int(np.max(fleet.free[name][fleet.all][left])) if name in fleet.free else 0
            for name in request.resources
        }
        return tuple(
            Lack(name, amount, max(0, most[name])) for name, amount in request.resources.items() if most[name] < amount
        )

    def explain(self, request: Request, count: int = 5, exclude: Collection[int] = ()) -> Explanation:
        """Explain a selection: how many nodes remain after each filter, and how the best nodes were weighed.

        Args:
            request: The request.
            count: The largest number of best nodes to explain.
            exclude: Rows that are neither counted nor explained.
        """
        best = []
        ranking, losses = self._ranking(request), self._losses()
        weighed = active_weighers(request, self.policies.weighers)
        weighs = [(name, guarded_weigher(name, weigher), multiplier) for name, weigher, multiplier in weighed]
        for row in self.best(request, count, exclude):
            rows = np.array([row])
            parts = {
                name: round(float(np.sum(multiplier * weigh(self.fleet, rows, request))), 4)
                for name, weigh, multiplier in weighs
            }
            if losses:
                parts["refused"] = -round(ranking.loss_of_weight(losses.get(row, 0.0)), 4)
            best.append((self.fleet.names[row], parts))
        faults = self._node_faults.recent() if self._node_faults is not None else ()
        return Explanation(self.remaining(request, exclude), tuple(best), faults)

    def _losses(self) -> Mapping[int, float]:
        """Return the loss of rank of the rows whose nodes had a fault lately."""
        return self._node_faults.losses(self.fleet.rows) if self._node_faults is not None else {}

    def _ranking(self, request: Request) -> Ranking:
        """Return the ranking for the request's shape, up to date. If there is none, a new one is made and kept."""
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
        """Run a ``with`` block with an empty map for ``assume``, and undo the changes of ``assume`` at its end."""
        replaced: dict[int, OutstandingClaims | None] = {}
        try:
            yield replaced
        finally:
            for row, before in replaced.items():
                self.fleet.overlay(row, before)


def _either(names: Sequence[str]) -> str:
    """Join names by ``or`` for a message. If there are too many names, ``…`` stands for the rest."""
    return " or ".join([*names[:SHOWN_COUNT], *("…" for _ in names[SHOWN_COUNT : SHOWN_COUNT + 1])])
