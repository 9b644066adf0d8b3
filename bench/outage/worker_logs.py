"""The structured logs of the processes of an outage run."""

from __future__ import annotations

import logging
from pathlib import Path

import structlog

from nodestate.config import Config


def log_to_file(config: Config, name: str) -> None:
    """Append the warnings and errors of this process to a file of the run, because an outage causes many of them."""
    file = Path(config.state_dir, f"{name}.log").open("a", encoding="utf-8")  # noqa: SIM115 - open until the process ends
    structlog.configure(
        processors=[structlog.processors.TimeStamper(fmt="iso"), structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(file),
    )
