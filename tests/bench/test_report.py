"""Every figure and every verdict of the report comes from the records."""

from __future__ import annotations

import builtins
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from bench import plan
from bench.command import SCENARIOS, main
from bench.fault_run import AGE_ERROR, ERRORS, HEALED, HEALED_FROM_END
from bench.plan import FULL, QUICK, PlannedRun, carry_out, wanted
from bench.record import Case, Goal, Machine, Measure, Record
from bench.report import ReportError, write_html, write_report
from bench.report.advice import answer, choice, wins
from bench.report.chart_parts import tone_of
from bench.report.comparison import NOISE, by_measure, headline
from bench.report.document import LinePlot, Plot, PlotLine
from bench.report.markdown import markdown_of
from bench.report.number_format import exact, figure, quantity, times
from bench.report.page import compose
from bench.report.records import Records, command_of
from bench.report.report_files import DOCS, PLOTS, RESULTS, ROOT
from bench.report.theme import DARK, LIGHT
from bench.scale import ESTIMATE_NODES, PowerLaw, laws, sizes
from harness.waiting import wait_until

CORES = Machine("a core", 2, 2**33, "Linux", 0.5, 12.0)


def measure(p50: float, unit: str = "ms") -> Measure:
    return Measure(unit, 100, p50 * 0.9, p50, p50 * 2, p50 * 3)


def case(
    design: str, nodes: int, measures: Mapping[str, Measure], goals: Sequence[Goal] = (), **settings: float
) -> Case:
    return Case(design, nodes, settings, measures, {}, ["it is right"], goals)


def record(scenario: str, *cases: Case, seconds: float = 10.0, **fields: Any) -> Record:
    at = "2026-01-01T00:00:00+00:00"
    return Record(scenario, 1, seconds, at, "c0ffee" * 6, {"python": "3.11"}, CORES, cases, **fields)


def refresh(nodes: int, journal: float, snapshot: float) -> list[Case]:
    def one(design: str, ms: float) -> Case:
        measures = {name: measure(ms * share) for name, share in (("refresh", 1), ("columns", 0.5), ("nothing", 0.1))}
        return case(design, nodes, {**measures, "bare states": measure(0.5)}, changed=100, state_bytes=1_024)

    return [one("journal", journal), one("snapshot", snapshot)]


