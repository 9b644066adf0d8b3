"""Sets of words (traits, aggregates) for all rows of a fleet, as bits: an array, called a plane, for every 64 words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from nodestate.scheduling.fleet.row_types import Flags, RowIndex

Plane = npt.NDArray[np.uint64]


class WordBits:
    """The words of each row. A word gets a bit when it first appears, and keeps it. Unknown words are no error."""

    def __init__(self) -> None:
        self._bits: dict[str, int] = {}
        """The number of each word's bit; 64 bits to a plane."""
        self._planes: list[Plane] = []
        """For every 64 words one integer for each row."""
        self._values: dict[tuple[str, ...], list[int]] = {}
        """For each combination of words that some row had its integer in each plane."""
        self._size = 0
        """Rows that the planes have room for."""

    def grow(self, size: int) -> None:
        """Make room for ``size`` rows."""
        self._size = size
        self._planes = [np.concatenate([plane, np.zeros(size - len(plane), np.uint64)]) for plane in self._planes]

    def put(self, row: int, words: tuple[str, ...]) -> None:
        """Set the words of a row, in place of its earlier ones."""
        values = self._values.get(words)
        if values is None:
            values = self._encoded(words)
        for number, plane in enumerate(self._planes):
            plane[row] = values[number] if number < len(values) else 0

    def have_all(self, words: Sequence[str], rows: RowIndex) -> Flags | bool:
        """For each of ``rows`` whether it has all of these words; False if a word is new, so that no row has it."""
        if any(word not in self._bits for word in words):
            return False
        flags: Flags | bool = True
        for number, mask in self._masks(words):
            flags = flags & ((self._planes[number][rows] & mask) == mask)
        return flags

    def have_any(self, words: Sequence[str], rows: RowIndex) -> Flags | bool:
        """For each of ``rows`` whether it has at least one of these words; False if no row ever had one."""
        flags: Flags | bool = False
        for number, mask in self._masks([word for word in words if word in self._bits]):
            flags = flags | ((self._planes[number][rows] & mask) != 0)
        return flags

    def rows_of(self, word: str, size: int) -> npt.NDArray[np.intp]:
        """The rows among the first ``size`` ones that have a word."""
        return np.flatnonzero(self.have_all([word], slice(0, size)))

    def count_by_word(self, counts: Mapping[int, int]) -> dict[str, int]:
        """For each word the sum of ``counts[row]`` over the rows that have the word; words of sum 0 are left out."""
        by_word: dict[str, int] = {}
        for word, bit in self._bits.items() if counts else ():
            found = sum(count for row, count in counts.items() if int(self._planes[bit // 64][row]) >> bit % 64 & 1)
            if found:
                by_word[word] = found
        return by_word

    def _encoded(self, words: tuple[str, ...]) -> list[int]:
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
        masks: dict[int, int] = {}
        for word in words:
            bit = self._bits[word]
            masks[bit // 64] = masks.get(bit // 64, 0) | 1 << bit % 64
        return [(number, np.uint64(mask)) for number, mask in masks.items()]
