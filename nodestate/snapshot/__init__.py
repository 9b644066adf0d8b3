"""The snapshot design: one item per node with its full state, and an index of the commits that wrote them."""
