"""Text that others wrote reaches no terminal unescaped, whichever way a command prints it."""

from __future__ import annotations

import io
import json
import sys
from typing import Any, Final

import msgspec
import pytest
import structlog
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from nodestate.cli import doctor, main
from nodestate.cli.command import PrintableConsole
from nodestate.cli.logs import set_up_logs
from nodestate.findings.finding import WARN, Finding
from nodestate.text import printable, printable_json

HOSTILE: Final = "a\x1b[2J\x9b31mb\x7f\u202ec\u200f\u2066d\x07\x85\u2028\U000e0041e"
"""ESC, C1, DEL, marks of direction, BEL, NEL, a line separator, and an invisible letter."""


def require_printable(output: str) -> None:
    """Fail if the output has any of these characters."""
    assert output.replace("\n", "").replace("\t", "").isprintable(), ascii(output)


@given(st.text())
@example(HOSTILE)
@example("\ud800")
def test_any_text_becomes_printable(text: str) -> None:
    require_printable(printable(text))
    assert printable(text, keep="").isprintable()
    if text.isprintable():
        assert printable(text) == text


SCALARS: Final = st.text() | st.integers() | st.booleans()


@given(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
@example({HOSTILE: [HOSTILE]})
def test_json_keeps_its_value_and_is_printable(value: Any) -> None:
    encoded = printable_json(msgspec.json.encode(value))
    assert json.loads(encoded) == value
    require_printable(encoded.decode())


def test_tables_texts_markup_and_json_of_a_console_are_printable() -> None:
    table = Table(HOSTILE)
    table.add_row(Text(HOSTILE, style="bold"))
    table.add_row(escape(HOSTILE))
    console = PrintableConsole(file=io.StringIO(), force_terminal=True, width=200, color_system="standard")
    for one in (table, Text(HOSTILE), f"[bold]{escape(HOSTILE)}[/]"):
        console.print(one)
    console.print(HOSTILE, markup=False, soft_wrap=True)
    console.print_json(json.dumps({"zone": HOSTILE}))
    output = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert "\x1b[1m" in output, "colours of rich stay"
    assert "\x1b[2J" not in output
    for sequence in ("\x1b[1m", "\x1b[0m", "\x1b[1;34m", "\x1b[32m", "\x1b[1;32m"):
        output = output.replace(sequence, "")
    require_printable(output)
    assert output.count(r"\u001b[2J") >= 5


def test_findings_of_the_doctor_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    """The details of dead letters are among them."""

    class Run:
        out = PrintableConsole(file=sys.stdout, width=200, highlight=False)

    doctor._print(Run, Finding(WARN, "dead letters", f"e.g. {HOSTILE}", HOSTILE))  # type: ignore[arg-type]
    require_printable(capsys.readouterr().out)


@pytest.mark.parametrize("form", ["console", "json"])
def test_logs_are_printable_and_one_line_each(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A line break in a detail must not look like the next log entry."""
    set_up_logs("info", form)
    structlog.get_logger("x").warning("dead letter", detail=f"{HOSTILE}\n2026-01-01 [error] forged", names=[HOSTILE])
    logged = capsys.readouterr().err
    require_printable(logged)
    assert logged.count("\n") == 1
    try:
        int(HOSTILE)
    except ValueError:
        structlog.get_logger("x").exception("failed")
    require_printable(capsys.readouterr().err)


@pytest.mark.parametrize("as_json", [False, True])
def test_refusals_and_errors_of_commands_are_printable(as_json: bool) -> None:
    line = json.dumps({"v": 1, "kind": "leave", "node": HOSTILE, "incarnation": 1, "generation": 1, "reported_at": 1.0})
    words = ["publish", "--broker", "amqp://127.0.0.1:1", "--timeout", "0.1", *(["--json"] if as_json else []), "-"]
    refused = CliRunner().invoke(main, words, input=f"{line}\n")
    require_printable(refused.output)
    assert r"\u001b[2J" in refused.output or r"\x1b[2J" in refused.output
    wrong = CliRunner().invoke(main, ["view", "--cell", HOSTILE, *(["--json"] if as_json else [])])
    assert wrong.exit_code == 2
    require_printable(wrong.output)
