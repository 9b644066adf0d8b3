"""The command ``completion``: a script with which a shell completes commands, options and names of nodes."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import get_completion_class

from nodestate.cli.command import Run, cell_command

SHELLS: Final = ("bash", "zsh", "fish")
VARIABLE: Final = "_NODESTATE_COMPLETE"
"""Environment variable by which the script asks the program for completions."""


@cell_command(
    "completion",
    example="nodestate completion bash > /etc/bash_completion.d/nodestate\n"
    "nodestate completion zsh > /usr/local/share/zsh/site-functions/_nodestate\n"
    "nodestate completion fish > /etc/fish/completions/nodestate.fish",
)
@click.argument("shell", type=click.Choice(SHELLS))
def command(run: Run, shell: str) -> None:
    """Print a script with which SHELL completes commands, options and names of nodes.

    Names of nodes come from the store that the settings name, within a second. In bash, 'eval "$(nodestate completion
    bash)"' needs no file.
    """
    found = get_completion_class(shell)
    assert found is not None, f"click has scripts for {shell}"
    script = found(click.Group(), {}, "nodestate", VARIABLE)
    text = script.source_template % script.source_vars()  # source() would run bash to learn its version
    if run.as_json:
        run.print_json({"shell": shell, "script": text})
    else:
        click.echo(text)
