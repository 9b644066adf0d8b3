"""Integrations: nodestate as a part of other software. Nothing else in nodestate imports them."""
