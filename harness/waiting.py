"""Wait for a condition: the only way in which tests and benchmarks wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

PATIENCE_S: Final = 180.0
"""How long a test waits for something that must happen. Not a claim about speed: on an idle machine all of it happens
within seconds, on a machine with other load it may take a minute."""
POLL_S: Final = 0.02


def wait_until(
    condition: Callable[[], object],
    failure: Callable[[], str] | str,
    timeout_s: float = PATIENCE_S,
    *,
    poll_s: float = POLL_S,
) -> float:
    """Call ``condition`` every ``poll_s`` seconds until it returns something true.

    Args:
        condition: The event to wait for.
        failure: The message of the error; a function is called when the time is over.
        timeout_s: Give up after this many seconds.
        poll_s: Pause between two calls.

    Returns the seconds that it took. Raises AssertionError with ``failure`` after ``timeout_s``.
    """
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout_s:
            raise AssertionError(f"not within {timeout_s:g} s: {failure if isinstance(failure, str) else failure()}")
        time.sleep(poll_s)
    return time.monotonic() - began
