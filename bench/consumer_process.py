"""Consumers as an operator starts them, for scenarios that measure a whole cell from outside."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.workload import WrongResultError
from harness.members import Member
from nodestate.config import Config


@contextmanager
def failures_as_wrong_results() -> Iterator[None]:
    """Raise ``WrongResultError`` for a failed assertion of the harness, so that the benchmark gives no figures."""
    try:
        yield
    except AssertionError as error:
        raise WrongResultError(str(error)) from error


@contextmanager
def consumer_running(config: Config) -> Iterator[Member]:
    """Run ``nodestate consume`` for all partitions in one process, which must stop by itself with exit code 0."""
    with failures_as_wrong_results(), tempfile.TemporaryDirectory(prefix="nodestate-bench-") as folder:
        member = Member(Path(folder), 1, 1, settings_as_environment(config))
        member.start()
        try:
            yield member
            member.stop()
        finally:
            member.kill()


def settings_as_environment(config: Config) -> dict[str, str]:
    """Return settings as environment variables."""
    values = {name: getattr(config, name) for name in config.__struct_fields__}
    return {
        f"NODESTATE_{name.upper()}": ",".join(value) if isinstance(value, tuple) else str(value)
        for name, value in values.items()
    }
