"""Bits for words: equal to plain sets, however many words there are."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nodestate.scheduling.fleet.bitsets import WordBits

WORDS = [f"w{n}" for n in range(200)]
ROWS = 20
words = st.lists(st.sampled_from(WORDS), max_size=5)
puts = st.lists(st.tuples(st.integers(0, ROWS - 1), words.map(tuple)), max_size=30)
rows = st.just(slice(0, ROWS)) | st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=4).map(
    lambda some: np.array(some, np.intp)
)


def flags(answer: np.ndarray | bool, which: slice | np.ndarray) -> list[bool]:
    """One flag for each of the rows, also where one stands for all."""
    count = ROWS if isinstance(which, slice) else len(which)
    return [bool(answer)] * count if isinstance(answer, bool) else answer.tolist()


@given(puts, words, rows, st.integers(1, 10))
def test_rows_by_words_are_those_of_plain_sets(
    puts: list[tuple[int, tuple[str, ...]]], words: list[str], which: slice | np.ndarray, first: int
) -> None:
    """More words than one plane has bits, words that no row has, rows that change theirs, and room that grows meanwhile."""
    bits, model = WordBits(), [set[str]() for _ in range(ROWS)]
    bits.grow(first)
    for row, there in puts:
        if row >= first:
            first = ROWS
            bits.grow(ROWS)
        bits.put(row, there)
        model[row] = set(there)
    bits.grow(ROWS)
    of_rows = [model[row] for row in (range(ROWS) if isinstance(which, slice) else which)]
    assert flags(bits.have_all(words, which), which) == [there >= set(words) for there in of_rows]
    assert flags(bits.have_any(words, which), which) == [bool(there & set(words)) for there in of_rows]
    for word in words:
        assert bits.rows_of(word, ROWS).tolist() == [row for row in range(ROWS) if word in model[row]]


@given(puts, st.dictionaries(st.integers(0, ROWS - 1), st.integers(1, 3)))
def test_members_are_counted_for_each_word_of_their_rows(
    puts: list[tuple[int, tuple[str, ...]]], counts: dict[int, int]
) -> None:
    """A rack has as many of a group as its nodes together."""
    bits, model = WordBits(), [set[str]() for _ in range(ROWS)]
    bits.grow(ROWS)
    for row, there in puts:
        bits.put(row, there)
        model[row] = set(there)
    expected = {word: sum(count for row, count in counts.items() if word in model[row]) for word in WORDS}
    assert bits.count_by_word(counts) == {word: count for word, count in expected.items() if count}


def test_a_word_takes_the_last_bit_of_a_plane() -> None:
    """The 64th bit is the sign of a signed number, and no word of the next plane."""
    bits = WordBits()
    bits.grow(2)
    bits.put(0, tuple(WORDS[:64]))
    bits.put(1, tuple(WORDS[64:128]))
    assert flags(bits.have_all([WORDS[63]], np.array([0, 1])), np.array([0, 1])) == [True, False]
    assert flags(bits.have_all([WORDS[64]], np.array([0, 1])), np.array([0, 1])) == [False, True]
    assert flags(bits.have_all(WORDS[:64], np.array([0, 1])), np.array([0, 1])) == [True, False]