REFRESH = record("refresh", *refresh(10_000, 2.0, 4.0), *refresh(100_000, 2.5, 5.0))
COLD = record(
    "cold",
    *(
        case(design, 10_000, {"first view": measure(ms), "bare blocks": measure(5.0)}, change_bytes=200)
        for design, ms in (("journal, no tail", 30.0), ("journal, tail", 160.0), ("snapshot", 40.0))
    ),
)
APPLY = record(
    "apply",
    *(
        case(
            design,
            10_000,
            {
                "consumer": measure(1e6 / us, "events/s"),
                "consumer, CPU": measure(us, "us/event"),
                "bare kombu": measure(20_000, "events/s"),
                "bare kombu, CPU": measure(20.0, "us/event"),
            },
            [Goal.at_least(f"{design}: consumer", 1e6 / us, 15_000, "events/s")],
        )
        for design, us in (("journal", 50.0), ("snapshot", 100.0), ("journal and snapshot", 125.0))
    ),
)
PROPAGATION = record(
    "propagation",
    *(
        case(design, 10_000, {"propagation": measure(ms + rate / 1_000)}, rate=rate, flush_ms=20)
        for design, ms in (("journal", 20.0), ("snapshot", 25.0))
        for rate in (100, 1_000, 4_000)
    ),
)
PEERS = record(
    "peers",
    *(
        case(label, 10_000, {"refresh": measure(ms), "cold": measure(ms * 50)}, changed=100)
        for label, ms in (("nodestate journal", 2.0), ("redis xread", 3.0), ("etcd range", 20.0))
    ),
    skipped=["nats: no server"],
)
FOOTPRINT = {"stored": "bytes/node", "written": "bytes/event", "write amplification": "x"}
SOME = {"refresh": REFRESH, "cold": COLD, "apply": APPLY, "propagation": PROPAGATION, "peers": PEERS}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for name, one in SOME.items():
        (tmp_path / f"{name}.json").write_bytes(one.to_json())
    return tmp_path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with records and with both forms of their report, which tests must not change."""
    folder = tmp_path_factory.mktemp("report")
    for name, one in SOME.items():
        (folder / f"{name}.json").write_bytes(one.to_json())
    write_report(folder)
    write_html(folder, folder / "report.html")
    return folder


@pytest.fixture(scope="module")
def markdown(written: Path) -> str:
    return (written / "evaluation.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def html(written: Path) -> str:
    return (written / "report.html").read_text(encoding="utf-8")


def drawn(chart: Plot) -> str:
    """The SVG of a plot."""
    from bench.report.plots import svg_of  # noqa: PLC0415 - takes a second to import, also to collect this file

    return svg_of(chart)


# -- figures --------------------------------------------------------------------------------------


def test_records_that_were_written_are_read_back_unchanged(results: Path) -> None:
    records = Records.of(results)
    assert records.by_run.keys() == SOME.keys()
    for name, one in SOME.items():
        assert [read.measures for read in records.by_run[name].cases] == [wrote.measures for wrote in one.cases]


def test_the_page_names_files_that_are_no_records(results: Path) -> None:
    (results / "broken.json").write_text("{")
    (results / "newer.json").write_bytes(record("refresh", format=2).to_json())
    records = Records.of(results)
    assert records.by_run.keys() == SOME.keys()
    assert [line.partition(":")[0] for line in records.unreadable] == ["broken.json", "newer.json"]
    assert sum("is no record" in note for note in compose(records).notes) == 2


def test_the_answer_has_five_points_with_the_figures_of_the_records() -> None:
    choose, follow, start, consumers, lose = answer(Records(SOME))
    assert choose == (
        "**Run the journal**, unless the table below names your reason for another design: the journal refreshes "
        "schedulers faster and takes consumers less processor time, while the snapshot gives new schedulers their "
        "first view sooner, and in 1 of 4 comparisons no design is ahead by 1.5× or more."
    )
    assert (
        "10,000 nodes, of which 100 have changed, that takes 2 ms with the journal and 4 ms with the snapshot" in follow
    )
    assert "after 160 ms with the journal and 40 ms with the snapshot, and the snapshot is faster by 4.00×" in start
    assert (
        "with the slowest design (journal and snapshot) a process applies 8,000 events a second, which is enough for "
        "80,000 nodes that each change every 10 s; with the fastest (journal) it applies 20,000" in consumers
    )
    assert "python -m bench recovery" in lose


def test_other_figures_give_another_answer() -> None:
    """This proves that no figure and no verdict is typed by hand."""
    records = Records({"refresh": record("refresh", *refresh(10_000, 9.0, 3.0))})
    choose, follow, start, *_ = answer(records)
    assert choose.startswith("**Run the snapshot**")
    assert "9 ms with the journal and 3 ms with the snapshot" in follow
    assert "was not measured (`python -m bench cold" in start


def test_no_design_is_recommended_without_figures_of_both() -> None:
    alone = record("refresh", *refresh(10_000, 9.0, 3.0)[:1])
    assert answer(Records({"refresh": alone}))[0].startswith("No design can be recommended yet")


def test_figures_within_noise_count_as_even() -> None:
    records = Records({"refresh": record("refresh", *refresh(10_000, 3.0, 3.0 * NOISE * 0.99))})
    assert answer(records)[0].startswith(
        "**Take either design of memcached**: in 1 of 1 comparisons no design is ahead"
    )
    assert [table.caption for table in wins(records).tables] == [f"No design is better by {NOISE:g}× or more"]


def test_a_smaller_time_and_a_larger_rate_count_as_better() -> None:
    won, lost, _even = wins(Records(SOME)).tables
    assert {tuple(row) for row in won.rows} >= {
        ("refresh: refresh", "10,000", "2 ms", "4 ms", "2.00×"),
        ("apply: consumer", "10,000", "20,000 events/s", "10,000 events/s", "2.00×"),
        ("apply: consumer, CPU", "10,000", "50 us/event", "100 us/event", "2.00×"),
    }
    assert [list(row) for row in lost.rows] == [["cold: first view (tail)", "10,000", "160 ms", "40 ms", "4.00×"]]


def test_figures_are_quoted_for_the_typical_load() -> None:
    [of] = by_measure(Records(SOME), "propagation").values()
    assert headline(of).journal.case.settings["rate"] == 1_000


def test_the_choice_of_a_design_names_the_commands_that_measured_it() -> None:
    section = choice(Records(SOME))
    [table] = section.tables
    follows, starts, *_ = table.rows
    assert "**journal**" in follows
    assert section.commands[0].startswith("python -m bench refresh --nodes 10000,100000")
    assert "**snapshot**" in starts
    assert "not measured" in next(row for row in table.rows if "may be restarted" in row[0])[2]


def test_a_record_outside_the_plan_gets_the_command_that_repeats_it() -> None:
    assert command_of("mine", REFRESH) == (
        "python -m bench refresh --nodes 10000,100000 --seconds 10 --seed 1 --changed 100"
    )


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0, "ms", "0 ms"),
        (1.2345, "ms", "1.23 ms"),
        (13_881, "ms", "13.9 s"),
        (999.9, "ms", "1 s"),
        (42, "us/event", "42 us/event"),
        (2_500, "us/event", "2.5 ms/event"),
        (1_234_567, "bytes", "1.23 MB"),
        (8.65, "x", "8.65×"),
        (15_457, "events/s", "15,500 events/s"),
    ],
)
def test_quantities_have_three_digits_and_a_fitting_unit(value: float, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


def test_figures_exact_numbers_and_ratios_are_written_differently() -> None:
    assert (figure(123_456), figure(0.0000123), exact(1_024), exact(0.5)) == ("123,000", "1.2e-05", "1,024", "0.5")
    assert (times(2.0), times(0.5), times(12.34), times(0.012)) == ("2.00×", "0.50×", "12.3×", "0.012×")


# -- with a database ------------------------------------------------------------------------------


def with_sql(one: Record, factor: float, label: str = "sql on mariadb") -> Record:
    """The same record with a database added, whose figures are the snapshot's times a factor."""
    cases = []
    for snapshot in (found for found in one.cases if found.design.startswith("snapshot")):
        measures = {
            name: Measure(of.unit, of.count, *(value * factor for value in (of.min, of.p50, of.p99, of.max)))
            for name, of in snapshot.measures.items()
        }
        renamed = snapshot.design.replace("snapshot", label).replace("memcached", "database")
        cases.append(replace(snapshot, design=renamed, measures=measures))
    return replace(one, cases=[*one.cases, *cases])


