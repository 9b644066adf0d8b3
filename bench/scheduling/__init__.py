"""What schedulers cost and what comes of many of them: ``select`` on a seeded fleet, ``trace`` on a real task list."""
