"""Updates: an instance asks for other things than at its boot, from its next migration on.

The agent keeps the request of an instance as hints of the allocation, and each migration reads it there. So after a
zone was renamed, or after the instance that ``same_host`` names has ended, no node fits the request any longer. An
update replaces the hints. The instance stays on its node, also if the new request does not allow that node::

    on A under the old hints --Build in place on A, under a later order id--> on A under the new hints
    changed or migrated meanwhile --the agent refuses: the order names the id that the allocation had--> failed

The order is a build in place, as for a resize, with equal resources. So agents of earlier versions carry it out, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from nodestate.errors import BadRequestError
from nodestate.scheduling.claims import NoHostFound
from nodestate.scheduling.migrations import Migrations
from nodestate.scheduling.order_ids import lifetime_id_of, new_order_id, order_id_of
from nodestate.scheduling.orders import Booted, BootOutcome, Failed, NodeRefusal, refused_by
from nodestate.scheduling.request import STORED_FIELDS, hints_of, request_of
from nodestate.scheduling.session import Session

_TRAIT: Final = re.compile("[A-Z0-9_]+")
"""The traits of OpenStack. Those of nodes may have any characters."""


class Updates:
    """Changes what booted instances asked for, such as their zone or traits. Sends its orders through one scheduler."""

    def __init__(self, session: Session, migrations: Migrations) -> None:
        self._session = session  # the parts of the scheduler
        self._migrations = migrations  # finds instances

    def update(self, instance: str, changes: Mapping[str, Any], *, timeout_s: float = 60.0) -> BootOutcome:
        """Change the constraints of an instance's request, and wait until its agent has stored them.

        Args:
            instance: The instance's id.
            changes: The new values by the name of a field of ``Request``, such as ``{"zone": "az2"}``. None removes a
                constraint, as in ``{"same_host": None}``. Resources, ids and the group cannot be changed.
            timeout_s: Seconds to wait for the agent.

        Returns ``Booted`` with the instance's node and a version of it that shows the new hints. Or ``Failed``, if the
        agent refused: nothing was changed.

        Raises:
            NotFoundError: If no node reports the instance, or if it belongs to a reservation of which not all members
                are built. Nothing was changed.
            BadRequestError: If a change or the changed request is invalid. Nothing was changed.
            StaleViewError: If no view is fresh enough. Nothing was changed.
            TimeoutError: If the agent does not answer in time, and no view shows the new hints. They may be stored
                later, until the deadline of the last order.
        """
        for field in changes:
            if field not in STORED_FIELDS:
                raise BadRequestError(field, f"can't be changed; an update changes {', '.join(STORED_FIELDS)}")
        session, fleet = self._session, self._session.fleet
        row, allocation = self._migrations.locate(instance)
        self._check_words(changes)
        old = self._migrations.settled_hints(instance, row, allocation.get("hints") or {})
        asked = {field: value for field, value in {**old, **changes}.items() if value is not None}
        request = request_of(instance, allocation["resources"], allocation.get("group"), asked)
        others = {name: value for name, value in old.items() if name not in STORED_FIELDS}
        hints = {**others, **hints_of(request)}
        if hints == allocation.get("hints"):
            return Booted(instance, fleet.names[row], fleet.version[row])
        expected = order_id_of(old)
        order_id = new_order_id(session.clock, session.ids, expected)
        hints |= {"boot": lifetime_id_of(old) or order_id, "order": order_id}
        update = session.orders.hint_updates.begin(fleet.names[row], instance, allocation, hints, expected)

        def is_settled() -> bool:
            update.resend()
            return update.answer is not None or order_id_of(fleet.reports.hints(row, instance)) == order_id

        try:
            session.run(is_settled, timeout_s)
        except TimeoutError as error:
            raise TimeoutError(
                f"the agent of {update.order.node} stored no change within {timeout_s:g} s; it may still do so"
            ) from error.__cause__
        finally:
            session.orders.hint_updates.abandon([update.order.id])
        answer = update.answer
        if answer is None:
            return Booted(instance, fleet.names[row], fleet.version[row])
        if answer.refused:
            refusal = NodeRefusal(answer.node, answer.refused, answer.detail)
            reason = refused_by(refusal, session.config.answer_timeout_s)
            return Failed(instance, NoHostFound(reason=reason), (refusal,))
        return Booted(instance, answer.node, answer.version)

    def _check_words(self, changes: Mapping[str, Any]) -> None:
        """Raise ``BadRequestError`` for a word that is probably a slip: the instance could then never be migrated.

        Such a word is a zone that begins or ends with a blank, or a trait in no form of OpenStack, and no node of the
        view has it.
        """
        fleet, zone = self._session.fleet, changes.get("zone")
        if isinstance(zone, str) and zone != zone.strip() and zone not in fleet.zones:
            raise BadRequestError(
                "zone", f"{zone!r} begins or ends with a blank, and no node is in it; leave out blanks"
            )
        for field in ("required_traits", "any_traits", "forbidden_traits"):
            words = changes.get(field)
            for word in words if isinstance(words, list | tuple) else ():
                is_trait = not isinstance(word, str) or not word or _TRAIT.fullmatch(word)
                if not (is_trait or np.any(fleet.traits.have_any((word,), fleet.all))):
                    raise BadRequestError(
                        field, f"{word!r:.80} is no trait: no node has it; a trait consists of A to Z, 0 to 9 and _"
                    )
