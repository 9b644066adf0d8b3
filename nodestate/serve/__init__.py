"""``nodestate serve``: the HTTP API of a cell. Needs the extra ``nodestate[serve]``."""
