"""Errors of starting a real server."""

from __future__ import annotations


class ServerMissingError(RuntimeError):
    """Raised when a server is neither installed nor to be had as a container; says what would help."""


class ServerFailedError(RuntimeError):
    """Raised when a server ended, or did not answer in time, while it was started; carries the end of its log."""
