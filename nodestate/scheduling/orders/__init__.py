"""Orders to agents: boots, their answers, and the completion of unfinished operations."""
