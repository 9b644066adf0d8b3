"""Tests of bench: the scenarios measure the work that they claim to measure, and the report follows from the records."""
