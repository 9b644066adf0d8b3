"""What happens when something fails, when many want the same, and what others take for it."""

from __future__ import annotations

import re
from typing import Final

from bench.report.chart_parts import absent, bar, commands_of, detail, median_and_p99
from bench.report.document import BarPlot, Plot, Section
from bench.report.number_format import exact
from bench.report.records import Records, spread, typical

CONTENDED: Final = {"refresh": "A reader's read", "commit": "A commit of the consumer"}
PEERS_DO: Final = {
    "refresh": "A reader that follows along, after {changed} nodes changed",
    "refresh, decoded": "The same, and the {changed} states decoded",
    "nothing": "A reader that follows along, with nothing changed",
    "cold": "A new reader, in a new process",
    "write": "Writing {changed} changed nodes; nodestate folds and checks them as well",
}


def recovering(records: Records) -> Section:
    """By fault, how long views were not whole."""
    title = "Recovery"
    lead = "How long after a fault until a new reader's view is whole and fresh again. Until then it says so, or is refused."
    found = [one for one in typical(list(records.found("recovery"))) if "recovery" in one.case.measures]
    if not found:
        return absent(title, lead, "recovery")
    faults = dict.fromkeys(one.variant for one in found)
    bars = [bar(one, "recovery", fault, one.design) for fault in faults for one in found if one.variant == fault]
    unit = spread(found[0], "recovery").unit
    chart = BarPlot("recovery-faults", f"At {exact(found[0].case.nodes)} nodes. Whiskers: min to p99.", unit, bars)
    return Section(title, lead, charts=[chart], detail=[detail(found)], commands=commands_of(found))


def contending(records: Records) -> Section:
    """By the number of readers, what they cost each other and the consumer."""
    title = "Contention"
    lead = (
        "What many readers beside one consumer cost each other, and the consumer, on the cores that all of them share."
    )
    found = typical(list(records.found("contention")))
    if not found:
        return absent(title, lead, "contention")
    steady = [one for one in found if not one.variant and "readers" in one.case.settings]
    charts: list[Plot] = []
    for measure, caption in CONTENDED.items():
        having = [one for one in steady if measure in one.case.measures]
        if having:
            caption = f"{caption}, {exact(having[0].case.nodes)} nodes."
            charts.append(median_and_p99(f"contention-{measure}", caption, having, measure, ("readers", "readers")))
    return Section(title, lead, charts=charts, detail=[detail(found)], commands=commands_of(found))


def beside(records: Records) -> Section:
    """Other stores, with the same fleet in the same run; the fastest first."""
    title, lead = "Beside others", "The same work with what people would take otherwise, each by its best native way."
    found = typical(list(records.found("peers")))
    if not found:
        return absent(title, lead, "peers")
    charts: list[Plot] = []
    nodes, changed = exact(found[0].case.nodes), exact(found[0].case.settings.get("changed", 0))
    for measure, caption in PEERS_DO.items():
        having = [one for one in found if measure in one.case.measures]
        bars = [bar(one, measure, "", one.case.design) for one in sorted(having, key=lambda one: one.p50(measure))]
        if bars:
            name = f"peers-{re.sub(r'[^a-z]+', '-', measure)}"
            charts.append(
                BarPlot(name, f"{caption.format(changed=changed)}, {nodes} nodes.", "ms", bars, logarithmic=True)
            )
    skipped = dict.fromkeys(line for one in found for line in one.record.skipped)
    text = ["Logarithmic: each gridline is ten times the one before.", *(f"Left out: {line}." for line in skipped)]
    return Section(title, lead, text, charts, detail=[detail(found)], commands=commands_of(found))
