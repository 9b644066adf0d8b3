"""The journal design: an append-only log of events, with checkpoints."""
