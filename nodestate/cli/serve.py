"""The command ``serve``: the HTTP API of a cell."""

from __future__ import annotations

import click

from nodestate.cli.command import SECONDS, Run, cell_command
from nodestate.cli.shutdown import stop_on_signals
from nodestate.designs.connections import configured
from nodestate.errors import ConfigError


@cell_command("serve", example="nodestate serve --listen 127.0.0.1:8790", log_level="info")
@click.option(
    "--listen",
    default="127.0.0.1:8790",
    metavar="ADDRESS",
    help="Accept requests here: host:port (port 0: any free one, which is printed), or unix:PATH.",
)
@click.option(
    "--seconds", type=SECONDS, metavar="S", help="End after S seconds.", show_default="run until SIGTERM or Ctrl-C"
)
def command(run: Run, listen: str, seconds: float | None) -> None:
    """Serve the HTTP API: views, nodes and events of the cell, for programs in any language.

    /openapi.json describes all routes. Needs the extra nodestate[serve].
    """
    try:
        from nodestate.serve.app import create_app  # noqa: PLC0415 - the extra may not be installed
        from nodestate.serve.server import listen as open_listener  # noqa: PLC0415
        from nodestate.serve.server import run_server  # noqa: PLC0415
        from nodestate.serve.service import Service  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"'nodestate serve' needs the Python package {error.name}: pip install 'nodestate[serve]'"
        ) from None
    run.require_shared(designs=[run.config.read_design, *configured(run.config)])
    service = Service(run.config)
    listener = open_listener(listen)

    def print_address() -> None:
        if run.as_json:
            run.print_json({"listening": listener.url})
        else:
            run.out.print(f"listening on {listener.url}", markup=False, soft_wrap=True)

    with stop_on_signals(seconds) as stop:
        run_server(create_app(service), listener, stop, print_address)
