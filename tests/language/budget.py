"""The budget of sentence shapes: how many each folder may have. It may only fall."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final

from tests.language.shapes import ROOT, files_of, words_and_hits

BUDGET_FILE: Final = Path(__file__).parent / "budget.toml"
SPLIT: Final = ("nodestate", "bench", "tests", "docs")
"""Folders whose parts have a budget each."""
WHOLE: Final = ("harness", "README.md", "CHANGELOG.md")
_HEADER: Final = """\
# How many sentence shapes to avoid (tests/language/shapes.py) each folder may have. A number may only fall:
# python -m tests.language --lower
"""


def places() -> list[str]:
    """All places with a budget of their own: the parts of large folders, and files of their top as one."""
    found = [name for name in WHOLE if (ROOT / name).exists()]
    for name in SPLIT:
        parts = [path for path in sorted((ROOT / name).iterdir()) if path.is_dir() and files_of(path)]
        found += [name, *(str(path.relative_to(ROOT)) for path in parts if path.name != "__pycache__")]
    return found


def count(place: str) -> tuple[int, int]:
    """Words and hits of a place; of a folder that is split only the files of its top."""
    path = ROOT / place
    files = [file for file in files_of(path) if place not in SPLIT or file.parent == path]
    counted = [words_and_hits(file) for file in files]
    return sum(words for words, _ in counted), sum(len(hits) for _, hits in counted)


def budget() -> dict[str, int]:
    """Hits that each place may have."""
    return tomllib.loads(BUDGET_FILE.read_text(encoding="utf-8"))["hits"] if BUDGET_FILE.exists() else {}


def lower() -> int:
    """Write the present numbers as the budget; a place with more hits keeps its old one. Returns an exit code."""
    before = budget()
    now = {place: count(place)[1] for place in places()}
    over = {place: hits for place, hits in now.items() if hits > before.get(place, hits)}
    rows = [f'"{place}" = {min(hits, before.get(place, hits))}' for place, hits in now.items()]
    BUDGET_FILE.write_text(_HEADER + "[hits]\n" + "\n".join(rows) + "\n", encoding="utf-8")
    for place, hits in over.items():
        print(f"{place} has {hits} hits, over its budget of {before[place]}: python -m tests.language {place}")
    return 1 if over else 0
