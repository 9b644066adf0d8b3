"""What a reader holds: the immutable view of all nodes, and what follows a partition for it."""
