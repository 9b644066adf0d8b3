"""Tests of bench: the scenarios prove what they claim, and the report follows from the records."""
