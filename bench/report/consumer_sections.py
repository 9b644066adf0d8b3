"""What consumers and stores feel: events, bytes written, bytes held."""

from __future__ import annotations

from functools import partial
from typing import Final

from bench.report.chart_parts import absent, across, bar, commands_of, detail, setting_of
from bench.report.document import BarPlot, Plot, Section, Table
from bench.report.number_format import exact, figure, quantity
from bench.report.records import Records, spread, typical

AMPLIFIED: Final = "write amplification"
PART: Final = f"{AMPLIFIED}, "
"""With what of it: a kind of key."""
NEAR: Final = 1.05
"""Sizes of changes are means of what came: so far apart, they are the same."""


def writing(records: Records) -> Section:
    """One consumer process."""
    title, lead = (
        "Writing",
        "What one consumer process takes from RabbitMQ into where a design lives, beside bare kombu with the same messages.",
    )
    found = typical(list(records.found("apply")))
    if not found:
        return absent(title, lead, "apply")
    charts: list[Plot] = []
    for name, measure, caption in (
        ("writing-rate", "consumer", "Events a second of one consumer process"),
        ("writing-cpu", "consumer, CPU", "Processor time of the consumer for one event"),
    ):
        having = [one for one in found if measure in one.case.measures]
        bars = [bar(one, measure, "", one.case.design) for one in having]
        bare = f"bare kombu{measure.removeprefix('consumer')}"
        bars += [bar(one, bare, "", "bare kombu", "bare") for one in having[:1] if bare in one.case.measures]
        unit = spread(having[0], measure).unit if having else ""
        charts.append(BarPlot(name, f"{caption}, {found[0].case.nodes:,} nodes.", unit, bars))
    return Section(title, lead, charts=charts, detail=[detail(found)], commands=commands_of(found))


def storing(records: Records) -> Section:
    """Bytes written for an event, by its size; bytes held for a node."""
    title, lead = (
        "Bytes",
        "What is written to memcached or the database for each change, by its size, and what is held for each node.",
    )
    found = typical(list(records.found("footprint")))
    if not found:
        return absent(title, lead, "footprint")
    of_size = partial(setting_of, "change_bytes")
    at = f"{exact(found[0].case.nodes)} nodes"
    smallest = min(map(of_size, found))
    stored = [bar(one, "stored", "", one.case.design) for one in found if of_size(one) <= smallest * NEAR]
    state_bytes = found[0].case.settings.get("state_bytes")
    states = f", whose states have {exact(round(state_bytes))} bytes" if state_bytes else ""
    size = f"changes of {figure(smallest)} bytes"
    charts: list[Plot] = [
        across(
            "footprint-written",
            f"Written for a change, {at}{states}.",
            found,
            "written",
            ("bytes of a change", of_size),
        ),
        BarPlot("footprint-stored", f"Held for a node, {at}{states}, {size}.", "bytes", stored),
    ]
    return Section(title, lead, charts=charts, detail=[detail(found)], commands=commands_of(found))


def amplifying(records: Records) -> Section:
    """The same as a ratio, and what it consists of."""
    title, lead = "Write amplification", "Bytes written to memcached or the database for each byte of events."
    found = typical(list(records.found("footprint")))
    found = sorted((one for one in found if AMPLIFIED in one.case.measures), key=partial(setting_of, "change_bytes"))
    if not found:
        return absent(title, lead, "footprint")
    bars, rows = [], []
    for one in found:
        of = f"changes of {exact(round(setting_of('change_bytes', one), -1))} bytes"
        bars.append(bar(one, AMPLIFIED, of, one.case.design))
        for name, part in one.case.measures.items():
            if name.startswith(PART):
                rows.append([f"{one.case.design}: {name.removeprefix(PART)}", of, quantity(part.p50, "x")])
    chart = BarPlot(
        "footprint-amplification", f"At {exact(found[0].case.nodes)} nodes.", "times the bytes of events", bars
    )
    tables = [Table(["part", "changes", "times the bytes of events"], rows, "By what is written")] if rows else []
    return Section(title, lead, [], [chart], tables, commands=commands_of(found))
