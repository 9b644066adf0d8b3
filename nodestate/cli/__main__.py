"""Entry point of ``python -m nodestate.cli``, which is ``nodestate`` under this Python."""

from nodestate.cli import main

main(prog_name="nodestate")
