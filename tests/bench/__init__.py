"""Tests of bench: scenarios measure the work that they claim to measure; the report follows from the records."""
