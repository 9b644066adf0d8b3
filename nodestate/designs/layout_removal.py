"""Removal of a retired layout: of its queues, and of its epochs in the stores.

The epochs must be removed because an old epoch would look fresh if the layout were written again. Another operator may
take the layout back into use at any time, so callers read the control record again before each try.
"""

from __future__ import annotations

from collections.abc import Callable

from nodestate.config import Config
from nodestate.designs import DESIGNS
from nodestate.designs.control import Control
from nodestate.errors import DesignStepError, NodestateError
from nodestate.ports import Clock, StoreRole
from nodestate.store import keys
from nodestate.store.epoch_removal import remove_epoch
from nodestate.store.liveness import fresh_s
from nodestate.store.ownership import PartitionTarget
from nodestate.store.round_trips import Stores, run
from nodestate.text import count_text


def delete_queues(partitions: int, control: Control, delete: Callable[[int], bool]) -> bool:
    """Delete the queues of a retired layout.

    Args:
        partitions: the layout, named by its number of partitions.
        control: the control record, read a moment ago.
        delete: deletes the queues of a layout (``KombuLayouts.delete``).

    Returns:
        True if the queues are deleted, or if the record does not list the layout as retired, so that nothing is to be
        deleted. False if a consumer still reads one of the queues, or if the transport cannot tell. Nothing has been
        deleted then, and the caller tries again later.

    Raises:
        DesignStepError: if the control record says to write the layout. Nothing has been deleted.
    """
    if partitions in control.layouts:
        raise DesignStepError(
            f"record {control.version}, by {control.said_by}, writes a layout of "
            f"{count_text(partitions, 'partition')} again",
            "nodestate design status",
        )
    return not control.has_retired(partitions) or delete(partitions)


def remove_layout_epochs(
    config: Config, stores: Stores, owner: str, clock: Clock
) -> dict[tuple[int, str], NodestateError]:
    """Remove the epochs of all designs of a layout, except epochs that another owner still writes.

    Args:
        config: settings of the cell. ``partitions`` is the layout's number of partitions.
        stores: the stores that are open. A design whose store is not open is skipped.
        owner: owner name of the caller. Epochs of this owner are removed in any case.
        clock: measures time.

    Returns:
        The epochs that were not removed, by partition and design, each with the reason: a ``FencedError`` if another
        owner still writes the epoch, otherwise an error of its store.
    """

    def target(number: int, name: str) -> PartitionTarget:
        prefix = keys.prefix(config.cell, config.partitions, number, DESIGNS[name].letter)
        store = stores.of(number, DESIGNS[name].store_role)
        return PartitionTarget(prefix, number, owner, int(config.lease_s), store, clock)

    names = [name for name, design in DESIGNS.items() if stores.has(design.store_role)]
    targets = {(number, name): target(number, name) for number in range(config.partitions) for name in names}
    work = {
        key: (one.store, remove_epoch(one, rows=DESIGNS[key[1]].store_role is StoreRole.SQL, fresh_s=fresh_s(config)))
        for key, one in targets.items()
    }
    return {key: error for key, error in run(work).items() if isinstance(error, NodestateError)}
