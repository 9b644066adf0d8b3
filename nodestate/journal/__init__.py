"""The journal design: an append-only record of events, with checkpoints."""
