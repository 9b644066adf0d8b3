"""Scenarios of schedulers: ``select`` and ``reserve`` on a seeded fleet, ``trace`` on a real task list."""