def recovery(journal: float, snapshot: float) -> Record:
    return record(
        "recovery",
        *(
            case(f"{design}: {fault}", 10_000, {"recovery": measure(s, "s")})
            for design, s in (("journal", journal), ("snapshot", snapshot))
            for fault in ("memcached restarted", "consumer killed")
        ),
    )


def test_a_database_is_compared_with_both_designs_of_memcached() -> None:
    """The database has a column of its own, and the best design must beat both others."""
    slow = Records({"refresh": with_sql(REFRESH, 10.0)})
    [won] = wins(slow).tables
    assert won.head == ["measure", "nodes", "journal", "snapshot", "sql on mariadb", "better by"]
    assert ["refresh: refresh", "10,000", "2 ms", "4 ms", "40 ms", "2.00×"] in [list(row) for row in won.rows]
    choose, follow, *_ = answer(slow)
    assert "the journal refreshes schedulers faster" in choose
    assert "a database keeps up with the best design in 0 of the 1 comparisons that include one" in choose
    assert "that takes 2 ms (journal) to 40 ms (sql on mariadb)" in follow
    fast = Records({"refresh": with_sql(REFRESH, 0.1)})
    assert answer(fast)[0].startswith("**Run sql on mariadb**")
    [lost] = wins(fast).tables
    assert ["refresh: refresh", "10,000", "2 ms", "4 ms", "0.4 ms", "5.00×"] in [list(row) for row in lost.rows]


