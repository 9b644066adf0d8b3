"""Writes the page twice: as one HTML file that needs nothing else, and as Markdown with its plots beside it."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.report import advice
from bench.report.comparison import NOISE
from bench.report.document import Plot, Section, Table
from bench.report.number_format import figure
from bench.report.records import Records, command_of
from bench.report.sections import sections
from bench.report.theme import DARK, LIGHT

ROOT: Final = Path(__file__).parents[2]
RESULTS: Final = ROOT / "bench" / "results"
DOCS: Final = ROOT / "docs"
TEMPLATES: Final = Path(__file__).parent / "templates"
PLOTS: Final = "evaluation"
EXTRA: Final = "pip install -e '.[bench]'"


class ReportError(Exception):
    """Raised when no report can be written; says what to do."""


@dataclass(frozen=True, slots=True)
class Page:
    """All that a template shows."""

    answer: Sequence[str]
    notes: Sequence[str]
    advice: Sequence[Section]
    measured: Sequence[Section]
    ends: Sequence[Section]


def write_report(results: Path, docs: Path | None = None) -> list[Path]:
    """Write ``report.html`` into the folder of records, and ``evaluation.md`` with its plots into ``docs``: where the
    documentation is for the folder of this repository, and else beside the report. Returns the pages.
    """
    records = Records.of(results)
    if not records.by_run:
        raise ReportError(f"no records in {results}: make them with `python -m bench all`")
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415 - an extra

        from bench.report.plots import svg, svg_file  # noqa: PLC0415 - ditto
    except ImportError as error:
        raise ReportError(f"the report needs the extra `bench` ({error}): {EXTRA}") from error
    docs = docs or (DOCS if results.resolve() == RESULTS else results)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
    )
    environment.filters |= {"marked": marked, "cell": cell}
    page, page_html, page_md = compose(records), results / "report.html", docs / "evaluation.md"
    shared: dict[str, Any] = {"page": page, "anchor": anchor}
    as_html = environment.get_template("report.html").render(**shared, svg=svg, light=LIGHT, dark=DARK)
    page_html.write_text(as_html + "\n", encoding="utf-8")
    _write_plots(page, docs / PLOTS, svg_file)
    as_text = environment.overlay(autoescape=False).get_template("evaluation.md").render(**shared, plots=PLOTS)
    page_md.write_text(re.sub(r"\n{3,}", "\n\n", as_text).strip() + "\n", encoding="utf-8")
    return [page_html, page_md]


def compose(records: Records) -> Page:
    """The page, before it is written."""
    return Page(
        answer=advice.answer(records),
        notes=_notes(records),
        advice=[advice.choice(records), advice.wins(records), advice.hybrid(records)],
        measured=sections(records),
        ends=[advice.goals(records), caveats(records), runs(records)],
    )


def _notes(records: Records) -> list[str]:
    notes = []
    if records.quick:
        notes.append(
            f"Not figures to go by: {', '.join(records.quick)} ran with `--quick`, which shows that things work."
        )
    if len({record.commit for record in records.by_run.values()}) > 1:
        notes.append("The records are of different commits: see the table of runs.")
    if any(record.commit.endswith("+") for record in records.by_run.values()):
        notes.append("Some runs were made with files that differ from their commit (marked +).")
    notes += [f"Left out, as it is no record: {name}." for name in records.unreadable]
    return notes


def caveats(records: Records) -> Section:
    """What to keep in mind, with the figures of where it ran."""
    machines = [record.machine for record in records.by_run.values()]
    calibrations = sorted(machine.calibration_ms for machine in machines)
    cores = ", ".join(sorted({f"{machine.cores} cores of {machine.cpu}" for machine in machines}))
    text = [
        (
            f"All on {cores}: servers, consumers, readers and the benchmark share them. Rates say as much of the servers as "
            "of nodestate; processor time is the better figure of nodestate itself."
        ),
        (
            f"The machine is shared. A fixed loop in plain Python took {calibrations[0]:.1f} to {calibrations[-1]:.1f} ms before the "
            f"runs, {calibrations[-1] / calibrations[0]:.2f}× apart, and the load was up to {max(m.load_1min for m in machines):.1f}. "
            f"Compare within one run; take less than {NOISE:g}× for noise."
        ),
        "Figures are medians; bands and whiskers go from the least to p99, which of few rounds is the worst one.",
        "One memcached or database, one RabbitMQ, all local: no network, no replication.",
        "Each run shows first that what it times is right, or gives no figures: see `bench/README.md`.",
    ]
    return Section("Caveats", "", text)


def runs(records: Records) -> Section:
    """Every record, and how to make it again."""
    rows = [
        [
            run,
            record.began_at,
            record.commit[:10] + ("+" if record.commit.endswith("+") else "") or "–",
            figure(record.machine.load_1min),
            f"{record.machine.calibration_ms:.1f}",
            f"`{command_of(run, record)}`",
        ]
        for run, record in records.by_run.items()
    ]
    head = ["run", "began", "commit", "load", "calibration, ms", "command"]
    servers = {f"{name} {of}" for record in records.by_run.values() for name, of in record.versions.items()}
    lead = f"Versions: {', '.join(sorted(servers))}."
    return Section("Runs", lead, tables=[Table(head, rows, words=True)], commands=["make bench"])


def _write_plots(page: Page, folder: Path, svg_file: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    charts: list[Plot] = [chart for section in page.measured for chart in section.charts]
    for old in folder.glob("*.svg"):
        if old.stem not in {chart.name for chart in charts}:
            old.unlink()
    for chart in charts:
        (folder / f"{chart.name}.svg").write_text(svg_file(chart), encoding="utf-8")


def marked(text: str) -> Any:
    """Text with `code` and **strong** words as HTML."""
    from markupsafe import Markup  # noqa: PLC0415 - comes with Jinja2

    escaped = html.escape(text, quote=False)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    escaped = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", escaped)
    return Markup(re.sub(r"\*([^*]+)\*", r"<em>\1</em>", escaped))  # noqa: S704 - escaped above


def cell(text: str) -> str:
    """Text that does not end a cell of a Markdown table."""
    return text.replace("|", "\\|")


def anchor(title: str) -> str:
    """The name of a heading in a link."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
