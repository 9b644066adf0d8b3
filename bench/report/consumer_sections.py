"""Sections on what consumers and stores bear: events applied, bytes written and bytes held."""

from __future__ import annotations

from functools import partial
from typing import Final

from bench.report.chart_parts import absent, across, bar, commands_of, detail, setting_of
from bench.report.comparison import NEAR
from bench.report.document import BarPlot, Plot, Section, Table
from bench.report.number_format import exact, figure, quantity
from bench.report.records import Records, spread, typical

AMPLIFICATION: Final = "write amplification"
PART: Final = f"{AMPLIFICATION}, "
"""Beginning of a measure that names a kind of key after it."""


def applying(records: Records) -> Section:
    """Return the section on the rate of one consumer process."""
    title = "Applying events"
    lead = (
        "How many events one consumer process takes from RabbitMQ and writes, beside a plain kombu consumer that takes "
        "the same messages and writes nothing (“bare kombu”)."
    )
    cases = typical(list(records.of_scenarios("apply")))
    if not cases:
        return absent(title, lead, "apply")
    charts: list[Plot] = []
    for name, measure, caption in (
        ("writing-rate", "consumer", "Events a second of one consumer process"),
        ("writing-cpu", "consumer, CPU", "Processor time of the consumer for one event"),
    ):
        measured = [one for one in cases if measure in one.case.measures]
        bars = [bar(one, measure, "", one.case.design) for one in measured]
        bare = f"bare kombu{measure.removeprefix('consumer')}"
        bars += [bar(one, bare, "", "bare kombu", "bare") for one in measured[:1] if bare in one.case.measures]
        unit = spread(measured[0], measure).unit if measured else ""
        charts.append(BarPlot(name, f"{caption}, with {cases[0].case.nodes:,} nodes.", unit, bars))
    return Section(title, lead, charts=charts, detail=[detail(cases)], commands=commands_of(cases))


def storing(records: Records) -> Section:
    """Return the section on bytes written for an event, by its size, and bytes held for a node."""
    title = "Bytes written and held"
    lead = "How many bytes are written to memcached or the database for each change, and held for each node."
    cases = typical(list(records.of_scenarios("footprint")))
    if not cases:
        return absent(title, lead, "footprint")
    of_size = partial(setting_of, "change_bytes")
    at = f"{exact(cases[0].case.nodes)} nodes"
    smallest = min(map(of_size, cases))
    stored = [bar(one, "stored", "", one.case.design) for one in cases if of_size(one) <= smallest * NEAR]
    state_bytes = cases[0].case.settings.get("state_bytes")
    states = f" with states of {exact(round(state_bytes))} bytes" if state_bytes else ""
    size = f"and changes of {figure(smallest)} bytes"
    charts: list[Plot] = [
        across(
            "footprint-written",
            f"Bytes written for a change, for {at}{states}.",
            cases,
            "written",
            ("bytes of a change", of_size),
        ),
        BarPlot("footprint-stored", f"Bytes held for a node, for {at}{states} {size}.", "bytes", stored),
    ]
    return Section(title, lead, charts=charts, detail=[detail(cases)], commands=commands_of(cases))


def amplifying(records: Records) -> Section:
    """Return the section on bytes written as a multiple of the bytes of events, and on their kinds."""
    title = "Write amplification"
    lead = "How many bytes are written to memcached or the database for each byte of events."
    cases = typical(list(records.of_scenarios("footprint")))
    cases = sorted(
        (one for one in cases if AMPLIFICATION in one.case.measures), key=partial(setting_of, "change_bytes")
    )
    if not cases:
        return absent(title, lead, "footprint")
    bars, rows = [], []
    for one in cases:
        of = f"changes of {exact(round(setting_of('change_bytes', one), -1))} bytes"
        bars.append(bar(one, AMPLIFICATION, of, one.case.design))
        for name, part in one.case.measures.items():
            if name.startswith(PART):
                rows.append([f"{one.case.design}: {name.removeprefix(PART)}", of, quantity(part.p50, "x")])
    caption = f"Bytes written for each byte of events, for {exact(cases[0].case.nodes)} nodes."
    chart = BarPlot("footprint-amplification", caption, "times the bytes of events", bars)
    tables = [Table(["kind", "changes", "times the bytes of events"], rows, "By kind of key")] if rows else []
    return Section(title, lead, [], [chart], tables, commands=commands_of(cases))
