"""Requests with an Idempotency-Key: how many are kept, and for whom."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from nodestate.serve import repeated_requests
from nodestate.serve.repeated_requests import RepeatedRequests
from nodestate.serve.responses import ApiResponse


class Works:
    """Works that answer with a text, and are counted."""

    def __init__(self, answer: str = "done") -> None:
        self.count = 0
        self._answer = answer

    def begin(self) -> Coroutine[Any, Any, ApiResponse]:
        """Begin a work."""

        async def work() -> ApiResponse:
            self.count += 1
            return ApiResponse(self._answer)

        return work()


def run(scenario: Callable[[RepeatedRequests], Coroutine[Any, Any, None]]) -> None:
    async def all_of_it() -> None:
        await scenario(RepeatedRequests())

    asyncio.run(all_of_it())


def test_a_client_with_many_keys_does_not_push_out_those_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: all clients shared one limit, so the boot of another client was repeated."""
    monkeypatch.setattr(repeated_requests, "MAX_KEYS_COUNT", 3)
    works, others = Works(), Works()

    async def scenario(repeated: RepeatedRequests) -> None:
        await repeated.once("k", "sam", 1, works.begin)
        for number in range(10):
            await repeated.once(f"k{number}", "bob", 1, others.begin)
        await repeated.once("k", "sam", 1, works.begin)

    run(scenario)
    assert (works.count, others.count) == (1, 10)


def test_the_oldest_of_as_many_keys_as_are_kept_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: the oldest key was forgotten before it was looked for."""
    monkeypatch.setattr(repeated_requests, "MAX_KEYS_COUNT", 3)
    works = Works()

    async def scenario(repeated: RepeatedRequests) -> None:
        for key in ("a", "b", "c", "a", "b", "c"):
            await repeated.once(key, "sam", 1, works.begin)
        await repeated.once("d", "sam", 1, works.begin)
        await repeated.once("a", "sam", 1, works.begin)

    run(scenario)
    assert works.count == 5


def test_large_answers_are_kept_up_to_a_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: 10,000 answers of any size were kept, which takes gigabytes if each names 1,000 instances."""
    monkeypatch.setattr(repeated_requests, "MAX_ANSWER_BYTES", 1_000)
    works = Works("x" * 300)

    async def scenario(repeated: RepeatedRequests) -> None:
        for key in ("a", "b", "c", "d", "d", "c", "b", "a"):
            await repeated.once(key, "sam", 1, works.begin)

    run(scenario)
    assert works.count == 5  # a was forgotten for d
