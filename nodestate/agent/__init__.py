"""The agent: reports one node's state, and is the only author of its versions."""
