"""The package as it is published: what the wheel contains and says, and the pages of the manual."""

from __future__ import annotations

import email
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.message import Message
from pathlib import Path
from typing import Final

import pytest

from harness.processes import environment_without_settings
from nodestate.cli import every_command

ROOT: Final = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a wheel and a source distribution of this working copy."""
    folder = tmp_path_factory.mktemp("dist")
    # The wheel is built from the source distribution, so a file that the latter lacks is missed.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT))
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    [path] = built.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return email.message_from_string(wheel.read(name).decode())


def run(*words: str, cwd: Path | None = None) -> str:
    done = subprocess.run(  # noqa: S603 - our own programs
        words, cwd=cwd, env=environment_without_settings(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def test_wheel_has_all_modules_and_data_of_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "nodestate").rglob("*") if path.is_file()}
    assert held == {name for name in expected if "__pycache__" not in name}
    assert "nodestate/py.typed" in held


def test_metadata_have_the_readme_the_licence_and_the_versions_of_python(metadata: Message) -> None:
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text()
    assert metadata["License-Expression"] == "Apache-2.0"
    versions = [word for word in metadata.get_all("Classifier", []) if word.startswith("Programming Language ")]
    assert f"Programming Language :: Python :: {sys.version_info.major}.{sys.version_info.minor}" in versions


def test_source_distribution_has_the_tests_and_the_documentation(built: Path) -> None:
    [path] = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "README.md",
        "CHANGELOG.md",
        "Makefile",
        "requirements.lock",
        "tests/conftest.py",
        "harness/cell.py",
    } <= names
    assert {"docs/tutorial.md", "docs/man_pages.py", "LICENSE"} <= names


def test_wheel_runs_without_the_source(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)  # noqa: S202 - built by this test
    code = "import nodestate; from nodestate.cli import main; print(nodestate.__file__); main(['--version'])"
    shown = run(sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}", cwd=tmp_path)
    file, version = shown.splitlines()
    assert Path(file).is_relative_to(tmp_path)
    assert version.startswith("nodestate, version ")


@pytest.mark.thorough
@pytest.mark.parametrize("extras", ["", "[serve,sql,ed25519,redis]"], ids=["alone", "all extras"])
def test_wheel_installs_into_a_new_environment_and_runs_a_cell(built: Path, tmp_path: Path, extras: str) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    [path] = built.glob("*.whl")
    run(str(python), "-m", "pip", "install", "--quiet", f"nodestate{extras} @ {path.as_uri()}", cwd=tmp_path)
    shown = run(str(tmp_path / "env/bin/nodestate"), "up", "--nodes", "20", "--seconds", "3", cwd=tmp_path)
    assert "agree: " in shown
    run(str(tmp_path / "env/bin/nodestate"), "config", "sample", cwd=tmp_path)


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the pages of the manual."""
    folder = tmp_path_factory.mktemp("man")
    run(sys.executable, str(ROOT / "docs/man_pages.py"), str(folder), cwd=ROOT)
    return folder


def test_manual_has_a_page_with_an_example_for_each_command(manual: Path) -> None:
    for words, command in every_command().items():
        page = (manual / f"nodestate-{words.replace(' ', '-')}.1").read_text()
        assert "Example:" in page, words
        for param in command.params:
            for option in param.opts:
                if option.startswith("--"):
                    assert option.replace("-", r"\-") in page, f"{words} {option}"


def test_manual_is_formatted_without_a_warning(manual: Path) -> None:
    groff, preconv = shutil.which("groff"), shutil.which("preconv")
    if groff is None or preconv is None:
        pytest.skip("groff is not installed")
    for page in sorted(manual.glob("*.1")):
        done = subprocess.run(  # noqa: S603 - a formatter
            [groff, "-k", "-man", "-ww", "-z", "-Tutf8", str(page)], capture_output=True, text=True, check=False
        )
        assert done.stderr == "", page.name
