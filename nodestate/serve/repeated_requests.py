"""Repeated requests: a POST with the header ``Idempotency-Key`` is done once, however often it arrives.

The first request with a key begins the work; each further one with the same content gets the same answer, also while
the work is under way. A request that failed is forgotten, because nothing was done: a repetition tries again. Keys live
in memory, for one client each and within limits of their own: after a restart of the service they are unknown.
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

from nodestate.serve.encoding import MSGPACK, encode
from nodestate.serve.problems import bad_request, problem
from nodestate.serve.responses import ApiResponse

MAX_KEYS_COUNT: Final = 10_000
"""Most keys of one client that are kept; its oldest is forgotten first."""
MAX_ANSWER_BYTES: Final = 32_000_000
"""Most bytes of answers to the requests of one client that are kept, as msgpack."""
MAX_AGE_S: Final = 3_600.0
"""Seconds for which a key is kept."""
ANSWER_TIMEOUT_S: Final = 30.0
"""Longest wait of a request for the scheduler."""
HEADER: Final = "Idempotency-Key"
_KEY: Final = re.compile(r"[A-Za-z0-9._~:-]{1,200}")


@dataclass(eq=False)
class KeyedRequest:
    """A request that was begun with a key."""

    content: str
    """Digest of the request."""
    task: asyncio.Task[ApiResponse]
    """The work, which ends with the answer."""
    begun_at: float
    """Monotonic time of its begin."""
    answer_bytes: int = 0
    """Size of its answer, once it has one."""


class KeyedRequests:
    """The requests with keys of one client, the oldest first. Belongs to the event loop."""

    def __init__(self) -> None:
        self._by_key: OrderedDict[str, KeyedRequest] = OrderedDict()
        # Bytes of all their answers.
        self._answer_bytes = 0

    def find(self, key: str) -> KeyedRequest | None:
        """Return the request that was begun with a key; None if there is none."""
        return self._by_key.get(key)

    def add(self, key: str, request: KeyedRequest) -> None:
        """Keep a request until it fails, is too old, or newer ones take its place."""
        self._by_key[key] = request

        def on_end(task: asyncio.Task[ApiResponse]) -> None:
            if self._by_key.get(key) is not request:
                return
            if task.cancelled() or task.exception() is not None:
                del self._by_key[key]
                return
            request.answer_bytes = len(encode(task.result().value, MSGPACK))
            self._answer_bytes += request.answer_bytes
            self.forget_oldest()

        request.task.add_done_callback(on_end)
        self.forget_oldest()

    def forget_oldest(self) -> None:
        """Forget the oldest requests beyond the limits."""
        too_old = time.monotonic() - MAX_AGE_S
        while self._by_key:
            oldest = next(iter(self._by_key.values()))
            is_full = len(self._by_key) > MAX_KEYS_COUNT or self._answer_bytes > MAX_ANSWER_BYTES
            if oldest.begun_at > too_old and not is_full:
                break
            self._by_key.popitem(last=False)
            self._answer_bytes -= oldest.answer_bytes


class RepeatedRequests:
    """The requests with keys of all clients. Belongs to the event loop."""

    def __init__(self) -> None:
        self._by_client: dict[str, KeyedRequests] = {}

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
        task = self._task_of(client, key, content, work)
        try:
            return await asyncio.wait_for(asyncio.shield(task), ANSWER_TIMEOUT_S)
        except TimeoutError:
            raise _too_slow() from None

    def _task_of(
        self, client: str, key: str, content: Any, work: Callable[[], Coroutine[Any, Any, ApiResponse]]
    ) -> asyncio.Task[ApiResponse]:
        """Return the work that was begun with a key, or begin it."""
        for requests in self._by_client.values():
            requests.forget_oldest()
        of_client = self._by_client.setdefault(client, KeyedRequests())
        digest = xxhash.xxh3_128_hexdigest(msgspec.msgpack.encode(content))
        known = of_client.find(key)
        if known is not None:
            if known.content != digest:
                raise problem("conflict", f"{HEADER} {key} belongs to another request; choose another one")
            return known.task
        task = asyncio.ensure_future(work())
        of_client.add(key, KeyedRequest(digest, task, time.monotonic()))
        return task


def _too_slow() -> Exception:
    return problem(
        "overloaded",
        f"the scheduler has not answered within {ANSWER_TIMEOUT_S:g} s; repeat the request with an {HEADER}, so that "
        "it is not done twice",
    )