def test_designs_within_noise_of_the_best_are_named_together() -> None:
    even = record("refresh", *refresh(10_000, 2.0, 2.2))
    [table] = choice(Records({"refresh": with_sql(even, 10.0)})).tables
    assert table.rows[0][1] == "journal or snapshot"
    [table] = choice(Records({"refresh": with_sql(even, 1.0)})).tables
    assert table.rows[0][1] == "any"
    [table] = choice(Records({"refresh": even})).tables
    assert table.rows[0][1] == "either"


def test_a_restarted_database_is_compared_with_a_restarted_memcached() -> None:
    records = Records({"recovery": with_sql(recovery(2.0, 2.0), 0.1)})
    *_, lose = answer(records)
    assert "fresh again after 0.2 s (sql on mariadb) to 2 s (" in lose
    variants = {variant for _, variant, _ in by_measure(records, "recovery")}
    assert variants == {"memcached restarted", "consumer killed"}
    assert all(len(pair.databases) == 1 for of in by_measure(records, "recovery").values() for pair in of)


def test_the_command_of_a_record_names_the_databases_that_it_measured() -> None:
    """A record that is older than the plan's databases must not claim to have measured them."""
    assert "--design journal,snapshot,sql:mariadb" in command_of("mine", with_sql(REFRESH, 2.0))
    old, new = command_of("apply", APPLY), command_of("apply", with_sql(APPLY, 2.0))
    assert "sql" not in old
    assert "--design journal,snapshot,sql:mariadb" in new


def test_databases_have_colours_of_their_own() -> None:
    labels = ["journal", "sql on sqlite", "sql on mariadb", "nodestate sql on postgres", "mariadb select", "sql"]
    assert [tone_of(label) for label in labels] == ["journal", "sqlite", "mariadb", "postgres", "other", "sql"]
    assert {"sqlite", "mariadb", "postgres"} <= LIGHT.keys() == DARK.keys()


def test_every_plot_that_shows_designs_shows_databases() -> None:
    footprint = record(
        "footprint",
        *(
            case(design, 10_000, {name: measure(5.0, unit) for name, unit in FOOTPRINT.items()}, change_bytes=size)
            for design in ("journal", "snapshot")
            for size in (200, 1_000)
        ),
    )
    contention = record(
        "contention",
        *(
            case(design, 10_000, {"commit": measure(5.0), "refresh": measure(2.0)}, readers=readers)
            for design in ("journal", "snapshot")
            for readers in (1, 8)
        ),
    )
    records = {**SOME, "recovery": recovery(1.0, 1.0), "footprint": footprint, "contention": contention}
    with_both = {
        name: with_sql(with_sql(one, 2.0), 3.0, "sql on postgres") if name != "peers" else one
        for name, one in records.items()
    }
    del with_both["peers"]
    sections = {section.title: section for section in compose(Records(with_both)).sections}
    for title, section in sections.items():
        for chart in section.charts:
            tones = {part.tone for part in (chart.lines if isinstance(chart, LinePlot) else chart.bars)}
            assert {"journal", "snapshot", "mariadb", "postgres"} <= tones, f"{title}: {chart.name}"
    assert sum(len(section.charts) for section in sections.values()) >= 9


# -- pages ----------------------------------------------------------------------------------------


def test_sections_without_records_say_so_and_name_the_command(markdown: str, html: str) -> None:
    for text in (markdown, html):
        for scenario in ("footprint", "recovery", "contention", "scale"):
            assert f"There are no records of {scenario}." in text
            assert f"python -m bench {scenario}" in text
        assert "no records of refresh" not in text


def test_pages_show_goals_caveats_and_skipped_measurements(markdown: str, html: str) -> None:
    for text in (markdown, html):
        assert "journal: consumer" in text
        assert "not met" in text
        assert "2 cores of a core" in text
        assert "Left out: nats: no server." in text


def test_html_shows_the_spread_of_every_measure_and_the_markdown_leaves_it_out(markdown: str, html: str) -> None:
    """The tables of all measures would make the Markdown twice as long."""
    assert html.count("<details>") == len(SOME)
    assert "<td>journal: columns</td>" in html
    assert "journal: columns" not in markdown


def test_pages_show_databases_if_the_records_have_them(tmp_path: Path) -> None:
    (tmp_path / "refresh.json").write_bytes(with_sql(REFRESH, 2.0).to_json())
    assert "sql on mariadb" in write_report(tmp_path).read_text(encoding="utf-8")


