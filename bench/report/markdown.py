"""Writes the page as Markdown: paragraphs end at 120 columns, tables have a row on each line."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Final

from bench.report.document import Page, Section, Table

TITLE: Final = "Journal, snapshot or database?"
INTRODUCTION: Final = (
    "nodestate can keep the state of every compute node in one of three designs: the journal and the snapshot live in "
    "memcached, the third lives in a SQL database. This page compares them by measurement and says which one to "
    "choose. `python -m bench report` writes the page from the records in `bench/results/`; every figure comes from a "
    "record."
)
COLUMNS: Final = 120


def markdown_of(page: Page, plots: str, *, detail: bool = False) -> str:
    """Return the page as Markdown. ``plots`` is the folder of the plots as links name it.

    With ``detail``, each section ends with a table of all its measures, folded up.
    """
    blocks = [f"# {TITLE}", _wrapped(INTRODUCTION), *(_wrapped(note, "> ") for note in page.notes)]
    answer = [_wrapped(sentence, f"{number}. ", "   ") for number, sentence in enumerate(page.answer, 1)]
    blocks += ["## The answer", "\n".join(answer)]
    for section in page.sections:
        blocks += _section(section, plots, detail=detail)
    return "\n\n".join(blocks) + "\n"


def _section(section: Section, plots: str, *, detail: bool) -> Iterator[str]:
    yield f"## {section.title}"
    yield from (_wrapped(text) for text in (section.lead, *section.text) if text)
    if section.missing:
        yield _wrapped(f"**Missing.** {section.missing}")
    for chart in section.charts:
        yield _wrapped(chart.caption)
        yield f"![Plot {chart.name}]({plots}/{chart.name}.svg)"
    for table in section.tables:
        if table.caption:
            yield _wrapped(f"{table.caption}:")
        yield _table(table)
    if detail and section.detail:
        yield "<details><summary>All measures, with their spread</summary>"
        yield from map(_table, section.detail)
        yield "</details>"
    if section.commands:
        yield "To measure it:" if section.missing else "Measured by:"
        yield "\n".join(f"- `{command}`" for command in section.commands)


def _table(table: Table) -> str:
    marks = ["---", *["---" if table.words else "---:"] * (len(table.head) - 1)]
    return "\n".join([_row(table.head), f"|{'|'.join(marks)}|", *map(_row, table.rows)])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _wrapped(text: str, first: str = "", others: str | None = None) -> str:
    return textwrap.fill(
        text,
        COLUMNS,
        initial_indent=first,
        subsequent_indent=first if others is None else others,
        break_long_words=False,
        break_on_hyphens=False,
    )
