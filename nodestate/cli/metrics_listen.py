"""The option ``--metrics-listen`` of commands that run until they are stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click

from nodestate.cli.command import Run
from nodestate.cli.shutdown import StopRequest

metrics_option: Final = click.option(
    "--metrics-listen",
    metavar="ADDRESS",
    help="Serve metrics for Prometheus at http://ADDRESS/metrics, and health at /livez and /readyz: host:port, or a "
    "port of this machine. Port 0: any free one, which is printed.",
    show_default="no metrics",
)
"""The option; the function of the command gets it as ``metrics_listen``."""


@contextmanager
def metrics_server(run: Run, listen: str | None, stop: StopRequest, **parts: Any) -> Iterator[None]:
    """Serve metrics while the context is open, and print their address on stderr.

    Args:
        run: the run of the command.
        listen: the value of the option; None to serve none.
        stop: knows the age of the last step of the command's loop.
        parts: the parts of ``nodestate.metrics.serve_metrics``.
    """
    if listen is None:
        yield
        return
    from nodestate.metrics import serve_metrics  # noqa: PLC0415 - loads prometheus_client, which most commands do not use

    with serve_metrics(listen, step_age=stop.step_age, **parts) as server:
        run.err.print(f"nodestate: metrics at {server.url}", markup=False, highlight=False, soft_wrap=True)
        yield
