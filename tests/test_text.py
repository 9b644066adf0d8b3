"""Texts for people: counts with the right noun, ages, and words in place of names of classes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import nodestate
from nodestate.text import age_text, count_text, error_text, kind_text

SOURCES = sorted(Path(nodestate.__file__).parent.rglob("*.py"))


def test_a_count_has_the_noun_in_its_number() -> None:
    assert [count_text(count, "node") for count in (0, 1, 2, 1_000)] == ["0 nodes", "1 node", "2 nodes", "1,000 nodes"]
    assert [count_text(count, "queue has", "queues have") for count in (1, 2)] == ["1 queue has", "2 queues have"]


def test_no_message_has_a_count_beside_a_noun_that_is_always_plural() -> None:
    """Regression: "1 partitions", "1 nodes", "1 messages". ``count_text`` gives the noun in its number."""
    nouns = (
        "partitions|nodes|messages|queues|instances|events|agents|members|consumers|items|letters|differences|reports|"
        "changes|heartbeats|orders|log lines|connections|publishes|dead letters|commits|takeovers"
    )
    fixed = re.compile(rf"\{{[^{{}}]*\}} (?:more )?(?:{nouns})\b(?!/s)")
    found = [f"{path.name}: {text}" for path in SOURCES for text in fixed.findall(path.read_text())]
    assert found == []


def test_an_infinite_age_is_said_in_words() -> None:
    assert [age_text(3.21), age_text(float("inf"))] == ["3.2 s old", "never confirmed"]


@pytest.mark.parametrize(
    ("value", "text"),
    [({}, "a map"), ([], "a list"), ("", "a text"), (b"", "bytes"), (True, "true or false"), (1, "a number"),
     (0.5, "a number"), (None, "null"), (set(), "a Python set")],
)  # fmt: skip
def test_the_kind_of_a_value_is_said_in_words_of_json(value: object, text: str) -> None:
    assert kind_text(value) == text


def test_an_error_without_a_text_is_said_in_words() -> None:
    assert error_text(OSError("refused")) == "refused"
    assert error_text(TimeoutError()) == "no reply in time"
    assert error_text(ConnectionResetError()) == "the connection broke"


def test_no_message_names_the_class_of_an_error() -> None:
    named = [path.name for path in SOURCES if re.search(r"type\((error|cause)\)\.__name__", path.read_text())]
    assert named == []
