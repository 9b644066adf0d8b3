"""Terminations: instances are ended for good, at their user's request.

::

    on a node --End--> gone
    on a node --the End is lost, and a view still shows the instance--> End is sent again (termination_orders)
    migrated by a scheduler that did not know of the End --a view shows the same lifetime--> End is sent there, too
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from nodestate.errors import NotFoundError, StaleViewError
from nodestate.scheduling.order_ids import lifetime_id_of, order_id_of
from nodestate.scheduling.orders import Termination
from nodestate.scheduling.session import Operation, Session, Wait


class Terminations:
    """Ends instances for good, through one scheduler."""

    def __init__(self, session: Session) -> None:
        self._session = session  # the parts of the scheduler

    def terminate(self, instances: Iterable[tuple[str, str]]) -> None:
        """Order agents to end instances for good, and return without waiting.

        Later steps send the orders again while views show the instances. They also send them to other nodes, if a
        scheduler that did not know of the termination has migrated an instance.

        Args:
            instances: The instances, as (node, instance).

        Raises ``ConfigError`` if the scheduler has no courier.
        """
        instances = list(instances)
        # Refresh first: we end by order id, and an in-place change since the last view has a new id.
        with suppress(StaleViewError):
            self._session.refresh()
        self._terminate(instances)

    def terminate_everywhere(self, instances: Iterable[str], timeout_s: float = 60.0) -> dict[str, list[str]]:
        """End instances for good on all nodes that report them, and wait until no node reports them.

        Args:
            instances: The ids of the instances.
            timeout_s: Seconds to wait.

        Returns by instance the nodes that reported it before.

        Raises:
            NotFoundError: If no node reports one of the instances. No instance has been ended.
            StaleViewError: If no view is fresh enough. No instance has been ended.
            TimeoutError: If views still show an instance after ``timeout_s`` seconds; later steps send the orders
                again. Or if a node that left has one of the instances, as soon as no other node has it: the message
                tells how to forget that node.
        """
        return self._session.complete(self.termination(instances, timeout_s))

    def termination(self, instances: Iterable[str], timeout_s: float = 60.0) -> Operation[dict[str, list[str]]]:
        """End instances as ``terminate_everywhere`` does, as an operation that other work can interleave."""
        session, fleet = self._session, self._session.fleet
        session.refresh()
        nodes = {
            instance: [fleet.names[row] for row in fleet.instances.reporting_rows(instance)] for instance in instances
        }
        missing = [instance for instance, found in nodes.items() if not found]
        if missing:
            raise NotFoundError("instance", f"no node reports {', '.join(missing)}; no instance was terminated")
        terminations = self._terminate([(node, instance) for instance, found in nodes.items() for node in found])
        left = [one for one in terminations if session.orders.terminations.is_on_node_that_left(one)]
        terminations = [one for one in terminations if one not in left]
        try:
            yield Wait(lambda: self._is_none_shown(terminations), timeout_s)
        except TimeoutError as error:
            still_shown = [
                f"{one.instance} on {one.node}"
                for one in terminations
                if session.orders.terminations.is_any_shown([one])
            ]
            raise TimeoutError(
                f"views still show {', '.join(still_shown) or 'the instances'} {timeout_s:g} s after the termination; "
                "if an agent is down, terminate its instances again when it is up"
            ) from error.__cause__
        if left:
            raise TimeoutError(
                f"{left[0].instance} stays on {left[0].node}, which left with it: no agent carries out orders there; "
                f"if the instances of {left[0].node} no longer run, forget the node: "
                f"nodestate node forget {left[0].node}"
            )
        return nodes

    def _terminate(self, instances: Sequence[tuple[str, str]]) -> list[Termination]:
        """Order agents to end these instances, as (node, instance), and drop their claims. Returns the terminations."""
        terminations = [one for node, instance in instances for one in self._terminations_of(node, instance)]
        self._session.orders.terminations.terminate_orders(terminations)
        self._session.drop_claims_of({(one.node, one.instance) for one in terminations})
        return terminations

    def _terminations_of(self, node: str, instance: str) -> list[Termination]:
        """Return one termination for each node that reports the instance, and one for ``node`` in any case."""
        fleet = self._session.fleet
        hints = {
            fleet.names[row]: fleet.reports.hints(row, instance) for row in fleet.instances.reporting_rows(instance)
        }
        terminations = [
            Termination(name, instance, order_id_of(own), lifetime_id_of(own)) for name, own in hints.items()
        ]
        if node not in hints:
            unseen = self._session.orders.terminations.unseen_build(node, instance)
            terminations.append(unseen if unseen is not None else Termination(node, instance))
        return terminations

    def _is_none_shown(self, terminations: Iterable[Termination]) -> bool:
        """Read a view, and return whether it shows none of the instances. Without a fresh view, return False."""
        return self._session.try_refresh() and not self._session.orders.terminations.is_any_shown(terminations)
