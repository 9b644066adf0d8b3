"""Sections on faults, on many readers at once, and on other stores."""

from __future__ import annotations

import re
from typing import Final

from bench.report.chart_parts import absent, bar, commands_of, detail, median_and_p99, tone_of
from bench.report.document import BarPlot, Plot, Section, Table
from bench.report.fault_table import HEAD, fault_rows, is_numbered
from bench.report.number_format import exact
from bench.report.records import Records, command_of, spread, typical

CONTENDED: Final = {"refresh": "A read of one reader", "commit": "A commit of the consumer"}
PEER_MEASURES: Final = {
    "refresh": "A refresh after {changed} nodes have changed, {nodes} nodes.",
    "refresh, decoded": "The same refresh, with the {changed} states decoded, {nodes} nodes.",
    "nothing": "A refresh with nothing changed, {nodes} nodes.",
    "cold": "The first read of a new process, {nodes} nodes.",
    "write": "A write of {changed} changed nodes, {nodes} nodes; nodestate also folds and checks the events.",
}


def recovering(records: Records) -> Section:
    """Return the section on the time until views are complete after a fault."""
    title = "Recovery from faults"
    lead = (
        "How long after a fault the view of a new reader is complete and fresh again. Until then the view says that it "
        "is not, or the read is refused."
    )
    cases = [one for one in typical(list(records.of_scenarios("recovery"))) if "recovery" in one.case.measures]
    if not cases:
        return absent(title, lead, "recovery")
    faults = dict.fromkeys(one.variant for one in cases)
    bars = [
        bar(one, "recovery", fault, one.design, tone_of(one.design))
        for fault in faults
        for one in cases
        if one.variant == fault
    ]
    caption = f"Recovery with {exact(cases[0].case.nodes)} nodes. Whiskers: min to p99."
    chart = BarPlot("recovery-faults", caption, spread(cases[0], "recovery").unit, bars)
    tables = _numbered_faults(records)
    return Section(title, lead, charts=[chart], tables=tables, detail=[detail(cases)], commands=commands_of(cases))


def _numbered_faults(records: Records) -> list[Table]:
    """Return the table of numbered faults of the newest record that has any; no table if none has."""
    numbered = [one for one in records.of_scenarios("recovery") if is_numbered(one.case)]
    if not numbered:
        return []
    newest = max(numbered, key=lambda one: one.record.began_at)
    cases = [one.case for one in numbered if one.run == newest.run]
    command, nodes = command_of(newest.run, newest.record), exact(cases[0].nodes)
    caption = (
        f"Measured by `{command}`. Faults with {nodes} nodes, each caused once. Healed: the view of a new reader is "
        "complete and fresh, or a boot succeeds (exchange for orders, swallowed connection), or an agent answers "
        "(exchange for resync requests). Errors: failed boots and requests, and events that were sent again. Age "
        "error: by how many seconds a view claimed to be younger than the events that the broker had confirmed"
    )
    return [Table(HEAD, fault_rows(cases), caption, words=True)]


def contending(records: Records) -> Section:
    """Return the section on what readers cost each other and the consumer, by their number."""
    title = "Many readers beside one consumer"
    lead = "How much many readers slow down each other and the consumer, on cores that all of them share."
    cases = typical(list(records.of_scenarios("contention")))
    if not cases:
        return absent(title, lead, "contention")
    steady = [one for one in cases if not one.variant and "readers" in one.case.settings]
    charts: list[Plot] = []
    for measure, what in CONTENDED.items():
        measured = [one for one in steady if measure in one.case.measures]
        if measured:
            caption = f"{what}, with {exact(measured[0].case.nodes)} nodes."
            charts.append(median_and_p99(f"contention-{measure}", caption, measured, measure, ("readers", "readers")))
    return Section(title, lead, charts=charts, detail=[detail(cases)], commands=commands_of(cases))


def comparing_peers(records: Records) -> Section:
    """Return the section on other stores, measured with the same fleet in the same run; the fastest first."""
    title = "Compared with other stores"
    lead = "The same work done with other stores, each by its fastest native way."
    cases = typical(list(records.of_scenarios("peers")))
    if not cases:
        return absent(title, lead, "peers")
    charts: list[Plot] = []
    nodes, changed = exact(cases[0].case.nodes), exact(cases[0].case.settings.get("changed", 0))
    for measure, caption in PEER_MEASURES.items():
        measured = [one for one in cases if measure in one.case.measures]
        bars = [bar(one, measure, "", one.case.design) for one in sorted(measured, key=lambda one: one.p50(measure))]
        if bars:
            name = f"peers-{re.sub(r'[^a-z]+', '-', measure)}"
            charts.append(BarPlot(name, caption.format(changed=changed, nodes=nodes), "ms", bars, logarithmic=True))
    skipped = dict.fromkeys(line for one in cases for line in one.record.skipped)
    text = ["The axes are logarithmic: each step is a factor of ten.", *(f"Left out: {line}." for line in skipped)]
    return Section(title, lead, text, charts, detail=[detail(cases)], commands=commands_of(cases))
