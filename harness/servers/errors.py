"""Errors of starting a real server."""

from __future__ import annotations


class ServerMissingError(RuntimeError):
    """Raised if a server is neither installed nor available as a container; the message names the package to
    install.
    """


class ServerFailedError(RuntimeError):
    """Raised if a server ends or does not answer in time while it starts; the message contains the end of its log."""