def test_the_same_records_give_the_same_bytes(written: Path, tmp_path: Path) -> None:
    for record_file in written.glob("*.json"):
        shutil.copy(record_file, tmp_path)
    write_report(tmp_path)
    write_html(tmp_path, tmp_path / "report.html")
    names = {path.relative_to(written) for path in written.rglob("*") if path.is_file()}
    assert names == {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert all((written / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)


def test_the_html_page_and_the_plots_need_nothing_else(written: Path, html: str) -> None:
    """They contain no script, no font and no picture from elsewhere, so they can be read without a network."""
    for text in [html, *(path.read_text(encoding="utf-8") for path in written.rglob("*.svg"))]:
        for outside in (r"<script", r"<link", r"@import", r"url\((?!#)", r"href=\"(?!#)", r"src=\"(?!data:)"):
            assert not re.search(outside, text), outside
        assert set(re.findall(r"https?://[^\"' <]+", text)) <= {"http://www.w3.org/2000/svg"}


def test_every_link_of_the_html_page_leads_to_a_heading(html: str) -> None:
    ids = re.findall(r" id=\"([^\"]+)\"", html)
    assert len(ids) == len(set(ids))
    linked = set(re.findall(r"href=\"#([^\"]+)", html))
    assert "the-answer" in linked
    assert linked <= set(ids)


def test_the_folder_of_plots_has_the_plots_of_the_page_and_no_other(results: Path) -> None:
    (results / "evaluation").mkdir()
    (results / "evaluation" / "old.svg").write_text("<svg/>")
    shown = re.findall(r"\]\((evaluation/[^)]+)\)", write_report(results).read_text(encoding="utf-8"))
    assert len(shown) >= 6
    assert sorted(shown) == sorted(f"evaluation/{path.name}" for path in (results / "evaluation").iterdir())


def test_paragraphs_of_the_page_end_at_120_columns(markdown: str) -> None:
    assert [line for line in markdown.splitlines() if len(line) > 120 and not line.startswith(("|", "- `"))] == []


def test_a_compact_plot_keeps_texts_and_visible_shapes_only() -> None:
    """Groups, invisible frames and repeated styles are most of what matplotlib writes."""
    svg = drawn(LinePlot("plot", "A & B.", "nodes", "ms", [PlotLine("journal", "journal", [1, 2], [3.0, 4.0])]))
    assert "<title>A &amp; B.</title>" in svg
    assert re.findall(r">([^<]+)</text>", svg)[-2:] == ["journal", "ms"]
    assert "<g>" not in svg
    assert " style=" not in svg
    assert svg.count("stroke:var(--journal)") >= 1
    assert "#0101" not in svg


# -- the committed evaluation ---------------------------------------------------------------------


def test_the_committed_page_is_what_the_committed_records_give() -> None:
    page = compose(Records.of(RESULTS))
    assert (DOCS / "evaluation.md").read_text(encoding="utf-8") == markdown_of(page, PLOTS)
    assert {path.stem for path in (DOCS / PLOTS).glob("*.svg")} == {chart.name for chart in page.charts}


@pytest.mark.thorough
def test_each_committed_plot_is_what_the_committed_records_give() -> None:
    for chart in compose(Records.of(RESULTS)).charts:
        assert (DOCS / PLOTS / f"{chart.name}.svg").read_text(encoding="utf-8") == drawn(chart), chart.name


def test_generated_files_are_a_small_part_of_the_repository() -> None:
    """Records and plots are read by programs and browsers; a reader of the repository should find text and code."""
    listed = subprocess.run(
        ["git", "ls-files"],  # noqa: S607 - the git of the machine
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.splitlines()
    if not listed:
        pytest.skip("not a checkout")
    lines = {name: (ROOT / name).read_bytes().count(b"\n") for name in listed if (ROOT / name).is_file()}
    generated = sum(count for name, count in lines.items() if name.startswith(("docs/evaluation/", "bench/results/")))
    assert generated <= 0.08 * (sum(lines.values()) - lines["requirements.lock"])


# -- notes and errors -----------------------------------------------------------------------------


def test_the_page_warns_of_figures_from_short_runs(results: Path) -> None:
    (results / "refresh.json").write_bytes(record("refresh", *refresh(500, 1.0, 1.0), seconds=0.5).to_json())
    assert any("--quick" in note and "refresh" in note for note in compose(Records.of(results)).notes)


def test_a_folder_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="python -m bench all"):
        write_report(tmp_path)


def test_the_report_names_the_extra_that_is_not_installed(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_module = builtins.__import__

    def without(name: str, *others: Any) -> Any:
        if name.partition(".")[0] in {"bench.report.plots", "matplotlib"} or name == "bench.report.plots":
            raise ModuleNotFoundError(f"No module named {name!r}")
        return import_module(name, *others)

    monkeypatch.setattr(builtins, "__import__", without)
    done = CliRunner().invoke(main, ["report", "--results", str(results)])
    assert done.exit_code == 1
    assert "pip install -e '.[report]'" in done.output


def test_html_is_written_on_demand_only(written: Path, tmp_path: Path) -> None:
    (tmp_path / "refresh.json").write_bytes((written / "refresh.json").read_bytes())
    done = CliRunner().invoke(main, ["report", "--results", str(tmp_path)])
    assert done.exit_code == 0
    assert not list(tmp_path.glob("*.html"))
    done = CliRunner().invoke(main, ["refresh", "--html", str(tmp_path / "page.html")])
    assert done.exit_code == 2
    assert "--html is an option of `all` and `report`" in done.output


def test_benchmarks_import_no_library_of_the_report() -> None:
    """matplotlib takes a second to import, in every process of every benchmark."""
    script = "import sys, bench.command; print(sorted({'matplotlib', 'markdown_it'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # noqa: S603 - ours
    assert done.stdout.strip() == "[]"


# -- the plan -------------------------------------------------------------------------------------


@pytest.mark.parametrize("runs", [FULL, QUICK])
def test_planned_runs_have_unique_names_and_valid_options(runs: tuple[PlannedRun, ...]) -> None:
    assert len({run.name for run in runs}) == len(runs)
    for run in runs:
        if run.scenario in SCENARIOS:
            with main.make_context("bench", [run.scenario, *run.options]) as context:
                for name, value in run.overrides.items():
                    assert context.params[name] == value


def test_the_plan_covers_all_scenarios() -> None:
    for quick in (False, True):
        named = {run.scenario for run in (QUICK if quick else FULL)}
        covered = {"refresh", "cold"} if quick else set()  # which scale runs
        assert SCENARIOS.keys() <= named | covered
    others = dict.fromkeys(run.scenario for run in FULL if run.scenario != "refresh")
    assert wanted(quick=False, known=["refresh"])[1] == list(others)


def test_a_failed_run_removes_its_old_record_and_the_next_run_starts(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "broken.json").write_bytes(REFRESH.to_json())
    broken = PlannedRun("broken", "no-such-scenario")
    failed = carry_out([broken, PlannedRun("also", "nor-this")], tmp_path / "", said.append)
    assert failed == ["broken", "also"]
    assert not list(tmp_path.glob("*.json"))
    assert sum("FAILED: exit 2" in line for line in said) == 2


def test_a_run_that_takes_too_long_is_interrupted(tmp_path: Path) -> None:
    said: list[str] = []
    assert carry_out([PlannedRun("slow", "refresh")], tmp_path, said.append, limit_s=0.01) == ["slow"]
    assert "took longer than 0.01 s" in said[-1]


@pytest.mark.parametrize("in_order", [True, False])
def test_a_run_that_takes_too_long_leaves_no_server_behind(
    in_order: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it ignores SIGINT, as a command in the background does, or does not end on SIGTERM.

    A server has a session of its own, so no signal of a terminal reaches it.
    """
    monkeypatch.setattr(plan, "STOP_LIMIT_S", 0.05 if not in_order else plan.STOP_LIMIT_S)
    started, ended = tmp_path / "started", tmp_path / "ended"
    run = f"""
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.default_int_handler if {in_order} else signal.SIG_IGN)
with subprocess.Popen(["sleep", "600"], start_new_session=True) as server:
    open({str(started)!r}, "w").write(str(server.pid))
    try:
        time.sleep(600)
    finally:
        server.kill()
        open({str(ended)!r}, "w").close()
"""
    assert plan._run([sys.executable, "-SE", "-c", run], 0.4) is None
    assert ended.exists() == (in_order and started.exists())
    pid = int(started.read_text()) if started.exists() else 0  # on a busy machine there was no time to start one

    def gone() -> bool:
        try:
            return not pid or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    wait_until(gone, "a server outlives its run")


def test_all_writes_the_report_and_exits_with_1_if_a_run_failed(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "QUICK", (PlannedRun("broken", "refresh", {"changed": 0}),))
    done = CliRunner().invoke(main, ["all", "--quick", "--results", str(results)])
    assert done.exit_code == 1
    assert "failed: broken" in done.output
    assert "report" in done.output


# -- growth ---------------------------------------------------------------------------------------

fleets = st.lists(st.integers(10, 10**6), min_size=3, max_size=8, unique=True)


@given(xs=fleets, factor=st.floats(1e-4, 1e4), exponent=st.floats(-2.0, 3.0))
def test_the_exponent_of_a_power_law_is_found(xs: list[int], factor: float, exponent: float) -> None:
    law = PowerLaw.fit(xs, [factor * x**exponent for x in xs])
    assert law.exponent == pytest.approx(exponent, abs=1e-6)
    assert law.residual == pytest.approx(1.0, abs=1e-6)
    assert law.at(ESTIMATE_NODES) == pytest.approx(factor * ESTIMATE_NODES**exponent, rel=1e-4)


@given(xs=fleets, factor=st.floats(1.01, 2.0))
def test_the_residual_grows_with_the_distance_of_points_from_the_line(xs: list[int], factor: float) -> None:
    """The error of the estimate also grows with the distance from the measured sizes."""
    law = PowerLaw.fit(xs, [x * (factor if at % 2 else 1 / factor) for at, x in enumerate(sorted(xs))])
    assert law.residual > 1.0
    assert law.within(10**9) > law.within(10**7) > 1.0


def test_the_report_has_a_row_for_each_numbered_fault_of_the_newest_record() -> None:
    def numbered(began_at: str, healed_s: float) -> Record:
        figures = {HEALED: healed_s, HEALED_FROM_END: 1.5, AGE_ERROR: 0.0}
        measures = {name: Measure.of("s", [value]) for name, value in figures.items()}
        measures |= {ERRORS: Measure.of("errors", [7.0]), "nodes known after": Measure.of("nodes", [40.0])}
        fault = replace(case("snapshot: V9: all restarted", 1_000, measures), said=["views: stale | all"])
        return replace(recovery(1.0, 1.0), began_at=began_at, cases=[*recovery(1.0, 1.0).cases, fault])

    older, newer = numbered("2026-01-01T00:00:00+00:00", 9.0), numbered("2026-01-02T00:00:00+00:00", 3.25)
    page = markdown_of(compose(Records({"recovery": newer, "recovery-1000": older})), "plots")
    row = "| V9 | all restarted | 3.25 s | 1.5 s | 7 | 0 s | nodes known after: 40 nodes | views: stale \\| all |"
    assert row in page
    assert page.count("| V9 |") == 1


def test_growth_is_fitted_if_there_are_three_sizes_or_more() -> None:
    cases = [
        case("journal", n, {"refresh": measure(2.0), "first view": measure(n / 100)}) for n in (1_000, 3_000, 10_000)
    ]
    found = laws([*cases, case("snapshot", 1_000, {"refresh": measure(1.0)})])
    assert found.keys() == {("journal", "refresh"), ("journal", "first view")}
    assert found["journal", "refresh"].exponent == pytest.approx(0.0, abs=1e-9)
    assert found["journal", "first view"].exponent == pytest.approx(1.0)
    assert found["journal", "first view"].at(ESTIMATE_NODES) == pytest.approx(10_000.0)


def test_fewer_than_three_sizes_are_replaced_by_growing_ones() -> None:
    assert sizes((10_000,)) == (1_000, 3_000, 10_000, 30_000)
    assert sizes((30, 10, 20)) == (10, 20, 30)
