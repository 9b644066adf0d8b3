"""Composes the page from the records."""

from __future__ import annotations

from bench.report import advice, sections
from bench.report.comparison import NOISE
from bench.report.document import Page, Section, Table
from bench.report.number_format import figure
from bench.report.records import Records, command_of


def compose(records: Records) -> Page:
    """Return the page, before it is written."""
    return Page(
        advice.answer(records),
        _notes(records),
        [
            advice.choice(records),
            advice.wins(records),
            advice.hybrid(records),
            *sections.measured(records),
            advice.goals(records),
            caveats(records),
            runs(records),
        ],
    )


def _notes(records: Records) -> list[str]:
    notes = []
    if records.quick:
        notes.append(
            f"Do not rely on the figures of {', '.join(records.quick)}: they ran with `--quick`, which only shows that "
            "a scenario works."
        )
    if len({record.commit for record in records.by_run.values()}) > 1:
        notes.append("The records were made at different commits: see the table of runs.")
    if any(record.commit.endswith("+") for record in records.by_run.values()):
        notes.append("Some runs, marked +, were made with files that differ from their commit.")
    notes += [f"Left out, because the file is no record: {name}." for name in records.unreadable]
    return notes


def caveats(records: Records) -> Section:
    """State what limits the figures, with the facts of the machine that made them."""
    machines = [record.machine for record in records.by_run.values()]
    calibrations = sorted(machine.calibration_ms for machine in machines)
    cores = ", ".join(sorted({f"{machine.cores} cores of {machine.cpu}" for machine in machines}))
    text = [
        (
            f"Every run used {cores}, shared by servers, consumers, readers and the benchmark. A rate therefore "
            "depends on the servers as much as on nodestate; processor time is the better figure for nodestate alone."
        ),
        (
            "The machine is shared with other work. A fixed loop in plain Python, timed before each run, took "
            f"{calibrations[0]:.1f} to {calibrations[-1]:.1f} ms (a factor of "
            f"{calibrations[-1] / calibrations[0]:.2f}), and the load average was up to "
            f"{max(machine.load_1min for machine in machines):.1f}. Compare figures only within one run, and treat "
            f"differences of less than {NOISE:g}× as noise."
        ),
        (
            "Figures are medians. Bands and whiskers reach from the minimum to the 99th percentile (p99); with few "
            "rounds, p99 is the slowest round."
        ),
        "Each run used one memcached or database and one RabbitMQ on the same machine, without network or replication.",
        (
            "Each run first proves that the work it times has the right result, and gives no figures otherwise: see "
            "`bench/README.md`."
        ),
    ]
    return Section("Caveats", "", text)


def runs(records: Records) -> Section:
    """List every record, with the command that repeats it."""
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
    versions = {f"{name} {of}" for record in records.by_run.values() for name, of in record.versions.items()}
    lead = f"Versions of servers and libraries: {', '.join(sorted(versions))}."
    return Section("Runs", lead, tables=[Table(head, rows, words=True)], commands=["make bench"])
