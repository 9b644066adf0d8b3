"""The end of a layout: its queues go, and nothing of it is left in the stores that could pass for fresh, should it ever be written
again. The record is read before each try: another operator may have taken the layout back into use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nodestate.config import Config
from nodestate.designs import DESIGNS
from nodestate.designs.control import Control
from nodestate.errors import DesignStepError, NodestateError
from nodestate.ports import Clock, StoreRole
from nodestate.store import keys
from nodestate.store.head import Place, forget
from nodestate.store.round_trips import Stores, run

FRESH_RENEWALS_COUNT: Final = 5
"""A head that was written so many renewals ago at most has an owner that lives; ages are known to …"""
AGE_ROUNDING_S: Final = 1.0
"""… so many seconds."""


def fresh_s(config: Config) -> float:
    """How old a head may be whose owner lives."""
    return FRESH_RENEWALS_COUNT * config.renew_s + AGE_ROUNDING_S


def delete_queues(partitions: int, control: Control, delete: Callable[[int], bool]) -> bool:
    """Delete the queues of a layout (``ports.Layouts.delete``) that has left by the record as it was just read; False where somebody
    consumes from one. Raises ``DesignStepError`` where the layout is in use.
    """
    if partitions in control.layouts:
        raise DesignStepError(
            f"record {control.version}, by {control.said_by}, writes a layout of {partitions} partitions again",
            "nodestate design status",
        )
    return not control.has_left(partitions) or delete(partitions)


def forget_layout(config: Config, stores: Stores, owner: str, clock: Clock) -> dict[tuple[int, str], NodestateError]:
    """Take away all designs of the settings' layout that have a place, save those that another owner keeps up. Returns what is left,
    by partition and design, and why: ``FencedError`` where it is in use, else an error of its store.
    """

    def place(number: int, name: str) -> Place:
        prefix = keys.prefix(config.cell, config.partitions, number, DESIGNS[name].letter)
        return Place(prefix, number, owner, int(config.lease_s), stores.of(number, DESIGNS[name].store_role), clock)

    names = [name for name, design in DESIGNS.items() if stores.has(design.store_role)]
    places = {(number, name): place(number, name) for number in range(config.partitions) for name in names}
    work = {
        key: (one.store, forget(one, rows=DESIGNS[key[1]].store_role is StoreRole.SQL, silent_s=fresh_s(config)))
        for key, one in places.items()
    }
    return {key: error for key, error in run(work).items() if isinstance(error, NodestateError)}
