"""The command ``nodestate-nova-mirror``: publish the rows of Nova's cell databases until SIGTERM.

It takes the arguments of Nova's commands, such as ``--config-file``. Each Nova cell that has a nodestate cell gets a
thread with an agent. If one thread fails, the command ends with exit code 1, so that a service manager starts it again:
without a sign of life of the mirror, schedulers use the database. This module imports Nova.
"""

from __future__ import annotations

import random
import socket
import sys
import threading
from typing import Any, Final

import sqlalchemy as sa
import structlog

from nodestate.agent.agent import Agent
from nodestate.broker import KombuSink
from nodestate.cli.logs import mask_secrets_of, set_up_logs
from nodestate.cli.shutdown import stop_on_signals
from nodestate.config import Config
from nodestate.errors import NodestateError
from nodestate.integrations.nova.cell_settings import cell_settings
from nodestate.integrations.nova.database_source import DatabaseSource
from nodestate.integrations.nova.row_form import RATIOS
from nodestate.ports import SystemClock

SILENT_REPORTS: Final = 2.5
"""Intervals between two reports of a service after which it is silent."""
DATABASE_TIMEOUT_S: Final = 30
"""Seconds without an answer after which a database counts as away."""
CHECK_S: Final = 0.5


def main() -> None:
    """Run the mirror. Exit code 0 after SIGTERM, 1 if a thread failed or a setting is wrong."""
    try:
        from nova import monkey_patch  # noqa: PLC0415 - must come before any other import of Nova
    except ModuleNotFoundError as error:
        sys.exit(f"nodestate-nova-mirror: {error}: install nodestate into the Python environment of Nova")
    monkey_patch.patch(backend="threading")
    from nova import config, objects  # noqa: PLC0415 - after the patch
    from nova import context as nova_context  # noqa: PLC0415 - after the patch
    from nova.conf import CONF  # noqa: PLC0415 - after the patch

    from nodestate.integrations.nova import options  # noqa: PLC0415 - needs oslo.config

    options.register(CONF)
    config.parse_args(sys.argv)
    objects.register_all()
    set_up_logs("info", "console")
    mappings = [one for one in objects.CellMappingList.get_all(nova_context.get_admin_context()) if not one.is_cell0()]
    try:
        settings = cell_settings([one.uuid for one in mappings], CONF.nodestate.config, CONF.nodestate.cells)
        mirrors = [
            CellMirror(settings[mapping.uuid], source_of(mapping, CONF))
            for mapping in mappings
            if mapping.uuid in settings
        ]
    except NodestateError as error:
        sys.exit(f"nodestate-nova-mirror: {error}")
    with stop_on_signals() as stop:
        while not stop.wait(CHECK_S) and all(mirror.is_running for mirror in mirrors):
            pass
    failed = [mirror.stop() for mirror in mirrors]
    sys.exit(1 if any(failed) else 0)


def source_of(mapping: Any, conf: Any) -> DatabaseSource:
    """Return the source of state of a Nova cell.

    Args:
        mapping: Nova's cell mapping.
        conf: Nova's configuration.
    """
    ratios = {name: float(getattr(conf, name) or getattr(conf, f"initial_{name}")) for name in RATIOS}
    # Nova calls a service down after service_down_time. The mirror must have said by then when it reported last.
    silent_after_s = min(SILENT_REPORTS * conf.report_interval, conf.service_down_time / 2)
    return DatabaseSource(
        mapping.uuid,
        open_database(mapping.database_connection, conf.nodestate.mirror_user, conf.nodestate.mirror_password),
        ratios=ratios,
        silent_after_s=silent_after_s,
        host=socket.gethostname(),
        clock=SystemClock(),
    )


def open_database(url: str, user: str, password: str) -> sa.Engine:
    """Return an engine for a cell's database, with another user if ``user`` is not empty."""
    parsed = sa.make_url(url)
    if user:
        parsed = parsed.set(username=user, password=password)
    timeouts = {"connect_timeout": DATABASE_TIMEOUT_S, "read_timeout": DATABASE_TIMEOUT_S}
    return sa.create_engine(
        parsed, pool_size=1, pool_pre_ping=True, connect_args=timeouts if parsed.drivername == "mysql+pymysql" else {}
    )


class CellMirror:
    """The thread that mirrors one Nova cell. It runs from its creation on.

    running --stop--> ended      running --an error of the agent--> ended, and ``stop`` returns True
    """

    def __init__(self, config: Config, source: DatabaseSource) -> None:
        mask_secrets_of(config)
        self._config = config
        self._source = source
        self._stopping = threading.Event()
        self._failed = False
        self._sink = KombuSink(config)
        try:
            self._agent = Agent(config, [source], self._sink, SystemClock(), random.Random(), inbox=self._sink)
        except NodestateError:
            self._sink.close()
            raise
        self._thread = threading.Thread(target=self._run, name=source.name, daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """True until the thread has ended."""
        return self._thread.is_alive()

    def stop(self) -> bool:
        """End the thread, after the broker has confirmed the newest states. Returns True if the thread had failed."""
        self._stopping.set()
        self._thread.join()
        return self._failed

    def _run(self) -> None:
        try:
            try:
                self._agent.run(self._stopping.is_set)
            finally:
                self._agent.close()
                self._sink.close()
        except Exception:  # noqa: BLE001 - logged with its traceback, and ends the command
            self._failed = True
            structlog.get_logger("nodestate.integrations.nova.mirror").exception(
                "mirror failed", source=self._source.name
            )
