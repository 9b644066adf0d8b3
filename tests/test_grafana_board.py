"""The board has the types that Grafana's foundation SDK gives boards, panels and queries of Prometheus."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

pytestmark = pytest.mark.thorough
ROOT: Final = Path(__file__).parent.parent
BOARD: Final = (ROOT / "deploy" / "grafana" / "nodestate.json").read_text(encoding="utf-8")
PACKAGES: Final = ("@grafana/grafana-foundation-sdk@0.0.21", "typescript@5.9.3")
OPTIONS: Final = ["--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--moduleResolution", "nodenext"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the SDK and the compiler. Debian's npm brings 360 packages, so no script installs it."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is missing")
    made = tmp_path_factory.mktemp("board")
    shutil.copy(ROOT / "tests" / "grafana" / "board_type.ts", made)
    (made / "package.json").write_text("{}")
    run(made, npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES)
    return made


def run(folder: Path, *words: str) -> None:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603 - npm and tsc
    assert done.returncode == 0, done.stdout + done.stderr


def check(folder: Path, board: str) -> None:
    """Give a board its type and run the compiler. The literal is annotated, so that unknown fields are errors too."""
    text = f'import type {{ Board }} from "./board_type";\nexport const board: Board = {board.rstrip()};\n'
    (folder / "board.ts").write_text(text, encoding="utf-8")
    run(folder, "node_modules/.bin/tsc", *OPTIONS, "board.ts")


def test_the_board_has_the_types_of_grafana(folder: Path) -> None:
    check(folder, BOARD)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('"legendFormat":', '"legend_format":'),
        ('"placement": "bottom"', '"placement": "below"'),
        ('"annotations":', '"annotation":'),
    ],
)
def test_a_wrong_board_is_refused(folder: Path, right: str, wrong: str) -> None:
    assert right in BOARD
    with pytest.raises(AssertionError, match="error TS"):
        check(folder, BOARD.replace(right, wrong, 1))
