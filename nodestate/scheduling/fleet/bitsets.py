"""Which nodes have which words (traits, aggregates): one bit for each, 64 words to a plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from nodestate.scheduling.fleet.row_types import Flags, RowIndex

Plane = npt.NDArray[np.uint64]


class WordBits:
    """Rows by word. Words get their bits as they come, and keep them; a word that no row has yet is no error."""

    def __init__(self) -> None:
        self._bits: dict[str, int] = {}
        self._planes: list[Plane] = []
        self._alike: dict[tuple[str, ...], list[int]] = {}
        self._size = 0

    def grow(self, size: int) -> None:
        """Make room for so many rows."""
        self._size = size
        self._planes = [np.concatenate([plane, np.zeros(size - len(plane), np.uint64)]) for plane in self._planes]

    def put(self, row: int, words: tuple[str, ...]) -> None:
        """The words of a row, in place of those that it had."""
        values = self._alike.get(words)
        if values is None:
            values = self._values(words)
        for number, plane in enumerate(self._planes):
            plane[row] = values[number] if number < len(values) else 0

    def have_all(self, words: Sequence[str], rows: RowIndex) -> Flags | bool:
        """Which rows have all of these words."""
        if any(word not in self._bits for word in words):
            return False
        flags: Flags | bool = True
        for number, mask in self._masks(words):
            flags = flags & ((self._planes[number][rows] & mask) == mask)
        return flags

    def have_any(self, words: Sequence[str], rows: RowIndex) -> Flags | bool:
        """Which rows have at least one of these words."""
        flags: Flags | bool = False
        for number, mask in self._masks([word for word in words if word in self._bits]):
            flags = flags | ((self._planes[number][rows] & mask) != 0)
        return flags

    def rows_of(self, word: str, size: int) -> npt.NDArray[np.intp]:
        """Which of the first ``size`` rows have a word."""
        return np.flatnonzero(self.have_all([word], slice(0, size)))

    def counted(self, counts: Mapping[int, int]) -> dict[str, int]:
        """How many of something are on rows that have a word, from how many are on each row."""
        by_word: dict[str, int] = {}
        for word, bit in self._bits.items() if counts else ():
            found = sum(count for row, count in counts.items() if int(self._planes[bit // 64][row]) >> bit % 64 & 1)
            if found:
                by_word[word] = found
        return by_word

    def _values(self, words: tuple[str, ...]) -> list[int]:
        values = [0] * len(self._planes)
        for word in words:
            bit = self._bits.setdefault(word, len(self._bits))
            while bit // 64 >= len(self._planes):
                self._planes.append(np.zeros(self._size, np.uint64))
            while bit // 64 >= len(values):
                values.append(0)
            values[bit // 64] |= 1 << bit % 64
        self._alike[words] = values
        return values

    def _masks(self, words: Sequence[str]) -> list[tuple[int, np.uint64]]:
        masks: dict[int, int] = {}
        for word in words:
            bit = self._bits[word]
            masks[bit // 64] = masks.get(bit // 64, 0) | 1 << bit % 64
        return [(number, np.uint64(mask)) for number, mask in masks.items()]
