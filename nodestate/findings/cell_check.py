"""All checks of a cell, one part after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from nodestate.config import Config, servers_of
from nodestate.designs import DESIGNS
from nodestate.designs.control import Control
from nodestate.designs.inspection import CellInspector, read_copies, replica_pairs
from nodestate.designs.stored_design import StoredDesign
from nodestate.errors import NodestateError
from nodestate.findings.agent_checks import examine_agents
from nodestate.findings.broker_checks import examine_broker, examine_unnamed_layouts
from nodestate.findings.design_checks import (
    examine_copies,
    examine_design,
    examine_record,
    examine_replicas,
    examine_single_replica,
)
from nodestate.findings.finding import Finding, found
from nodestate.findings.signature_checks import examine_refused_answers, examine_signatures, examine_tags
from nodestate.findings.store_checks import examine_damage, examine_database, examine_store
from nodestate.findings.value_checks import examine_values
from nodestate.ports import StoreRole, SystemClock
from nodestate.store.signed_values import ValueCounts, value_auth
from nodestate.text import count_text


def examine_cell(config: Config, control: Control, designs: Sequence[StoredDesign]) -> Iterator[Finding]:
    """Examine the broker, each store, each partition and the agents of a cell.

    Connects to all of them, so it takes as long as the slowest one needs to answer. Without a broker in the settings
    (``memory://``), the broker and what only it can tell are left out.

    Args:
        config: settings of the cell.
        control: the control record of the cell.
        designs: the designs to examine.
    """
    layouts = list(dict.fromkeys(stored.partitions for stored in designs))
    copies = read_copies(config, [stored.design for stored in designs])
    yield from examine_record(config, copies)
    yield from examine_copies(config.cell, copies)
    has_broker = not config.broker.startswith("memory:")
    if has_broker:
        yield from _findings_or_error(
            "broker-unreachable",
            "broker",
            lambda: [*examine_broker(config, layouts), *examine_unnamed_layouts(config, control, layouts)],
        )
    for one in control.leaving:
        partitions = count_text(one.partitions, "partition")
        says = f"{one} was retired, but the queues of its {partitions} may still exist and fill up"
        yield found(
            "layout-retired-queues", "queues", says, f"run 'nodestate design retire {one}' again: it deletes them"
        )
    changed_at = max((copy.control.version for copy in copies if copy.control is not None), default=0)
    for url in filter(None, (config.store, config.store_b)):
        for address in servers_of(url):
            yield from _findings_or_error(
                "store-unreachable", f"store {address}", partial(examine_store, config, url, address, changed_at)
            )
    if any(DESIGNS[stored.design].store_role is StoreRole.SQL for stored in designs):
        yield from _findings_or_error("store-unreachable", "store of the database", partial(examine_database, config))
    values = value_auth(config, SystemClock(), ValueCounts())
    inspector = CellInspector(config, designs, values)
    try:
        statuses = inspector.inspect(node_max_age=math.inf)
        pairs = replica_pairs(statuses)
        partners = {one.name: other for pair in pairs for one, other in (pair, pair[::-1])}
        for status in statuses:
            yield from examine_design(config, status, partners.get(status.name))
        for first, other in pairs:
            yield from examine_replicas(first, other)
        yield from examine_single_replica(config, control)
        # All designs should have the same nodes. The one with the most is used to examine the agents.
        views = [inspector.followed_view(), *(status.view for status in statuses)]
        view = max(views, key=lambda view: len(view.nodes))
        yield from examine_agents(config, view)
        if has_broker:
            yield from _findings_or_error("check-failed", "signatures", lambda: examine_signatures(config, view))
        yield from _findings_or_error("check-failed", "answers", lambda: examine_refused_answers(config))
        yield from _findings_or_error("check-failed", "tags", lambda: examine_tags(config, view))
        yield from examine_values(config, values, [one.name for one in view.nodes.records()])
        yield from examine_damage(config.cell)
    finally:
        inspector.close()


def _findings_or_error(code: str, about: str, examine: Callable[[], list[Finding]]) -> list[Finding]:
    """Return the findings of a check. If the check raises an error, the only finding is this error.

    Args:
        code: the code of the finding about an error.
        about: the part of the cell, for that finding.
        examine: the check.
    """
    try:
        return examine()
    except NodestateError as error:
        advice = "check that it is running, that this is its address, and that it accepts this user and password"
        return [found(code, about, str(error), advice)]
