"""``python -m nodestate.cli``: the same as ``nodestate``, of this very Python."""

from nodestate.cli import main

main(prog_name="nodestate")
