r"""Cordons: nodes that an operator closed to new instances, on disk and in the states that an agent publishes.

    open --Cordon, stored--> cordoned: the node is at least ``draining`` in each state that the agent publishes
    cordoned --Cordon by another name or for another reason, stored--> cordoned, with the newer name, time and reason
    cordoned --Uncordon, stored--> open: the node has the status that its source gives
    either --an order that was carried out before, or after its deadline--> the same

The source of state does not know of cordons. So the agent adds the cordon to each state that the source gives. The
status that readers see is the worse one of the source's status and ``draining``, in the order ``up``, ``draining``,
``maintenance``, ``down``. A node that its source calls ``down`` stays ``down`` while it is cordoned. The cordon itself
stands in ``namespaces.nodestate.cordon``, next to all other namespaces.

The file ``{source}.cordons`` holds the cordons of one source as JSON. It is replaced before an order is answered. It
also holds the ids of carried-out orders until their deadlines: a broker may deliver an order twice, and a second
delivery of a ``Cordon`` after an ``Uncordon`` must not close the node again.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from nodestate.agent.state_files import read_state_file, write_atomically
from nodestate.errors import ConfigError
from nodestate.model import STATUSES
from nodestate.model.orders import Cordon, Uncordon

CORDON_BYTES: Final = 2 * 1024
"""Bytes that a cordon may add to a node's report: its two texts of up to 255 characters, and its time."""
MAX_DONE_COUNT: Final = 100
"""Most ids of carried-out orders that are kept for one node."""
DRAINING: Final = "draining"
"""The status that a cordoned node has at least."""


class NodeCordon(msgspec.Struct, frozen=True):
    """The cordon of one node, as the node's state has it."""

    by: str
    """The name of the person or program that cordoned the node."""
    at: float
    """When, in seconds since 1970 by the agent's clock."""
    why: str
    """The reason; may be empty."""


class _StoredCordons(msgspec.Struct):
    """The content of the file."""

    v: int
    """Version of the format: 1."""
    source: str
    """Name of the source."""
    cordons: dict[str, NodeCordon]
    """By node, its cordon."""
    done: dict[str, dict[str, float]]
    """By node, the ids of the orders that were carried out, each with its deadline in seconds since 1970."""


_decode = msgspec.json.Decoder(_StoredCordons).decode
_encode = msgspec.json.Encoder().encode


