"""The command ``serve``: the HTTP API of a cell."""

from __future__ import annotations

import sys
from typing import Final

import click

from nodestate.cli.command import SECONDS, Run, cell_command
from nodestate.cli.shutdown import stop_on_signals
from nodestate.designs.connections import configured
from nodestate.errors import ConfigError

SWITCH_INTERVAL_S: Final = 0.0005
"""Longest time for which a thread that encodes all nodes keeps the event loop waiting for the interpreter."""


@cell_command("serve", example="nodestate serve --listen 127.0.0.1:8790", log_level="info")
@click.option(
    "--listen",
    default="127.0.0.1:8790",
    metavar="ADDRESS",
    help="Accept requests here: host:port (port 0: any free one, which is printed), or unix:PATH.",
)
@click.option("--tokens", metavar="FILE", help="File of tokens, mode 0600: a line 'ROLE NAME TOKEN' for each.")
@click.option(
    "--insecure", is_flag=True, help="Let every machine that reaches --listen use the service without a token."
)
@click.option("--tls-cert", metavar="FILE", help="PEM file with the certificate of the service.")
@click.option("--tls-key", metavar="FILE", help="PEM file with the private key of --tls-cert.")
@click.option(
    "--allow-host",
    "hosts",
    metavar="NAME",
    multiple=True,
    help="Accept requests that call the service by this name; can be given several times. IP addresses, localhost and "
    "the name of this machine are accepted always.",
)
@click.option(
    "--max-connections",
    type=click.IntRange(1),
    default=1_000,
    metavar="N",
    help="Serve at most N connections at a time; refuse further ones with 503.",
)
@click.option(
    "--max-streams",
    type=click.IntRange(0),
    default=200,
    metavar="N",
    help="Serve at most N clients of /v1/events at a time; refuse further ones with 503.",
)
@click.option(
    "--max-body-bytes",
    type=click.IntRange(1),
    default=1_000_000,
    metavar="N",
    help="Refuse a request with a body of more than N bytes.",
)
@click.option(
    "--request-timeout",
    type=SECONDS,
    default=10.0,
    metavar="S",
    help="Drop a client that has not sent its whole request after S seconds.",
)
@click.option(
    "--write-timeout",
    type=SECONDS,
    default=30.0,
    metavar="S",
    help="Drop a client that takes less than 64 KiB of a waiting response in S seconds.",
)
@click.option(
    "--seconds", type=SECONDS, metavar="S", help="End after S seconds.", show_default="run until SIGTERM or Ctrl-C"
)
def command(
    run: Run,
    listen: str,
    tokens: str | None,
    insecure: bool,
    tls_cert: str | None,
    tls_key: str | None,
    hosts: tuple[str, ...],
    max_connections: int,
    max_streams: int,
    max_body_bytes: int,
    request_timeout: float,
    write_timeout: float,
    seconds: float | None,
) -> None:
    """Serve the HTTP API: views, nodes and events of the cell, for programs in any language.

    /openapi.json describes all routes. Without --tokens the service accepts requests from this machine only, each in
    every role. Needs the extra nodestate[serve].
    """
    try:
        from nodestate.serve.access import Access, require_safe  # noqa: PLC0415 - the extra may not be installed
        from nodestate.serve.app import create_app  # noqa: PLC0415 - as above
        from nodestate.serve.limits import Limits  # noqa: PLC0415 - as above
        from nodestate.serve.server import listen as open_listener  # noqa: PLC0415 - as above
        from nodestate.serve.server import run_server, tls_context  # noqa: PLC0415 - as above
        from nodestate.serve.service import Service  # noqa: PLC0415 - as above
        from nodestate.serve.tokens import TokenFile  # noqa: PLC0415 - as above
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"'nodestate serve' needs the Python package {error.name}: pip install 'nodestate[serve]'"
        ) from None
    if tls_key and not tls_cert:
        raise click.UsageError("--tls-key is given without --tls-cert: give both")
    run.require_shared(designs=[run.config.read_design, *configured(run.config)])
    access = Access(TokenFile(tokens) if tokens else None, hosts)
    limits = Limits(max_connections, max_streams, max_body_bytes, request_timeout, write_timeout)
    tls = tls_context(tls_cert, tls_key or "") if tls_cert else None
    listener = open_listener(listen, tls=tls is not None)

    def print_address() -> None:
        if run.as_json:
            run.print_json({"listening": listener.url})
        else:
            run.out.print(f"listening on {listener.url}", markup=False, soft_wrap=True)

    try:
        warning = require_safe(
            is_loopback=listener.is_loopback, has_tokens=tokens is not None, has_tls=tls is not None, insecure=insecure
        )
        if warning:
            run.err.print(f"nodestate: {warning}", markup=False, soft_wrap=True)
        service = Service(run.config, max_streams=max_streams)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        with stop_on_signals(seconds) as stop:
            app = create_app(service, access, limits)
            run_server(app, listener, stop, print_address, service.end_waits, limits=limits, tls=tls)
    finally:
        listener.close()
