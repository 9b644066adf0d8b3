"""The agent: reports the state of its nodes, and is the only author of their versions."""
