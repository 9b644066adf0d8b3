"""Word bits: they equal plain sets, however many words there are."""

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
    """One flag for each of the rows, also if the answer is one flag for all."""
    count = ROWS if isinstance(which, slice) else len(which)
    return [bool(answer)] * count if isinstance(answer, bool) else answer.tolist()


@given(puts, words, rows, st.integers(1, 10))
def test_word_bits_answer_as_plain_sets_do(
    puts: list[tuple[int, tuple[str, ...]]], words: list[str], which: slice | np.ndarray, first: int
) -> None:
    """There are more words than one plane has bits, words that no row has, rows whose words change, and room that
    grows.
    """
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
    assert flags(bits.have_none(words, which), which) == [not there & set(words) for there in of_rows]
    assert flags(bits.have_no_other(words, which), which) == [there <= set(words) for there in of_rows]
    even = np.arange(ROWS) % 2 == 0
    assert set(bits.words_on(even)) == set().union(*model[::2])
    for word in words:
        assert bits.rows_of(word, ROWS).tolist() == [row for row in range(ROWS) if word in model[row]]


@given(puts, st.dictionaries(st.integers(0, ROWS - 1), st.integers(1, 3)))
def test_counts_are_summed_up_for_each_word(puts: list[tuple[int, tuple[str, ...]]], counts: dict[int, int]) -> None:
    """A rack has as many members of a group as its nodes together."""
    bits, model = WordBits(), [set[str]() for _ in range(ROWS)]
    bits.grow(ROWS)
    for row, there in puts:
        bits.put(row, there)
        model[row] = set(there)
    expected = {word: sum(count for row, count in counts.items() if word in model[row]) for word in WORDS}
    assert bits.count_by_word(counts) == {word: count for word, count in expected.items() if count}


def test_sixty_fourth_word_takes_the_last_bit_of_the_first_plane() -> None:
    """Bit 64 would be the sign of a signed integer, and the next word is in the next plane."""
    bits = WordBits()
    bits.grow(2)
    bits.put(0, tuple(WORDS[:64]))
    bits.put(1, tuple(WORDS[64:128]))
    assert flags(bits.have_all([WORDS[63]], np.array([0, 1])), np.array([0, 1])) == [True, False]
    assert flags(bits.have_all([WORDS[64]], np.array([0, 1])), np.array([0, 1])) == [False, True]
    assert flags(bits.have_all(WORDS[:64], np.array([0, 1])), np.array([0, 1])) == [True, False]
