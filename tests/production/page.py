"""Print the blocks of commands under one numbered heading of a page: ``page.py PAGE NUMBER``."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def commands_under(page: str, number: str) -> str:
    """Return all ``sh`` blocks under the heading ``## NUMBER. …`` of a Markdown page."""
    [section] = [part for part in re.split(r"^(?=## )", page, flags=re.MULTILINE) if part.startswith(f"## {number}. ")]
    blocks = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    if not blocks:
        raise SystemExit(f"the section {number} has no commands")
    return "".join(blocks)


if __name__ == "__main__":
    sys.stdout.write(commands_under(Path(sys.argv[1]).read_text(encoding="utf-8"), sys.argv[2]))
