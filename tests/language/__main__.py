"""Show the hits of a folder, or lower the budget to the present number: see ``tests.language.shapes``."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.language.budget import lower
from tests.language.shapes import files_of, words_and_hits


def main(arguments: list[str]) -> int:
    """Print each hit as path:line: shape: excerpt, then the rate; with --lower write ``budget.toml``."""
    if arguments == ["--lower"]:
        return lower()
    if not arguments:
        print(__doc__)
        return 2
    words, hits = 0, []
    for place in arguments:
        for path in files_of(Path(place).resolve()):
            more, found = words_and_hits(path)
            words, hits = words + more, [*hits, *found]
    for hit in hits:
        print(f"{hit.path}:{hit.line}: {hit.shape}: …{hit.excerpt}…")
    print(f"{len(hits)} hits in {words:,} words: {1000 * len(hits) / max(1, words):.1f} per 1,000 words")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