class Cordons:
    """The cordoned nodes of one source.

    Args:
        directory: where the file is; None: nothing can be stored, and no order can be carried out.
        source: the source's name, and the first part of the file's name.

    Raises:
        ConfigError: if the file is damaged or can't be read.
    """

    def __init__(self, directory: Path | None, source: str) -> None:
        self._path = directory / f"{source}.cordons" if directory is not None else None
        """The file; None if nothing can be stored."""
        self._source = source
        """The source's name."""
        stored = self._read()
        self._cordons = stored.cordons
        """By node, its cordon."""
        self._done = stored.done
        """By node, the ids of carried-out orders whose deadlines have not passed, with their deadlines."""
        self._statuses: dict[str, str] = {}
        """By cordoned node, the status that its source gave last."""

    # -- orders

    def was_carried_out(self, order: Cordon | Uncordon) -> bool:
        """Return whether this very order was carried out before, by this process or an earlier one."""
        return order.id in self._done.get(order.node, ())

    def carry_out(self, order: Cordon | Uncordon, published_status: str, now: float) -> dict[str, Any] | None:
        """Carry out an order, and store the result first.

        Args:
            order: the order.
            published_status: the status in the node's newest state.
            now: seconds since 1970.

        Returns the patch of the source's state that shows the effect; None if nothing changed. The patch is to be
        published through ``added_to_patch``.

        Raises ``OSError`` if the result can't be stored; nothing has changed then.
        """
        node = order.node
        before = self._cordons.get(node)
        cordons = {name: one for name, one in self._cordons.items() if name != node}
        after = None
        if isinstance(order, Cordon):
            is_same = before is not None and (before.by, before.why) == (order.by, order.why)
            after = before if is_same else NodeCordon(order.by, round(now, 3), order.why)
            assert after is not None, "a cordoned node has a cordon"
            cordons[node] = after
        done = {
            name: kept
            for name, ids in self._done.items()
            if (kept := {one: deadline for one, deadline in ids.items() if deadline >= now})
        }
        done[node] = dict([*done.get(node, {}).items(), (order.id, order.deadline)][-MAX_DONE_COUNT:])
        self._store(_StoredCordons(1, self._source, cordons, done))
        self._cordons, self._done = cordons, done
        if after == before:
            return None
        status = self._statuses.pop(node, published_status)
        if after is None:
            return {"status": status, "namespaces": {"nodestate": {"cordon": None}}}
        return {"status": status}  # ``added_to_patch`` adds the cordon

    # -- states

    def status_of(self, node: str, status: str) -> str:
        """Return the status of a node whose source gives ``status``: the worse one of both if it is cordoned."""
        return _worse(status) if node in self._cordons else status

    def added_to(self, node: str, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the full state that the source gives of a node, with the node's cordon if it has one."""
        cordon = self._cordons.get(node)
        if cordon is None:
            return state
        status = self._statuses[node] = state.get("status") or "up"
        return {**state, "status": _worse(status), "namespaces": _with_cordon(state.get("namespaces"), cordon)}

    def added_to_patch(self, node: str, patch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a patch of the state that the source gives of a node, such that the node's cordon stays in force."""
        cordon = self._cordons.get(node)
        if cordon is None or ("status" not in patch and "namespaces" not in patch):
            return patch
        added = dict(patch)
        if "status" in patch:
            status = self._statuses[node] = patch["status"] or "up"  # null removes the status: the default is up
            added["status"] = _worse(status)
        added["namespaces"] = _with_cordon(patch.get("namespaces"), cordon)
        return added

    def removed_from(self, node: str, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a state that this agent published, as the node's source gave it."""
        namespaces = dict(state.get("namespaces") or {})
        own = namespaces.get("nodestate")
        if not isinstance(own, Mapping) or "cordon" not in own:
            return state
        namespaces["nodestate"] = {name: value for name, value in own.items() if name != "cordon"}
        status, known = state.get("status", "up"), self._statuses.get(node, "up")
        return {**state, "status": known if status == _worse(known) else status, "namespaces": namespaces}

    # -- the file

    def _store(self, content: _StoredCordons) -> None:
        if self._path is None:
            raise OSError(
                errno.ENOTSUP, "it keeps no files, so the cordon would be lost with its restart; start it without a "
                "fixed incarnation"
            )  # fmt: skip
        write_atomically(self._path, _encode(content))

    def _read(self) -> _StoredCordons:
        empty = _StoredCordons(1, self._source, {}, {})
        if self._path is None:
            return empty
        try:
            content = read_state_file(self._path)
        except OSError as error:
            raise ConfigError(f"the agent can't read its cordons: {error}; make the file readable for it") from error
        if content is None:
            return empty
        try:
            stored = _decode(content)
        except msgspec.DecodeError as error:
            raise self._damaged(str(error)) from None
        if stored.v != 1 or stored.source != self._source:
            raise self._damaged(f"it belongs to {stored.source} and has format {stored.v}")
        return stored

    def _damaged(self, reason: str) -> ConfigError:
        return ConfigError(
            f"{self._path} is damaged ({reason}). It names the nodes that operators cordoned: restore the file, or "
            "delete it and cordon those nodes again"
        )


def _worse(status: str) -> str:
    """Return the worse one of a status and ``draining``. A status of a later version counts as worse."""
    return DRAINING if status in STATUSES[: STATUSES.index(DRAINING)] else status


def _with_cordon(namespaces: Mapping[str, Any] | None, cordon: NodeCordon) -> dict[str, Any]:
    """Return namespaces, or a patch of them, in which ``nodestate`` has the cordon next to its other fields."""
    own = (namespaces or {}).get("nodestate")
    own = own if isinstance(own, Mapping) else {}
    return {**(namespaces or {}), "nodestate": {**own, "cordon": msgspec.to_builtins(cordon)}}
