"""Other stores that could hold the state of nodes, each used in its fastest native way. See ``peer_scenario``."""
