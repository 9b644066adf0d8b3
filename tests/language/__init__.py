"""The project's own lint of its language: sentence shapes to avoid, one name for one type, lines that end in time."""
