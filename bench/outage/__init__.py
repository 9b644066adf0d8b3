"""Outages and restarts of the servers and processes of a whole cell under load: ``python -m bench outage``."""
