"""Repeated requests: a POST with the header ``Idempotency-Key`` is done once, however often it arrives.

The first request with a key begins the work; each further one with the same content gets the same answer, also while
the work is under way. A request that failed is forgotten, because nothing was done: a repetition tries again. Keys live
in memory, for one client each: after a restart of the service they are unknown.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import xxhash

from nodestate.serve.problems import bad_request, problem
from nodestate.serve.responses import ApiResponse

MAX_KEYS_COUNT: Final = 10_000
"""Most keys that are kept; the oldest is forgotten first."""
MAX_AGE_S: Final = 3_600.0
"""Seconds for which a key is kept."""
ANSWER_TIMEOUT_S: Final = 30.0
"""Longest wait of a request for the scheduler."""
HEADER: Final = "Idempotency-Key"
_KEY: Final = re.compile(r"[A-Za-z0-9._~:-]{1,200}")


@dataclass(frozen=True)
class KeyedRequest:
    """A request that was begun with a key."""

    content: str
    """Digest of the request."""
    task: asyncio.Task[ApiResponse]
    """The work, which ends with the answer."""
    begun_at: float
    """Monotonic time of its begin."""


class RepeatedRequests:
    """The requests with keys. Belongs to the event loop."""

    def __init__(self) -> None:
        self._by_key: OrderedDict[tuple[str, str], KeyedRequest] = OrderedDict()

    async def once(
        self, key: str | None, client: str, content: Any, work: Callable[[], Coroutine[Any, Any, ApiResponse]]
    ) -> ApiResponse:
        """Do the work of a request, or return the answer of the request that it repeats.

        Args:
            key: its ``Idempotency-Key``; None: it has none.
            client: the client, which has keys of its own.
            content: what the request asks for, to encode.
            work: does the request.

        Raises ``ProblemError``: bad-request for a malformed key, conflict if the key belongs to another request, and
        overloaded after ``ANSWER_TIMEOUT_S``. Without a key, work that has not begun by then is dropped.
        """
        if key is None:
            try:
                return await asyncio.wait_for(work(), ANSWER_TIMEOUT_S)
            except TimeoutError:
                raise _too_slow() from None
        if not _KEY.fullmatch(key):
            raise bad_request(HEADER, "expected 1 to 200 letters, digits and . _ ~ : -")
        task = self._task_of((client, key), content, work)
        try:
            return await asyncio.wait_for(asyncio.shield(task), ANSWER_TIMEOUT_S)
        except TimeoutError:
            raise _too_slow() from None

    def _task_of(
        self, name: tuple[str, str], content: Any, work: Callable[[], Coroutine[Any, Any, ApiResponse]]
    ) -> asyncio.Task[ApiResponse]:
        """Return the work that was begun with a key, or begin it."""
        now = time.monotonic()
        while self._by_key:
            oldest = next(iter(self._by_key.values()))
            if now - oldest.begun_at < MAX_AGE_S and len(self._by_key) < MAX_KEYS_COUNT:
                break
            self._by_key.popitem(last=False)
        digest = xxhash.xxh3_128_hexdigest(msgspec.msgpack.encode(content))
        known = self._by_key.get(name)
        if known is not None:
            if known.content != digest:
                raise problem("conflict", f"{HEADER} {name[1]} belongs to another request; choose another one")
            return known.task
        task = asyncio.ensure_future(work())
        self._by_key[name] = KeyedRequest(digest, task, now)

        def forget_if_failed(ended: asyncio.Task[ApiResponse]) -> None:
            if ended.cancelled() or ended.exception() is not None:
                found = self._by_key.get(name)
                if found is not None and found.task is ended:
                    del self._by_key[name]

        task.add_done_callback(forget_if_failed)
        return task


def _too_slow() -> Exception:
    return problem(
        "overloaded",
        f"the scheduler has not answered within {ANSWER_TIMEOUT_S:g} s; repeat the request with an {HEADER}, so that "
        "it is not done twice",
    )
