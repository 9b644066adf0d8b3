"""What people read is plain technical English, and a name means one thing."""

from __future__ import annotations

import ast
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from tests.language.budget import BUDGET_FILE, budget, count, places
from tests.language.shapes import ROOT, words_and_hits

MAX_COLUMNS = 120


@pytest.mark.parametrize("place", places())
def test_sentence_shapes_stay_within_a_budget_that_only_falls(place: str) -> None:
    """A folder with fewer hits than its budget fails, too: otherwise a later change could use up the difference."""
    _, hits = count(place)
    allowed = budget().get(place, 0)
    assert hits <= allowed, f"python -m tests.language {place}"
    assert hits == allowed, f"{place} has only {hits} hits left: python -m tests.language --lower"


def test_the_budget_names_no_folder_that_is_gone() -> None:
    """A budget of nothing would hide that a folder was renamed."""
    assert set(budget()) == set(places()), f"{BUDGET_FILE.name}: python -m tests.language --lower"


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ('"""Who loses it looks again."""', "clause with who"),
        ('"""Gives what is stored."""', "clause with what"),
        ('"""The node, or None where there is none."""', "where for if"),
        ("# waits for so long", "so many"),
        ('raise ValueError(f"{1} is read by nobody")', "nobody"),
        ('option("--x", help="Write it anew.")', "yet and anew"),
        ('raise ValueError("no: " + "those that are down")', "those that"),
    ],
)
def test_each_shape_is_found_wherever_people_read(tmp_path: Path, text: str, shape: str) -> None:
    """Docstrings, comments, error messages and help texts."""
    path = tmp_path / "text.py"
    path.write_text(text + "\n", encoding="utf-8")
    assert {hit.shape for hit in words_and_hits(path)[1]} == {shape}


def test_a_sentence_that_markdown_breaks_over_lines_is_found(tmp_path: Path) -> None:
    """A shape at a line's end would escape a search by lines; code blocks and names in backticks are no prose."""
    path = tmp_path / "text.md"
    path.write_text("It says\nwhat is stored.\n\n```\nwhat is code\n```\n`what is a name`\n", encoding="utf-8")
    assert [(hit.line, hit.shape) for hit in words_and_hits(path)[1]] == [(1, "clause with what")]


def test_a_type_name_is_defined_once_in_the_package() -> None:
    """Two types of one name are two meanings of one word: a reader would look up the wrong one."""
    defined = defaultdict(list)
    for path in sorted((ROOT / "nodestate").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                defined[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert {name: found for name, found in defined.items() if len(found) > 1} == {}


def tracked_markdown() -> list[str]:
    """Markdown files that git knows, or all there are outside a checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],  # noqa: S607 - the git of the machine
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return sorted(set(listed.stdout.split())) if listed.returncode == 0 else ["README.md", "CHANGELOG.md"]


@pytest.mark.parametrize("name", tracked_markdown())
def test_lines_of_markdown_end_at_120_columns(name: str) -> None:
    """Table rows, links and code blocks cannot be broken; Python code is checked by ruff (E501)."""
    path = ROOT / name
    if not path.exists():
        pytest.skip("removed in this checkout")
    in_code = False
    long = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            in_code = not in_code
        if len(line) > MAX_COLUMNS and not in_code and not line.startswith(("|", "    ")) and " " in line.strip():
            long.append(number)
    assert long == []
