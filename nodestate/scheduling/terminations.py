"""Terminations: instances are ended for good, at their user's request.

::

    on a node --End--> gone
    on a node --the End is lost, and a view still shows the instance--> End is sent again (termination_orders)
    migrated meanwhile by a scheduler that did not know --a view shows the same lifetime--> End is sent there, too
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from nodestate.errors import NotFoundError, StaleViewError
from nodestate.scheduling.order_ids import lifetime_id_of, order_id_of
from nodestate.scheduling.orders import Termination
from nodestate.scheduling.session import Session


class Terminations:
    """Ends instances through one scheduler."""

    def __init__(self, session: Session) -> None:
        self._session = session  # the scheduler's parts

    def terminate(self, instances: Iterable[tuple[str, str]]) -> None:
        """Tell agents to end instances for good, as (node, instance), and return at once.

        Later steps send the orders again while views show the instances, also on nodes to which a scheduler that did
        not know of the termination migrated them. Raises ``ConfigError`` if the scheduler has no courier.
        """
        instances = list(instances)
        # Refresh first: we end by order id, and an in-place change since the last view has a new id.
        with suppress(StaleViewError):
            self._session.refresh()
        self._terminate(instances)

    def terminate_everywhere(self, instances: Iterable[str], timeout_s: float = 60.0) -> dict[str, list[str]]:
        """End instances for good, on whatever nodes they are, and wait until no node reports them.

        Returns the nodes that reported each instance. Raises ``NotFoundError`` if no node reports one of them (then
        none is ended), ``StaleViewError`` if there is no fresh view, and ``TimeoutError`` if views still show one after
        ``timeout_s`` seconds.
        """
        session, fleet = self._session, self._session.fleet
        session.refresh()
        nodes = {
            instance: [fleet.names[row] for row in fleet.instances.reporting_rows(instance)] for instance in instances
        }
        missing = [instance for instance, found in nodes.items() if not found]
        if missing:
            raise NotFoundError("instance", f"no node reports {', '.join(missing)}; no instance was terminated")
        terminations = self._terminate([(node, instance) for instance, found in nodes.items() for node in found])
        try:
            session.run(lambda: self._is_none_shown(terminations), timeout_s)
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
        return nodes

    def _terminate(self, instances: Sequence[tuple[str, str]]) -> list[Termination]:
        terminations = [one for node, instance in instances for one in self._terminations_of(node, instance)]
        self._session.orders.terminations.terminate_orders(terminations)
        self._session.drop_claims_of({(one.node, one.instance) for one in terminations})
        return terminations

    def _terminations_of(self, node: str, instance: str) -> list[Termination]:
        """Return one termination for each node that the last view shows with the instance, and always one for ``node``."""
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
        return self._session.try_refresh() and not self._session.orders.terminations.is_any_shown(terminations)
