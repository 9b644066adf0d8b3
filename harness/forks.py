"""Run a function in a forked child process."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable


def in_forked_child(function: Callable[[], object]) -> str:
    """Fork, call the function in the child, and return the text of its result; of its error if it raised one."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = str(function())
        except BaseException:  # noqa: BLE001 - the parent reports it
            text = traceback.format_exc()
        os.write(writing, text.encode()[:4096])
        os._exit(0)  # runs no clean-up of the parent's objects
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text
