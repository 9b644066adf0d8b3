"""Scheduling on a view."""
