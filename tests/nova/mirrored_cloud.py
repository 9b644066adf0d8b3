"""A Nova cloud with everything between its database and its scheduler: mirror, consumer, memcached, host managers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Self

from nova import servicegroup
from nova.scheduler import host_manager

from harness.servers import MemcachedServer
from harness.waiting import wait_until
from nodestate.cli.embedded_cell import EmbeddedCell
from nodestate.config import load
from nodestate.integrations.nova.comparison import ATTRIBUTES, HostDifference, compare_host_states
from nodestate.integrations.nova.host_manager import NodestateHostManager
from nodestate.integrations.nova.host_state import NodestateHostState
from nodestate.integrations.nova.mirror import source_of
from tests.nova.nova_cloud import CONF, NovaCloud, request_spec

SETTINGS: Final = """\
cell = "{cell}"
broker = "memory://{cell}"
store = "{store}"
partitions = 4
designs = ["snapshot"]
read_design = "snapshot"
replicas = 1
renew_s = 0.3
standby_s = 0.5
heartbeat_s = 1.0
resync_jitter_s = 0.3
flush_s = 0.02
state_dir = "{folder}"
"""


class MirroredCloud:
    """The mirror and a consumer run within a ``with`` statement. The host managers are made at its start.

    Args:
        cloud: Nova's databases.
        memcached: nodestate's store.
        cell: the name of the nodestate cell.
        folder: for nodestate's settings and its incarnations.
    """

    def __init__(self, cloud: NovaCloud, memcached: MemcachedServer, cell: str, folder: Path) -> None:
        self.cloud = cloud
        text = SETTINGS.format(cell=cell, store=memcached.url, folder=folder)
        (cloud.folder / "nodestate.toml").write_text(text, encoding="utf-8")
        self._config = load(file=cloud.folder / "nodestate.toml", environ={})
        self.silenced: set[str] = set()
        """Hosts whose services no longer report. All others report while this waits."""
        self.values = 0
        """Attribute values that were compared and equal."""
        self.served = 0
        """Host states that nodestate served to comparisons."""

    def __enter__(self) -> Self:
        CONF.set_override("source", "nodestate", "nodestate")
        self.cell = EmbeddedCell(self._config, [source_of(self.cloud.mapping, CONF)])
        self.theirs = host_manager.HostManager()
        self.ours = NodestateHostManager()
        return self

    def __exit__(self, *_: object) -> None:
        self.ours.readers.close()
        self.cell.close()
        CONF.clear_override("source", "nodestate")

    # -- host states

    def ours_now(self, uuids: Any = None) -> list[Any]:
        """Return the host states that a scheduler over nodestate works on."""
        spec = request_spec(self.cloud.context)
        return list(self.ours.get_host_states_by_uuids(self.cloud.context, uuids, spec))

    def theirs_now(self, uuids: Any = None) -> list[Any]:
        """Return the host states that Nova's scheduler works on."""
        spec = request_spec(self.cloud.context)
        return list(self.theirs.get_host_states_by_uuids(self.cloud.context, uuids, spec))

    def wait_until_served(self) -> None:
        """Wait until requests are served from views: a new cell is complete only after agents could answer."""

        def is_served() -> bool:
            self.cloud.heartbeat(exclude=self.silenced)
            states = self.ours_now()
            return bool(states) and is_from_views(states)

        wait_until(is_served, lambda: f"the views may not decide: {self.ours._reason}")

    def wait_until_equal(self) -> None:
        """Wait until both host managers give equal host states, and require that nodestate is never ahead."""
        last: list[str] = []

        def is_equal() -> bool:
            self.cell.check()
            self.cloud.heartbeat(exclude=self.silenced)
            ours = self.ours_now()
            theirs = self.theirs_now()  # after the view, which thus cannot be newer
            if not is_from_views(ours):
                last[:] = [f"served from the database: {self.ours._reason}"]
                return False
            found = compare_host_states(ours, theirs)
            newer = [one for one in found if one.kind == "newer"]
            assert not newer, f"nodestate is ahead of the database: {newer[:3]}"
            last[:] = [str(one) for one in found] or self._different_liveness(ours, theirs)
            if not last:
                self.served += len(ours)
                self.values += len(ours) * len(ATTRIBUTES)
            return not last

        wait_until(is_equal, lambda: f"{len(last)} differences remain: {last[:3]}")

    def differences(self) -> list[HostDifference]:
        """Return the present differences."""
        return compare_host_states(self.ours_now(), self.theirs_now())

    def _different_liveness(self, ours: list[Any], theirs: list[Any]) -> list[str]:
        servicegroup_api = servicegroup.API()
        up = {state.host: servicegroup_api.service_is_up(state.service) for state in ours}
        return [
            f"{state.host} is up: {up[state.host]}, for Nova: {not up[state.host]}"
            for state in theirs
            if servicegroup_api.service_is_up(state.service) != up[state.host]
        ]


def is_from_views(states: list[Any]) -> bool:
    """Return whether all states are nodestate's. Fails if states of both sources are in one request."""
    kinds = {type(state) for state in states}
    assert len(kinds) <= 1, f"one request was served by {kinds}"
    return kinds <= {NodestateHostState}
