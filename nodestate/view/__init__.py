"""The immutable view of all nodes that a scheduler reads, and the followers that refresh it partition by partition."""
