"""Writes the evaluation to files: Markdown with its plots beside it, and HTML on demand."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bench.report.document import Page
from bench.report.markdown import markdown_of
from bench.report.page import compose
from bench.report.records import Records

ROOT: Final = Path(__file__).parents[2]
RESULTS: Final = ROOT / "bench" / "results"
DOCS: Final = ROOT / "docs"
PLOTS: Final = "evaluation"
"""The folder of plots, beside the page."""
INSTALL: Final = "pip install -e '.[report]'"


class ReportError(Exception):
    """Raised when the report cannot be written; the message says what to do."""


def write_report(results: Path, docs: Path | None = None) -> Path:
    """Write ``evaluation.md`` and the plots in ``evaluation/``; return the path of the page.

    ``docs`` is the folder to write to. The default is the repository's documentation for the repository's own results,
    and the folder of results for any other. Raises ReportError if there are no records or a library is missing.
    """
    page = _page_of(results)
    docs = docs or (DOCS if results.resolve() == RESULTS else results)
    _write_plots(docs / PLOTS, _plots_of(page))
    path = docs / "evaluation.md"
    path.write_text(markdown_of(page, PLOTS), encoding="utf-8")
    return path


def write_html(results: Path, path: Path) -> None:
    """Write the page to one HTML file, with the tables of all measures, which the Markdown leaves out.

    Raises ReportError if there are no records or a library is missing.
    """
    page = _page_of(results)
    plots = {f"{PLOTS}/{name}.svg": svg for name, svg in _plots_of(page).items()}
    try:
        from bench.report.html_page import html_of  # noqa: PLC0415 - only this output needs markdown-it
    except ImportError as error:
        raise _missing(error) from error
    path.write_text(html_of(markdown_of(page, PLOTS, detail=True), plots), encoding="utf-8")


def _page_of(results: Path) -> Page:
    records = Records.of(results)
    if not records.by_run:
        raise ReportError(f"no records in {results}: make them with `python -m bench all`")
    return compose(records)


def _plots_of(page: Page) -> dict[str, str]:
    """Return the SVG of each plot by its name."""
    try:
        from bench.report.plots import svg_of  # noqa: PLC0415 - takes a second to import
    except ImportError as error:
        raise _missing(error) from error
    return {chart.name: svg_of(chart) for chart in page.charts}


def _write_plots(folder: Path, plots: dict[str, str]) -> None:
    """Write the plots, and remove plots that the page no longer shows."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.svg"):
        if old.stem not in plots:
            old.unlink()
    for name, svg in plots.items():
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")


def _missing(error: ImportError) -> ReportError:
    return ReportError(f"the report needs a library that is not installed ({error}): {INSTALL}")
