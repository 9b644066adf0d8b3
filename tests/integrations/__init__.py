"""Tests of the integrations that need no other software than nodestate's dependencies."""
