"""Two ways to give nova-scheduler the host manager of nodestate. Neither changes a file of Nova.

1. The command ``nodestate-nova-scheduler``, which takes the arguments of nova-scheduler.
2. nova.conf alone, with the unchanged command nova-scheduler::

       [filter_scheduler]
       available_filters = nova.scheduler.filters.all_filters
       available_filters = nodestate.integrations.nova.install.filters
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any


def main() -> None:
    """Run nova-scheduler with the host manager of nodestate."""
    try:
        from nova.cmd import scheduler  # noqa: PLC0415 - patches the standard library, as in nova-scheduler
    except ModuleNotFoundError as error:
        sys.exit(f"nodestate-nova-scheduler: {error}: install nodestate into the Python environment of Nova")
    install()
    scheduler.main()


def install() -> None:
    """Let Nova's scheduler make a ``NodestateHostManager``."""
    from nova.scheduler import host_manager  # noqa: PLC0415 - Nova is there only when this is called

    from nodestate.integrations.nova.host_manager import NodestateHostManager  # noqa: PLC0415 - it imports Nova

    host_manager.HostManager = NodestateHostManager


def filters() -> list[type]:
    """Return no filter. Make the host manager that asks for filters one of nodestate.

    Nova's host manager calls the functions that ``available_filters`` names while it is being made. This is the only
    place at which nova.conf alone can reach it.

    Raises ``RuntimeError`` if no host manager asks.
    """
    from nova.scheduler import host_manager  # noqa: PLC0415 - Nova is there only when this is called

    from nodestate.integrations.nova.host_manager import NodestateHostManager  # noqa: PLC0415 - it imports Nova

    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - Nova passes no argument
    while frame is not None:
        asking: Any = frame.f_locals.get("self")
        if isinstance(asking, NodestateHostManager):
            return []
        if type(asking) is host_manager.HostManager:
            asking.__class__ = NodestateHostManager
            asking.begin_nodestate()
            return []
        frame = frame.f_back
    raise RuntimeError("available_filters names nodestate's function, but no host manager of Nova calls it")
