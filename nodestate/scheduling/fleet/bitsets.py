"""Sets of words for all rows of a fleet, as bits. A word is the name of a trait, an aggregate or a taint.

For every 64 words there is one array, called a plane, with one integer for each row. Each bit of the integer stands for
one word and is 1 if the row has the word. So a whole fleet is searched for a word by a few operations on arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from nodestate.scheduling.fleet.row_types import Flags, RowIndex

Plane = npt.NDArray[np.uint64]


class WordBits:
    """The words of each row of a fleet: the traits, the aggregates or the taints of each node.

    A word gets a bit when it is stored for the first time, and keeps the bit. Asking for a word that was never stored
    is no error: no row has it.
    """

    def __init__(self) -> None:
        self._bits: dict[str, int] = {}
        """The number of each word's bit. Bit ``n`` is bit ``n % 64`` of plane ``n // 64``."""
        self._planes: list[Plane] = []
        """The planes: each is an array with the bits of 64 words, one integer for each row."""
        self._values: dict[tuple[str, ...], list[int]] = {}
        """The integers of each combination of words that was stored: one integer for each plane.

        They are kept because many nodes have the same combination.
        """
        self._size = 0
        """The number of rows for which the planes have room."""

    def grow(self, size: int) -> None:
        """Make room for ``size`` rows."""
        self._size = size
        self._planes = [np.concatenate([plane, np.zeros(size - len(plane), np.uint64)]) for plane in self._planes]

    def put(self, row: int, words: tuple[str, ...]) -> None:
        """Store the words of a row, in place of the row's earlier words."""
        values = self._values.get(words)
        if values is None:
            values = self._encoded(words)
        for number, plane in enumerate(self._planes):
            plane[row] = values[number] if number < len(values) else 0

    def have_all(self, words: Sequence[str], rows: RowIndex) -> Flags | bool:
        """Return an array that says for each of ``rows`` whether the row has all of ``words``, such as traits.

        If a word was never stored, no row can have all of them, and a single False is returned for all rows. If
        ``words`` is empty, a single True is returned.
        """
        if any(word not in self._bits for word in words):
            return False
        flags: Flags | bool = True
        for number, mask in self._masks(words):
            flags = flags & ((self._planes[number][rows] & mask) == mask)
        return flags

    def have_any(self, words: Sequence[str], rows: RowIndex) -> Flags | bool:
        """Return an array that says for each of ``rows`` whether the row has at least one of ``words``, such as traits.

        If none of the words was ever stored, a single False is returned for all rows.
        """
        flags: Flags | bool = False
        for number, mask in self._masks([word for word in words if word in self._bits]):
            flags = flags | ((self._planes[number][rows] & mask) != 0)
        return flags

    def have_none(self, words: Sequence[str], rows: RowIndex) -> Flags | bool:
        """Return an array that says for each of ``rows`` whether the row has none of ``words``, such as traits.

        If none of the words was ever stored, a single True is returned for all rows.
        """
        found = self.have_any(words, rows)
        return not found if isinstance(found, bool) else ~found

    def have_no_other(self, words: Sequence[str], rows: RowIndex) -> Flags | bool:
        """Return an array that says for each of ``rows`` whether each word of the row is one of ``words``.

        If no row ever had a word, a single True is returned for all rows.
        """
        masks = dict(self._masks([word for word in words if word in self._bits]))
        flags: Flags | bool = True
        for number, plane in enumerate(self._planes):
            flags = flags & ((plane[rows] & ~masks.get(number, np.uint64(0))) == 0)
        return flags

    def words_on(self, flags: Flags) -> list[str]:
        """Return the words that at least one row has for which ``flags`` is True. Later rows are not searched."""
        together = [int(np.bitwise_or.reduce(plane[: len(flags)][flags], initial=0)) for plane in self._planes]
        return [word for word, bit in self._bits.items() if together[bit // 64] >> bit % 64 & 1]

    def rows_of(self, word: str, size: int) -> npt.NDArray[np.intp]:
        """Return the numbers of the rows that have ``word``. Only the first ``size`` rows are searched."""
        return np.flatnonzero(self.have_all([word], slice(0, size)))

    def count_by_word(self, counts: Mapping[int, int]) -> dict[str, int]:
        """Return for each word the sum of ``counts[row]`` over the rows with the word, without sums that are 0.

        Args:
            counts: A number for each row, such as how many members of a group are on the row.
        """
        by_word: dict[str, int] = {}
        for word, bit in self._bits.items() if counts else ():
            found = sum(count for row, count in counts.items() if int(self._planes[bit // 64][row]) >> bit % 64 & 1)
            if found:
                by_word[word] = found
        return by_word

    def memberships(self, size: int) -> tuple[list[str], npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Return all words, and the pairs of a row and a word that it has, as two arrays of equal length.

        The second array of a pair has numbers of words in the returned list. Only the first ``size`` rows are searched.
        """
        words = list(self._bits)
        if not words or not size:
            return [], np.zeros(0, np.intp), np.zeros(0, np.intp)
        planes = np.stack([plane[:size] for plane in self._planes], axis=1).astype("<u8")
        bits = np.unpackbits(planes.view(np.uint8), axis=1, bitorder="little")[:, : len(words)]
        at_rows, at_words = np.nonzero(bits)
        return words, at_rows, at_words

    def _encoded(self, words: tuple[str, ...]) -> list[int]:
        """Return the integers of a combination of words, one for each plane. New words get a bit first."""
        values = [0] * len(self._planes)
        for word in words:
            bit = self._bits.setdefault(word, len(self._bits))
            while bit // 64 >= len(self._planes):
                self._planes.append(np.zeros(self._size, np.uint64))
            while bit // 64 >= len(values):
                values.append(0)
            values[bit // 64] |= 1 << bit % 64
        self._values[words] = values
        return values

    def _masks(self, words: Sequence[str]) -> list[tuple[int, np.uint64]]:
        """Return for each plane that has bits of these words its number, and an integer in which these bits are 1."""
        masks: dict[int, int] = {}
        for word in words:
            bit = self._bits[word]
            masks[bit // 64] = masks.get(bit // 64, 0) | 1 << bit % 64
        return [(number, np.uint64(mask)) for number, mask in masks.items()]
