"""Checks of the documents: examples run, links lead to existing pages, and everything in the code is documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

from bench.adr_figures import __main__ as adr_figures
from nodestate.cli import every_command
from nodestate.config import SECRET_SETTINGS, Config
from nodestate.designs import DESIGNS
from nodestate.errors import BadEventError
from nodestate.model import event_from_json
from nodestate.scheduling import FILTERS, WEIGHERS, GroupRequest, Request
from nodestate.store import keys

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SOURCES = sorted((ROOT / "nodestate").rglob("*.py"))
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
ADRS = sorted((DOCS / "adr").glob("*.md"))
CONSISTENCY = DOCS / "concepts" / "consistency.md"
TO_COME = "(test to come)"
ONLY_PUBLISHERS = frozenset({"no-state"})
"""Reasons that only publishers give, so that they never reach the dead-letter queue."""


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def table_rows(text: str) -> Iterator[list[str]]:
    """Yield the cells of every row of every table, without head and separator rows."""
    lines = text.split("\n")
    for above, line in pairwise(lines):
        is_rule = re.fullmatch(r"\|[-:| ]+\|", line) is not None
        if line.startswith("|") and not is_rule and above.startswith("|"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- examples -------------------------------------------------------------------------------------


def python_blocks(path: Path) -> list[tuple[int, str, str]]:
    """Return the Python blocks of a page: the line before the block, its text, and the file name above it or ""."""
    text = path.read_text(encoding="utf-8")
    return [
        (text[: match.start(2)].count("\n"), match[2], match[1] or "")
        for match in re.finditer(r"(?:`(\w+\.py)`:\n\n)?^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]


@pytest.mark.parametrize("path", [page for page in PAGES if python_blocks(page)], ids=page_id)
def test_python_of_a_page_runs(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Blocks run in order in one namespace, as a reader would paste them. Blocks with a file name can be imported.

    A traceback shows the line of the page.
    """
    monkeypatch.setenv("NODESTATE_STATE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, block, file in python_blocks(path):
        if file:
            (tmp_path / file).write_text(block, encoding="utf-8")
            sys.modules.pop(file.removesuffix(".py"), None)
        exec(compile("\n" * line + block, str(path), "exec"), namespace)  # noqa: S102 - our own pages


def test_the_tutorial_has_python_to_run() -> None:
    assert len(python_blocks(DOCS / "tutorial.md")) >= 5


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_commands_and_options_in_shell_blocks_exist(path: Path) -> None:
    """In ``nodestate NAME --option …``, both the command and each option must exist."""
    code = "\n".join(re.findall(r"^```(?:sh|console|bash)\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE))
    for line in code.replace("\\\n", " ").split("\n"):
        for call in re.findall(r"(?:^|\s|/)nodestate ((?:[a-z][a-z-]*)(?: [^|&;#]*)?)", line.split(" # ")[0]):
            found = [words for words in every_command() if f"{call} ".startswith(f"{words} ")]
            assert found, f"there is no command {call}"
            options = {option for param in every_command()[found[0]].params for option in param.opts}
            for word in call.split():
                if word.startswith("--"):
                    assert word.partition("=")[0] in options | {"--help"}, f"nodestate {found[0]} has no {word}"


# -- links and references -------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub makes from the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_links_lead_to_existing_files_and_headings(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        there = (path.parent / target).resolve() if target else path
        assert there.exists(), f"{link}: there is no such file"
        if anchor:
            assert anchor in anchors(there), f"{link}: {page_id(there)} has no such heading"


def names_in(path: Path) -> set[str]:
    """Return the names of tests, of classes and of ``Class::test`` in a file."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        if isinstance(node, ast.Assign):  # Machine.TestCase
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_every_test_named_on_a_page_exists(path: Path) -> None:
    for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::([\w:]+))?`", path.read_text(encoding="utf-8")):
        assert (ROOT / file).is_file(), f"there is no {file}"
        assert not name or name in names_in(ROOT / file), f"{file} has no {name}"


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_every_source_file_named_on_a_page_exists(path: Path) -> None:
    for file in re.findall(r"`((?:nodestate|bench|docs)/[\w/]+(?:\.\w+)?/?)`", path.read_text(encoding="utf-8")):
        assert (ROOT / file).exists(), f"there is no {file}"


def test_every_row_of_the_fault_table_is_there_once_and_names_a_test() -> None:
    faults = [row for row in table_rows(CONSISTENCY.read_text(encoding="utf-8")) if len(row) == 4 and row[1]]
    assert len(faults) >= 30
    assert [fault for fault, count in Counter(row[0] for row in faults).items() if count > 1] == []
    for fault, _seen, _healed, proof in faults:
        assert "`tests/" in proof or TO_COME in proof, f"the row {fault!r} names neither a test nor {TO_COME}"


# -- reference ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((DOCS / "reference").glob("*.md")), ids=page_id)
def test_generated_parts_are_up_to_date(path: Path) -> None:
    """If this fails, run ``python docs/generate.py``."""
    text = path.read_text(encoding="utf-8")
    assert text == load_generator().generated(text)


def test_every_setting_is_documented() -> None:
    documented = [row[0].strip("`") for row in table_rows(text_of("reference/settings.md")) if len(row) == 4]
    assert documented == list(Config.__struct_fields__)


def test_every_setting_that_is_described_as_a_url_or_a_password_is_declared_as_a_secret() -> None:
    """Masking, and the settings NAME_file, follow the declared types of the fields."""
    rows = [row for row in table_rows(text_of("reference/settings.md")) if len(row) == 4]
    described = {row[0].strip("`") for row in rows if re.search(r"URL|(?i:passw|secret)", " ".join(row))}
    assert {"broker", "sql", "store_password"} <= described <= {*SECRET_SETTINGS}


def test_every_command_is_documented() -> None:
    documented = [row[0].strip("`") for row in table_rows(text_of("reference/commands.md"))]
    assert documented == list(every_command())


def test_every_field_of_a_request_is_documented() -> None:
    text = text_of("reference/requests.md")
    for request, heading in ((Request, "## A request\n"), (GroupRequest, "## A group request\n")):
        section = text.partition(heading)[2].partition("\n## ")[0]
        documented = [row[0].strip("`") for row in table_rows(section)]
        assert sorted(documented) == sorted(request.__struct_fields__)


def test_every_filter_and_weigher_is_documented() -> None:
    text = text_of("concepts/scheduling.md")
    rows = list(table_rows(text.partition("### Filters")[2].partition("\n### ")[0]))
    assert [name.strip("` ") for row in rows for name in row[0].split(",")] == list(FILTERS)
    rows = list(table_rows(text.partition("### Weighers")[2].partition("\n## ")[0]))
    documented = {name.strip("` "): float(row[1]) for row in rows for name in row[0].split(",")}
    assert documented == {name: weigher.multiplier for name, weigher in WEIGHERS.items()}


def key_functions() -> dict[str, Callable[..., str]]:
    functions = inspect.getmembers(keys, inspect.isfunction)
    return {
        name: one
        for name, one in functions
        if one.__module__ == keys.__name__ and "prefix" in inspect.signature(one).parameters
    }


PARAMETERS = {
    "epoch": 0xE90C4,
    "term": 7_777,
    "offset": 8_888,
    "part": 9_999,
    "name": "{name}",
    "first": 5_555,
    "end": 6_666,
}
SHOWN = {"e90c4": "{epoch}", "7777": "{term}", "8888": "{offset}", "9999": "{part}", "5555": "{first}", "6666": "{end}"}


def test_every_key_function_is_documented_with_its_pattern() -> None:
    documented = {
        row[0].strip("`"): row[1].strip("`") for row in table_rows(text_of("reference/keys.md")) if len(row) == 5
    }
    assert documented.keys() == key_functions().keys()
    letters = {design.letter for design in DESIGNS.values()}
    for name, function in key_functions().items():
        pattern = documented[name]
        letter = "{design}" if "{design}" in pattern else pattern.split(":")[3]
        assert letter in letters | {"{design}"}
        given = {one: PARAMETERS[one] for one in inspect.signature(function).parameters if one != "prefix"}
        key = function(prefix="ns:{cell}:{partitions}.{partition}:" + letter, **given)
        for number, shown in SHOWN.items():
            key = key.replace(number, shown)
        assert key == pattern


def raised_reasons() -> set[str]:
    """Return every first argument of a ``BadEventError`` in the code."""
    reasons = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == BadEventError.__name__:
                assert isinstance(node.args[0], ast.Constant), f"{path.name}: a reason is a literal, as it is frozen"
                reasons.add(str(node.args[0].value))
    return reasons


def test_every_reason_of_a_dead_letter_is_documented() -> None:
    text = text_of("reference/wire.md")
    section = text.partition("## Dead letters")[2].partition("\n## ")[0]
    documented = {row[0].strip("`") for row in table_rows(section)}
    assert documented == raised_reasons() - ONLY_PUBLISHERS
    assert all(f"`{reason}`" in section for reason in ONLY_PUBLISHERS)


def test_every_limit_is_documented() -> None:
    """In modules that define limits for users, each public constant MAX_… or MIN_… must be in the table."""
    for module, documented in load_generator().LIMITS.items():
        source = Path(str(importlib.import_module(module).__file__)).read_text(encoding="utf-8")
        for name in re.findall(r"^(M(?:AX|IN)_\w+)(?:: Final)? = ", source, re.MULTILINE):
            assert name in documented, f"{module}.{name}"


# -- decisions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ADRS, ids=page_id)
def test_every_adr_has_the_agreed_sections(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    number = path.name[:4]
    assert re.match(rf"# {int(number)}\. .+\n\nStatus: ", text)
    headings = re.findall(r"^## (\w+)", text, re.MULTILINE)
    assert headings[:4] == ["Context", "Decision", "Consequences", "Alternatives"]
    for figures in re.findall(r"python -m bench\.adr_figures (\w+)", text):
        assert figures in {*adr_figures.DECISIONS, "all"}


def test_adr_numbers_are_consecutive() -> None:
    assert [int(path.name[:4]) for path in ADRS] == list(range(1, len(ADRS) + 1))


# -- events on pages ----------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_events_shown_on_a_page_are_valid(path: Path) -> None:
    for line in re.findall(r'^\{"v": ?1.*\}$', path.read_text(encoding="utf-8"), re.MULTILINE):
        event_from_json(line)
