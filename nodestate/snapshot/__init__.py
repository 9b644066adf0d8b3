"""The snapshot design: one item per node with its full state, and an index of which commit wrote it."""
